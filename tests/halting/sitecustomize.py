"""Read by Python at the start of a process that a test has given `Halts`: at the files it opens or
renames, the process stops itself, waits, or is told that the disk is full. So a test need not be
faster than what it watches.
"""

import errno
import fnmatch
import json
import os
import signal
import sys
import time
from pathlib import Path

moments = json.loads(os.environ["HALTS"])
markers = Path(os.environ["HALTS_FOLDER"])
EVENTS = ("open", "os.rename", "tempfile.mkstemp")
seen = [0]  # of the moment that comes next


def hook(event, args):
    """Compare what Python reports (PEP 578) with the next moment: occasion, count, action."""
    if not moments or event not in EVENTS or isinstance(args[0], int):  # a descriptor
        return
    name = os.path.basename(os.fsdecode(args[1 if event == "os.rename" else 0]))
    mode = f"{args[1]} " if event == "open" else ""
    occasion, count, action = moments[0]
    if not fnmatch.fnmatchcase(f"{event} {mode}{name}", occasion):
        return
    seen[0] += 1
    if seen[0] < count:
        return
    if action not in ("halt", "wait"):  # from here on, each time
        raise OSError(getattr(errno, action), os.strerror(getattr(errno, action)), name)
    del moments[0]
    seen[0] = 0
    number = str(len(moments))
    try:  # of several processes with the same moments, one halts
        marker = os.open(markers / number, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        return
    os.write(marker, str(os.getpid()).encode())
    os.close(marker)
    if action == "halt":
        os.kill(os.getpid(), signal.SIGSTOP)
    while action == "wait" and not os.path.exists(markers / f"{number}.go"):
        time.sleep(0.005)


sys.addaudithook(hook)
