"""A run's folder: who may write to it, what belongs in it, and that it only ever holds one
configuration.
"""

import contextlib
import fcntl
import json
import os
import platform
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from attnlab.config import ADDED, CODE_VERSION, UNHASHED, Config
from attnlab.errors import BadInput, FolderInUse


class RunFolder:
    """One run's folder, locked for this process while open.

    Errors: `BadInput` if it cannot be written or holds another configuration, `FolderInUse` if
    another process has it open.
    """

    def __init__(self, path: Path, cfg: Config):
        self.path, self.cfg = path, cfg
        self.checkpoints = path / "checkpoints"
        self._lock = None

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run, else None."""
        file = self.path / "result.json"
        if not file.is_file():
            return None
        result = json.loads(file.read_text())
        return result if result["status"] == "finished" else None

    def check(self) -> None:
        """Refuse, before anything is prepared, a folder that this run cannot use."""
        around = (self.path, *self.path.absolute().parents)
        existing = next(p for p in around if os.path.exists(p))
        if not existing.is_dir() or not os.access(existing, os.W_OK):
            raise BadInput(f"run folder {self.path}: {existing} is not a writable folder")
        file = self.path / "config.yaml"
        if not file.is_file():
            return
        theirs = ADDED | flatten(yaml.safe_load(file.read_text()))
        ours = flatten(self.cfg.model_dump())
        changed = [
            f"{key}: {theirs.get(key)} in the run folder {self.path}, {ours.get(key)} now"
            for key in sorted(theirs.keys() | ours.keys())
            if key.split(".")[0] not in UNHASHED and theirs.get(key) != ours.get(key)
        ]
        if changed:
            raise BadInput("\n".join(changed))

    def __enter__(self) -> "RunFolder":
        try:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / ".lock", "a+")
        except OSError as error:
            raise BadInput(f"run folder {self.path}: cannot be written: {error}") from None
        # a loader's worker may outlive a killed run for seconds; it must not hold the lock
        os.register_at_fork(after_in_child=self._lock.close)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            holder = self._lock.read().strip() or "another process"
            self._lock.close()
            raise FolderInUse(f"run folder {self.path}: in use by {holder}") from None
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()
        self.check()  # again: another run may have made the folder meanwhile
        config = yaml.safe_dump(self.cfg.model_dump(), sort_keys=False)
        write_atomic(self.path / "config.yaml", config)
        return self

    def __exit__(self, *exception) -> None:
        self._lock.close()

    def discard_if_empty(self) -> None:
        """Remove the folder if nothing is in it: Hydra makes it before we can look."""
        with contextlib.suppress(OSError):
            self.path.rmdir()

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        """Write a JSON file whole or not at all."""
        write_atomic(self.path / name, json.dumps(content, indent=1) + "\n")


class Ledger:
    """A file of JSON rows, each with its step: metrics.jsonl, timing.jsonl."""

    def __init__(self, path: Path):
        self.path = path

    def rows(self) -> list[dict[str, Any]]:
        """All whole rows; a torn last line (a kill in the middle of writing) is left out."""
        if not self.path.is_file():
            return []
        lines = self.path.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def rewind(self, step: int) -> None:
        """Drop what was written after `step`: the resumed run writes it again."""
        kept = [row for row in self.rows() if row["step"] <= step]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in kept))

    def append(self, row: dict[str, Any], sync: bool = False) -> None:
        """Add a row; with sync it is on disk when this returns."""
        with open(self.path, "a") as file:
            file.write(json.dumps(row) + "\n")
            if sync:
                file.flush()
                os.fsync(file.fileno())


def write_atomic(path: Path, content: str | bytes) -> None:
    """Replace a file so that, whatever happens, either the old or the new content is there."""
    part = path.with_name(f".{path.name}.part")
    try:
        with open(part, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
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
    import torchvision

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
        "torchvision": torchvision.__version__,
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
