"""Checkpoints that are whole or not there: written beside, verified, renamed; damage is always
noticed.

A file is what torch.save writes, an ordinary zip archive, with its sha256 as the archive's
comment: `torch.load` reads it anywhere, and `load` here refuses it if a single bit has changed.
"""

import hashlib
import io
import logging
import os
import struct
from pathlib import Path
from typing import Any

import torch

from attnlab.errors import BadInput
from attnlab.folder import write_atomic

log = logging.getLogger(__name__)

HEX = 64


class Damaged(ValueError):
    """The file is not what was written."""


def dump(state: dict[str, Any]) -> bytes:
    """A checkpoint file's content."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    data = buffer.getvalue()
    # the last two bytes of a zip archive are the length of its comment, here still 0
    digest = hashlib.sha256(data).hexdigest().encode()
    return data[:-2] + struct.pack("<H", HEX) + digest


def load(path: Path) -> dict[str, Any]:
    """Read and verify one checkpoint; tensors arrive on the CPU, nothing in it is executed.

    Errors: `Damaged` with what is wrong.
    """
    data = path.read_bytes()
    if len(data) < HEX + 2:
        raise Damaged(f"{path} has only {len(data)} bytes")
    archive = data[: -HEX - 2] + b"\0\0"
    length = data[-HEX - 2 : -HEX] == struct.pack("<H", HEX)
    if not length or hashlib.sha256(archive).hexdigest().encode() != data[-HEX:]:
        raise Damaged(f"{path} is not what was saved (sha256 differs)")
    return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)


def save_last(folder: Path, state: dict[str, Any]) -> None:
    """Write last.pt; the one before it stays as previous.pt, and goes only when this one is
    safe.
    """
    new = folder / "next.pt"
    write_atomic(new, dump(state))
    load(new)
    last = folder / "last.pt"
    if last.is_file():
        os.replace(last, folder / "previous.pt")
    os.replace(new, last)


def load_best(folder: Path) -> dict[str, Any]:
    """The checkpoint of the best evaluation. Errors: `BadInput` if it is missing or damaged."""
    path = folder / "best.pt"
    if not path.is_file():
        raise BadInput(f"{path}: not there; the run was never evaluated")
    try:
        return load(path)
    except Damaged as error:
        raise BadInput(str(error)) from None


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest whole checkpoint by step, or None if there never was one.

    A damaged file is named and set aside. Errors: `BadInput` if there are files but none is whole.
    """
    found, damaged = [], []
    for path in (folder / f"{name}.pt" for name in ("next", "last", "previous")):
        if not path.is_file():
            continue
        try:
            found.append(load(path))
        except Damaged as error:
            log.warning("%s; set aside as %s.damaged", error, path.name)
            os.replace(path, path.with_name(f"{path.name}.damaged"))
            damaged.append(path.name)
    if damaged and not found:
        raise BadInput(
            f"{folder}: no whole checkpoint is left ({', '.join(damaged)} damaged); "
            "move the run folder away to start from step 0"
        )
    return max(found, key=lambda state: state["step"], default=None)
