"""How a run can end other than by finishing; each has its exit code."""


class BadInput(ValueError):
    """Something the user typed or supplied is wrong. One line a problem: what, where, what is
    allowed.
    """

    exit_code = 2


class FolderInUse(RuntimeError):
    """Another process is writing to this run folder."""

    exit_code = 3


class NonFinite(RuntimeError):
    """The loss or a gradient is NaN or infinite; nothing was updated."""

    exit_code = 4


class OutOfResources(RuntimeError):
    """Memory or disk space ended. What was saved before is whole."""

    exit_code = 5


class PeerLost(RuntimeError):
    """Of processes that train together, another one ended. What was saved before is whole."""

    exit_code = 6


class Interrupted(RuntimeError):
    """A signal ended training after a save."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum
