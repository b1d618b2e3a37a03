"""What torchrun tells the processes that it starts. torch is not imported: that takes seconds."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

REASON = "ATTNLAB_REASON"  # names the file from which a sweep reads why its job failed


def local_rank() -> int | None:
    """Number of this process among those that torchrun started on this machine, from 0; None
    without torchrun, whatever other variables such as RANK a cluster has set.
    """
    return int(os.environ["LOCAL_RANK"]) if "TORCHELASTIC_RUN_ID" in os.environ else None


@contextlib.contextmanager
def first_to_say(what: str) -> Iterator[bool]:
    """Whether this process is the one that reports `what`, of those started on this machine.

    The others wait until it is reported, because torchrun ends all as soon as one has ended.
    """
    shared = os.environ.get("TORCHELASTIC_ERROR_FILE")  # <attempt>/<local rank>/error.json
    if local_rank() is None or shared is None:
        yield True
        return
    with open(Path(shared).parents[1] / f"said-{what}", "a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield not file.seek(0, os.SEEK_END)
        file.write(what)
