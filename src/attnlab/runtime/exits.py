"""From a failure to an exit code."""

import contextlib
import os
import select
import signal
import sys
from pathlib import Path

from attnlab.errors import (
    BadInput,
    FolderInUse,
    Interrupted,
    NonFinite,
    OutOfResources,
    PeerLost,
)
from attnlab.runtime.torchrun import REASON, first_to_say

FAILURES = (BadInput, FolderInUse, NonFinite, OutOfResources, PeerLost, Interrupted)


@contextlib.contextmanager
def exit_on_failure():
    """End the process with the exit code of a failure and one line per problem on stderr; without
    a word if nobody reads stdout any more, as in `attnlab summary outputs | head`.
    """
    try:
        yield
        sys.stdout.flush()
    except FAILURES as failure:
        with first_to_say(type(failure).__name__) as speaks:
            for line in str(failure).splitlines() if speaks else ():
                print(f"error: {line}", file=sys.stderr, flush=True)
        if REASON in os.environ:
            with contextlib.suppress(OSError):  # the disk may be full
                Path(os.environ[REASON]).write_text(str(failure))
        sys.exit(failure.exit_code)
    except PermissionError as error:  # any path may lie in a folder that one may not enter
        if error.filename is None:
            raise  # not of a path
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(BadInput.exit_code)
    except BrokenPipeError:
        if not _unread(sys.stdout.fileno()):
            raise  # another pipe
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())  # for the flush when Python ends
        sys.exit(128 + signal.SIGPIPE)
    except KeyboardInterrupt:  # before or after training, which has its own handling
        sys.exit(128 + signal.SIGINT)


def _unread(descriptor: int) -> bool:
    """Whether it is a pipe whose reader has gone."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
