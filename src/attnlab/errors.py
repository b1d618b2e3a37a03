"""How a run can end other than by finishing; each has its exit code."""


class BadInput(ValueError):
    """Something that the user typed or supplied is wrong. One line per problem: key, value, and
    what is allowed.
    """

    exit_code = 2


class FolderInUse(RuntimeError):
    """Another process is writing to this run folder."""

    exit_code = 3


class NonFinite(RuntimeError):
    """The loss or a gradient is NaN or infinite; nothing was updated."""

    exit_code = 4


class OutOfResources(RuntimeError):
    """Memory or disk space ran out. Everything that was saved before is intact."""

    exit_code = 5


class PeerLost(RuntimeError):
    """Another of the processes that train together ended. Everything saved before is intact."""

    exit_code = 6


class Interrupted(RuntimeError):
    """A signal ended training after a save, or the wait for a cluster's jobs."""

    def __init__(self, signum: int, message: str):
        super().__init__(message)
        self.exit_code = 128 + signum


def first_line(error: Exception) -> str:
    """Of a message of another library, which may be long, or empty: then the error's name."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
