"""Prepared arrays on disk: written once, whole or not at all, verified when opened."""

import contextlib
import hashlib
import inspect
import json
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.errors import BadInput

log = logging.getLogger(__name__)


def cached(root: Path, name: str, key: dict[str, Any], build: Callable[[], dict]) -> Path:
    """The folder of what `build` returns, built only if no folder for `key` is there yet.

    The code of build's module counts as part of the key: other code may prepare other data.
    build() gives {file name: array (saved as .npy) or text}. The folder appears by one rename, so
    two runs may prepare the same data at once, and a killed one leaves nothing under the name.
    """
    code = inspect.getsource(sys.modules[build.__module__])
    key = {"code": digest(code.encode()), **key}
    folder = root / f"{name}-{digest(json.dumps(key, sort_keys=True).encode())[:16]}"
    if folder.is_dir() and not _whole(folder):
        log.warning("%s: damaged on disk; preparing it again", folder)
        aside = root / f".damaged-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):  # another run may have been faster
            os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    if not folder.is_dir():
        log.info("preparing %s data in %s", name, folder)
        content = build()
        try:
            _publish(folder, key, content)
        except OSError as error:
            raise BadInput(f"runtime.cache={root}: cannot be written: {error}") from None
    return folder


def _publish(folder: Path, key: dict, content: dict) -> None:
    """Write everything beside `folder`, then give it its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        _write(made, key, content)
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another run was faster, with the same content
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _write(folder: Path, key: dict, content: dict) -> None:
    for file, value in content.items():
        if isinstance(value, str):
            (folder / file).write_text(value)
        else:
            np.save(folder / file, value)
    sums = {p.name: file_digest(p) for p in sorted(folder.iterdir())}
    (folder / "manifest.json").write_text(json.dumps({"key": key, "sha256": sums}, indent=1))


def _whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
        return all(file_digest(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, KeyError):
        return False


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change if and only if the cached content does."""
    sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    return digest(json.dumps(sums, sort_keys=True).encode())[:16]


def array(folder: Path, name: str) -> np.ndarray:
    """A cached array, memory-mapped and read-only."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")


def digest(data: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
