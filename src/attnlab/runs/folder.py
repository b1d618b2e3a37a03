"""A run's folder: which process may write to it, which files it holds, and that all of them
belong to one configuration.
"""

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import yaml

from attnlab.config.compose import flatten
from attnlab.config.schema import PLACE, Config, added_keys, can_change_result
from attnlab.config.types import lies_in
from attnlab.errors import BadInput
from attnlab.runs.environment import stored_environment
from attnlab.runs.files import Check, Ledger, read_json, write_atomic
from attnlab.runs.lock import Lock


class RunFolder:
    """One run's folder, locked for this process while open.

    writes: False for all processes of a run except the main one: for them nothing here locks or
    writes. Errors: `BadInput` if the folder cannot be written or holds another configuration,
    `FolderInUse` if another process has it open.
    """

    def __init__(self, path: Path, cfg: Config, writes: bool = True):
        self.path, self.cfg, self.writes = path, cfg, writes
        self.checkpoints = path / "checkpoints"
        self._lock, self._open = Lock(path), contextlib.ExitStack()

    @property
    def result(self) -> dict[str, Any] | None:
        """result.json of a finished run, else None. Errors: `BadInput` if it is damaged."""
        result = read_json(self.path / "result.json")
        return result if result.get("status") == "finished" else None

    @property
    def moved(self) -> bool:
        """Whether data.path was another one when the run was started. If so, the caller must check
        that it is the same data.
        """
        stored = self._stored()
        if stored is None:
            return False
        now = os.getcwd()
        then = stored_environment(self.path).get("cwd", now)
        ours = flatten(self.cfg.model_dump()).get(PLACE)
        return _place(then, stored.get(PLACE)) != _place(now, ours)

    def check_usable(self) -> None:
        """Refuse a folder that this run cannot use, before anything is prepared. The folder of a
        finished run is only read.
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
        elif any(self.checkpoints.glob("*.pt")):
            raise BadInput(
                f"run folder {self.path}: has checkpoints but no config.yaml to say of "
                "what; restore it, or move the folder away"
            )
        if self.result is None:
            if lies_in(self.path, getattr(self.cfg.data, "path", None)):
                raise BadInput(
                    f"run folder {self.path}: lies in data.path={self.cfg.data.path}, so that "
                    "what the run writes would be read as data; choose another folder"
                )
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
        keys = flatten(stored if isinstance(stored, dict) else {})
        return added_keys(keys.get) | keys

    def _check_writable(self) -> None:
        around = (self.path, *self.path.absolute().parents)
        existing = next(p for p in around if os.path.exists(p))
        try:
            # Not a folder: who walks the tree meanwhile would enter it, and find it gone.
            tempfile.NamedTemporaryFile(dir=existing).close()
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
                self.check_usable()  # again: another run may have made the folder meanwhile
                for place in (self.path, self.checkpoints):  # of a save that was killed
                    for part in place.glob(".*.part"):
                        part.unlink()
                if self._stored() is None:
                    self.write_config()
            except OSError as error:
                raise BadInput(f"run folder {self.path}: cannot be written: {error}") from None
            self._open = stack.pop_all()
        return self

    def write_config(self) -> None:
        """Write config.yaml: keys that cannot change the result may differ from the last start."""
        self.write("config.yaml", yaml.safe_dump(self.cfg.model_dump(), sort_keys=False))

    def __exit__(self, *exception) -> None:
        self._open.close()

    def may_write(self) -> bool:
        """False if others write. Errors: `FolderInUse` if another machine took the folder over."""
        if self.writes:
            self._lock.check_held()
        return self.writes

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


def _place(cwd: str, path: str | None) -> str:
    """Where the data of a run that was started in `cwd` lies: a folder, or an id of the hub."""
    folder = os.path.abspath(os.path.join(cwd, str(path)))
    return folder if os.path.exists(folder) else str(path)
