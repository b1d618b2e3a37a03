"""What a killed process leaves in a folder that many processes share."""

import contextlib
import shutil
import time
from pathlib import Path


def remove_old(folder: Path, pattern: str, seconds: float) -> None:
    """Remove the folders of this pattern in which nothing was made for so long."""
    for left in folder.glob(pattern):
        with contextlib.suppress(OSError):  # another process removes it at the same time
            if time.time() - left.stat().st_mtime > seconds:
                shutil.rmtree(left, ignore_errors=True)
