"""One writer for a run folder, on one machine and across machines that share it.

On one machine the kernel's flock decides: it ends with its process, however that dies. Other
machines may not see it, depending on the file system, so the holder also shows a sign of life:
it touches the file `.owner` every few seconds. The age of that file is the difference of two
times of the file system itself, so the clocks of the machines need not agree.
"""

import contextlib
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from pathlib import Path
from typing import Any

from attnlab.errors import FolderInUse

HEARTBEAT = 10.0  # seconds from one sign of life to the next
STALE = 120.0  # seconds without one after which another machine takes over; NFS may hide 60

Owner = dict[str, Any]


def machine() -> str:
    """Name of this machine and of its boot, because two machines may share a host name."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        return f"{name} ({Path('/proc/sys/kernel/random/boot_id').read_text()[:8]})"
    return name


class Lock:
    """Held while open. Errors: `FolderInUse` if another process, here or elsewhere, holds it."""

    def __init__(self, folder: Path, host: str | None = None):
        self.folder, self.file = folder, folder / ".owner"
        self.me: Owner = {
            "host": host or machine(),
            "process": os.getpid(),
            "token": secrets.token_hex(8),
        }
        self._released = threading.Event()

    def __enter__(self) -> "Lock":
        self._kernel = open(self.folder / ".lock", "a")
        # a loader's worker may outlive a killed run for seconds; it must not hold the lock
        os.register_at_fork(after_in_child=self._kernel.close)
        try:
            fcntl.flock(self._kernel, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._claim()
        except BlockingIOError:
            self._kernel.close()
            raise FolderInUse(self._in_use(self._owner())) from None
        except FolderInUse:
            self._kernel.close()
            raise
        threading.Thread(target=self._beat, name="heartbeat", daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self._released.set()
        if self._owner() == self.me:
            self.file.unlink(missing_ok=True)
        self._kernel.close()

    def check_held(self) -> None:
        """Called before every write. Errors: `FolderInUse` if this process was silent for so long
        (its machine was suspended, say) that another one took over.
        """
        if (owner := self._owner()) != self.me:
            raise FolderInUse(f"{self._in_use(owner)}, which took over from this process")

    def _claim(self) -> None:
        while True:
            with contextlib.suppress(FileExistsError):
                self._create(self.me)
            if (owner := self._owner()) == self.me:
                return
            with contextlib.suppress(FileNotFoundError):  # given up in this moment
                silent = self._age(self.file)
                # of this machine: its process is gone, or it would hold the kernel's lock
                if owner.get("host") != self.me["host"] and silent < STALE:
                    raise FolderInUse(
                        f"{self._in_use(owner)}; last sign of life {max(0, silent):.0f} s ago, "
                        f"taken over after {STALE:.0f} s without one"
                    )
                self._depose(owner)

    def _depose(self, gone: Owner) -> None:
        """Replace an owner that is gone by this process. One process at a time does so, and
        `.owner` exists throughout, so that no other process can create it.
        """
        gate = self.folder / ".takeover"
        try:
            open(gate, "x").close()
        except FileExistsError:
            if self._age(gate) > STALE:  # its process died in here
                gate.unlink(missing_ok=True)
            time.sleep(0.01)
            return
        try:
            if self._owner() == gone:  # still
                mine = self.folder / f".owner.{self.me['token']}"
                mine.write_text(json.dumps(self.me))
                os.replace(mine, self.file)
        finally:
            gate.unlink(missing_ok=True)

    def _create(self, owner: Owner) -> None:
        with open(self.file, "x") as file:  # of several at once, one succeeds
            try:
                file.write(json.dumps(owner))
                file.flush()
            except OSError:  # a full disk: no owner is better than one without a name
                self.file.unlink()
                raise

    def _owner(self) -> Owner:
        """The content of the file; empty if there is none."""
        with contextlib.suppress(FileNotFoundError):
            return _read(self.file)
        return {}

    def _age(self, file: Path) -> float:
        """Seconds since a file was touched, by the file system's clock."""
        probe = self.folder / f".now.{self.me['token']}"
        probe.touch()
        try:
            return probe.stat().st_mtime - file.stat().st_mtime
        finally:
            probe.unlink()

    def _beat(self) -> None:
        while not self._released.wait(HEARTBEAT):
            with contextlib.suppress(OSError):  # a server that is away for a moment
                if self._owner() != self.me:
                    return  # the next write finds out
                os.utime(self.file)

    def _in_use(self, owner: Owner) -> str:
        who = "process {process} on {host}".format_map({"process": "?", "host": "?"} | owner)
        return f"run folder {self.folder}: in use by {who}"


def _read(file: Path) -> Owner:
    """An owner file is empty at the moment of its creation, and may be damaged."""
    with contextlib.suppress(ValueError):
        found = json.loads(file.read_text())
        return found if isinstance(found, dict) else {}
    return {}
