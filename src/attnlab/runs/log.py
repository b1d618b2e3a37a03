"""train.log: what a run says over all its starts."""

import contextlib
import logging

from attnlab.runs.folder import RunFolder

PROGRESS = logging.getLogger("attnlab.progress")  # for train.log only: a terminal has its bar
PROGRESS.propagate = False


class LogFile(logging.FileHandler):
    """train.log: what a run says, with times, and its progress, over all its starts. Nothing ends
    if it cannot be written.
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
        self.close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk ends the run by what must be written, with its own message."""
