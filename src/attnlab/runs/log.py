"""Where messages go: to stderr, and those of a run over all its starts to train.log."""

import contextlib
import logging

from attnlab.runs.folder import RunFolder

PROGRESS = logging.getLogger("attnlab.progress")  # for train.log only: a terminal has its bar
PROGRESS.propagate = False


def to_stderr() -> None:
    """Print messages as they are; of libraries that tell much, only their warnings."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    for name in ("httpx", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)


class LogFile(logging.FileHandler):
    """train.log: the messages and the progress of a run, with times, over all its starts. If it
    cannot be written, the run continues.
    """

    def __init__(self, folder: RunFolder):
        super().__init__(folder.path / "train.log", delay=True)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self.folder = folder
        self.loggers = [logging.getLogger("attnlab"), PROGRESS]

    def __enter__(self) -> "LogFile":
        for logger in self.loggers if self.folder.writes else ():
            logger.addHandler(self)
        return self

    def __exit__(self, *exception) -> None:
        for logger in self.loggers:
            logger.removeHandler(self)
        with contextlib.suppress(OSError):  # of what a full disk left in the buffer
            self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore errors: a full disk ends the run where a required file is written."""
