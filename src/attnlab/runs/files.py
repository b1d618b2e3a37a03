"""Files that are written completely or not at all, and files of JSON rows (ledgers)."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attnlab.errors import BadInput

Check = Callable[[Path], object]  # reads a file back, and raises if it is damaged


def read_json(file: Path) -> dict[str, Any]:
    """What a run has written there; empty if it has not. Errors: `BadInput` if it is damaged."""
    try:
        found = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise BadInput(f"{file}: is damaged; delete it and run the same command again")
    return found


class Ledger:
    """A file of JSON rows. Those of a run, metrics.jsonl and timing.jsonl, each have a step."""

    def __init__(self, path: Path, may_write: Callable[[], bool] = lambda: True):
        self.path, self.may_write = path, may_write

    def rows(self) -> list[dict[str, Any]]:
        """All complete rows. A torn last line, left by a kill during writing, is left out. Errors:
        `BadInput` for another line that is damaged.
        """
        if not self.path.is_file():
            return []
        rows = []
        text = self.path.read_text(errors="replace")
        for number, line in enumerate(text.splitlines(keepends=True), 1):
            if line.endswith("\n"):
                try:
                    rows.append(dict(json.loads(line)))
                except (ValueError, TypeError):
                    said = "is damaged; repair it, or move the run folder away"
                    raise BadInput(f"{self.path}, line {number}: {said}") from None
        return rows

    def mend(self) -> None:
        """Remove a last line that a kill has cut, so that the next row stands on its own."""
        if self.path.is_file() and not self.path.read_bytes().endswith(b"\n"):
            whole = self.path.read_text().splitlines(keepends=True)[:-1]
            write_atomic(self.path, "".join(whole))

    def rewind(self, step: int, last: int = 0) -> None:
        """Remove the rows after `step`: the resumed run writes them again. Errors: `BadInput` if
        none is as late as `last`, because rows were lost.
        """
        if not self.may_write():
            return
        rows = self.rows()
        if not all(isinstance(row.get("step"), int) for row in rows):
            raise BadInput(f"{self.path}: has a row without its step; move the run folder away")
        kept = [row for row in rows if row["step"] <= step]
        if last and (not kept or kept[-1]["step"] < last):
            raise BadInput(
                f"{self.path}: rows up to step {last} are lost, and the run would continue behind "
                "them; put them back, or move the run folder away"
            )
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

    check: reads the new file back before it replaces the old one, and raises if the content is
    not what it should be.
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
    except BaseException as error:
        part.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def slug(text: str) -> str:
    """A text as part of a file name or an address."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")
