"""Checkpoints are complete or absent: each is written beside, verified and renamed. Damage is
always detected.

A file is what torch.save writes, an ordinary zip archive, with its sha256 as the archive's
comment: `torch.load` reads it anywhere, and `load` here refuses it if a single bit has changed.
"""

import errno
import hashlib
import io
import logging
import os
import pickle
import struct
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnlab.errors import BadInput
from attnlab.runs.folder import RunFolder

log = logging.getLogger(__name__)

HEX = 64


class Damaged(ValueError):
    """The content of a file is not what was written."""


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

    Errors: `Damaged` with what is wrong, also if the disk cannot read it any more; `BadInput` if
    it would execute something.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise Damaged(f"{path} cannot be read ({error.strerror})") from None
    if len(data) < HEX + 2:
        raise Damaged(f"{path} has only {len(data)} bytes")
    archive = data[: -HEX - 2] + b"\0\0"
    length = data[-HEX - 2 : -HEX] == struct.pack("<H", HEX)
    if not length or hashlib.sha256(archive).hexdigest().encode() != data[-HEX:]:
        raise Damaged(f"{path} is not what was saved (sha256 differs)")
    try:
        return torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:  # whole, but not written by `save`
        raise BadInput(f"{path} holds more than weights and plain values: refused") from None


def save(folder: RunFolder, state: dict[str, Any], keep: int) -> int:
    """Write step_<step>.pt, which is read back before it gets that name; only then are all but the
    newest `keep` removed. Returns its size in bytes.
    """
    if not folder.may_write():
        return 0
    content = dump(state)
    folder.write(f"checkpoints/step_{state['step']:09}.pt", content, check=load)
    for path in newest_first(folder.checkpoints)[keep:]:
        path.unlink()
    return len(content)


def save_best(folder: RunFolder, state: dict[str, Any]) -> None:
    """Write best.pt, which is read back before it gets that name."""
    if folder.may_write():
        folder.write("checkpoints/best.pt", dump(state), check=load)


def newest_first(folder: Path) -> list[Path]:
    """A run's checkpoints by step, the newest first, without best.pt."""
    return sorted(folder.glob("step_*.pt"), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step in the name of a checkpoint that `newest_first` lists."""
    return int(path.stem.removeprefix("step_"))


def load_best(folder: Path) -> dict[str, Any]:
    """The checkpoint of the best evaluation. Errors: `BadInput` if it is missing or damaged."""
    path = folder / "best.pt"
    if not path.is_file():
        raise BadInput(
            f"{path}: not found; the run was never evaluated, or its checkpoints were not kept"
        )
    try:
        return load(path)
    except Damaged as error:
        raise BadInput(str(error)) from None


def load_weights(model: nn.Module, state: dict[str, Any], folder: Path) -> None:
    """Put a checkpoint's weights into the model that the run in `folder` was configured with.

    Errors: `BadInput` if they do not fit, because config.yaml or the file was changed.
    """
    try:
        model.load_state_dict(state["model"])
    except RuntimeError as error:  # a heading, then a line for every tensor
        first = str(error).splitlines()[1].strip()
        raise BadInput(
            f"run folder {folder}: its checkpoint does not fit its config.yaml: {first}"
        ) from None


def load_newest(folder: Path) -> dict[str, Any] | None:
    """The newest intact checkpoint, or None if there never was one.

    A damaged file is named and set aside. Errors: `BadInput` if all files are damaged.
    """
    for path in newest_first(folder):
        try:
            return load(path)
        except Damaged as error:
            log.warning("%s; set aside as %s.damaged", error, path.name)
            os.replace(path, path.with_name(f"{path.name}.damaged"))
    if damaged := sorted(path.name for path in folder.glob("*.damaged")):
        raise BadInput(
            f"{folder}: no whole checkpoint is left, only {', '.join(damaged)}; "
            "move the run folder away to start from step 0"
        )
    return None
