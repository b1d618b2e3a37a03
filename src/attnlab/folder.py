"""A run's folder: who may write to it, what belongs in it, and that it only ever holds one
configuration.
"""

import contextlib
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from attnlab.config import ADDED, CODE_VERSION, PLACE, Config, can_change_result
from attnlab.errors import BadInput
from attnlab.lock import Lock

PROGRESS = logging.getLogger("attnlab.progress")  # for train.log only: a terminal has its bar
PROGRESS.propagate = False
Check = Callable[[Path], object]  # reads a file back, and raises if it is not whole


class RunFolder:
    """One run's folder, locked for this process while open.

    writes: False for all but the first of processes that train together: for them nothing here
    locks or writes. Errors: `BadInput` if it cannot be written or holds another configuration,
    `FolderInUse` if another process has it open.
    """

    def __init__(self, path: Path, cfg: Config, writes: bool = True):
        self.path, self.cfg, self.writes = path, cfg, writes
        self.checkpoints = path / "checkpoints"
        self._lock, self._open = Lock(path), contextlib.ExitStack()

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run, else None. Errors: `BadInput` if it is damaged."""
        file = self.path / "result.json"
        if not file.is_file():
            return None
        try:
            result = json.loads(file.read_text())
            return result if result["status"] == "finished" else None
        except (ValueError, KeyError, TypeError):
            raise BadInput(
                f"{file}: is damaged; without it, the same command makes it again"
            ) from None

    @property
    def moved(self) -> bool:
        """Whether the run's data lay elsewhere when it was started: whether it is the same data
        must be looked at then.
        """
        stored, now = self._stored(), self.cfg.model_dump()
        return stored is not None and stored.get(PLACE) != flatten(now).get(PLACE)

    def check(self) -> None:
        """Refuse, before anything is prepared, a folder that this run cannot use. A finished run's
        folder is only read.
        """
        theirs = self._stored()
        if theirs is not None:
            ours = flatten(self.cfg.model_dump())
            changed = [
                f"{key}: {theirs.get(key)} in the run folder {self.path}, {ours.get(key)} now"
                for key in sorted(theirs.keys() | ours.keys())
                if can_change_result(key) and theirs.get(key) != ours.get(key)
            ]
            if changed:
                raise BadInput("\n".join(changed))
        if self.result is None:
            self._check_writable()

    def _stored(self) -> dict[str, Any] | None:
        """config.yaml with dotted keys; None without one."""
        file = self.path / "config.yaml"
        if not file.is_file():
            return None
        try:
            stored = yaml.safe_load(file.read_text())
        except (UnicodeError, yaml.YAMLError) as error:
            raise BadInput(f"{file}: cannot be read: {' '.join(str(error).split())}") from None
        return ADDED | flatten(stored if isinstance(stored, dict) else {})

    def _check_writable(self) -> None:
        around = (self.path, *self.path.absolute().parents)
        existing = next(p for p in around if os.path.exists(p))
        try:
            tempfile.TemporaryDirectory(dir=existing).cleanup()
        except OSError:
            raise BadInput(
                f"run folder {self.path}: {existing} is not a writable folder"
            ) from None

    def __enter__(self) -> "RunFolder":
        if not self.writes:
            return self
        with contextlib.ExitStack() as stack:
            try:
                self.checkpoints.mkdir(parents=True, exist_ok=True)
                stack.enter_context(self._lock)
                for part in self.path.glob("**/.*.part"):  # of a save that was killed
                    part.unlink()
                self.check()  # again: another run may have made the folder meanwhile
                if self._stored() is None:
                    self.write_config()
            except OSError as error:
                raise BadInput(f"run folder {self.path}: cannot be written: {error}") from None
            self._open = stack.pop_all()
        return self

    def write_config(self) -> None:
        """Write config.yaml: of this start, what cannot change the result may have changed."""
        self.write("config.yaml", yaml.safe_dump(self.cfg.model_dump(), sort_keys=False))

    def __exit__(self, *exception) -> None:
        self._open.close()

    def may_write(self) -> bool:
        """False if others write. Errors: `FolderInUse` if another machine took the folder over."""
        if self.writes:
            self._lock.check()
        return self.writes

    def discard_if_empty(self) -> None:
        """Remove the folder, and then those around it, as far as nothing is in them: Hydra makes
        them before we can look.
        """
        with contextlib.suppress(OSError):
            os.removedirs(self.path)

    def write(self, name: str, content: str | bytes, check: Check | None = None) -> None:
        """Write a file whole or not at all: see `write_atomic`."""
        if self.may_write():
            write_atomic(self.path / name, content, check)

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        self.write(name, json.dumps(content, indent=1) + "\n")

    def ledger(self, name: str) -> "Ledger":
        """One of the folder's ledgers, for writing."""
        return Ledger(self.path / name, self.may_write)


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


class Ledger:
    """A file of JSON rows, each with its step: metrics.jsonl, timing.jsonl."""

    def __init__(self, path: Path, may_write: Callable[[], bool] = lambda: True):
        self.path, self.may_write = path, may_write

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a torn last line (a kill in the middle of writing) is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`: the resumed run writes it again."""
        if not self.may_write():
            return
        kept = [row for row in self.rows() if row["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, row: dict[str, Any], sync: bool = False) -> None:
        """Add a row; with sync it is on disk when this returns."""
        if not self.may_write():
            return
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())


def write_atomic(path: Path, content: str | bytes, check: Check | None = None) -> None:
    """Replace a file so that, whatever happens, either the old or the new content is there.

    check: reads the new file back before it takes the place of the old one, and raises if it is
    not as it should be.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        if check:
            check(part)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def environment(device) -> dict[str, Any]:
    """What env.json says: code, versions, machine, command."""
    import numpy
    import torch

    root = Path(__file__).resolve().parents[2]
    commit = _git(root, "rev-parse", "HEAD")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "command": sys.argv,
        "git_commit": commit,
        "git_dirty": bool(_git(root, "status", "--porcelain")) if commit else None,
        "code_version": CODE_VERSION,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": numpy.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "host": socket.gethostname(),
    }


def processor() -> str:
    """The processor's name."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(": ")[1] for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


def _git(root: Path, *command: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
