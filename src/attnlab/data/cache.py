"""Prepared arrays on disk: written once, whole or not at all, verified when opened."""

import contextlib
import hashlib
import json
import logging
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from attnlab.errors import BadInput
from attnlab.runtime.leftovers import remove_old

log = logging.getLogger(__name__)


LONGEST = 24 * 3600  # seconds that preparing data may take

# Notes on the content that no number depends on, such as the names of classes.
NOTES = "notes.json"


def cached(root: Path, name: str, key: dict[str, Any], build: Callable[[Path], None]) -> Path:
    """The folder of what `build` writes, built only if no folder for `key` is there yet.

    The code of this package counts as part of the key: other code may prepare other data.
    build(folder) writes files into a folder that gets its name by one rename, so two runs may
    prepare the same data at once, and a killed one leaves nothing under the name.
    """
    code = b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))
    key = {"code": digest(code), **key}
    folder = root / f"{name}-{digest(json.dumps(key, sort_keys=True).encode())[:16]}"
    if folder.is_dir() and not _whole(folder):
        log.warning("%s: damaged on disk; preparing it again", folder)
        aside = root / f".damaged-{secrets.token_hex(4)}"
        with contextlib.suppress(OSError):  # another run may have been faster
            if not _whole(folder):
                os.rename(folder, aside)
        shutil.rmtree(aside, ignore_errors=True)
    if not folder.is_dir():
        log.info("preparing %s data in %s", name, folder)
        try:
            _publish(folder, key, build)
        except OSError as error:
            read = error.filename and Path(os.fsdecode(error.filename)).absolute()
            if read and not read.is_relative_to(root.absolute()):
                raise BadInput(f"{read}: {error.strerror}") from None  # of the data itself
            raise BadInput(f"runtime.cache={root}: cannot be written: {error}") from None
    return folder


def _publish(folder: Path, key: dict, build: Callable[[Path], None]) -> None:
    """Write everything beside `folder`, then give it its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for killed in (".part-*", ".damaged-*"):
        remove_old(folder.parent, killed, LONGEST)
    made = Path(tempfile.mkdtemp(prefix=".part-", dir=folder.parent))
    try:
        build(made)
        sums = {p.name: file_digest(p) for p in sorted(made.iterdir())}
        (made / "manifest.json").write_text(json.dumps({"key": key, "sha256": sums}, indent=1))
        made.chmod(0o755)  # of mkdtemp's, only its owner could read a shared cache
        os.rename(made, folder)
    except OSError:
        if not folder.is_dir():  # otherwise another run was faster, with the same content
            raise
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _whole(folder: Path) -> bool:
    try:
        sums = json.loads((folder / "manifest.json").read_text())["sha256"]
        return all(file_digest(folder / name) == value for name, value in sums.items())
    except (OSError, ValueError, KeyError):
        return False


def fingerprint(folder: Path) -> str:
    """Sixteen hex digits that change if and only if the cached content does, without notes."""
    sums = json.loads((folder / "manifest.json").read_text())["sha256"]
    sums.pop(NOTES, None)
    return digest(json.dumps(sums, sort_keys=True).encode())[:16]


def array(folder: Path, name: str) -> np.ndarray:
    """A cached array, memory-mapped and read-only."""
    return np.load(folder / f"{name}.npy", mmap_mode="r")


@contextlib.contextmanager
def growing_array(path: Path, dtype: type) -> Iterator[Callable[[np.ndarray], None]]:
    """A function that appends values (n,) to a .npy file, so that the array need not fit in
    memory. In the end the file is the same as that of `np.save` of the whole array.
    """
    length = 0
    with open(path, "wb") as file:

        def write_header() -> None:
            described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(file, described)

        def append(values: np.ndarray) -> None:
            nonlocal length
            length += len(values)
            file.write(values.astype(dtype, copy=False).tobytes())

        write_header()
        yield append
        file.seek(0)
        write_header()  # numpy leaves room for a length of 21 digits


def digest(data: bytes) -> str:
    """sha256 in hex."""
    return hashlib.sha256(data).hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file's content in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
