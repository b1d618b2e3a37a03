"""The content of a run's env.json: code, versions, machine and command."""

import contextlib
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnlab import __version__
from attnlab.config.compose import CHECKOUT
from attnlab.config.schema import CODE_VERSION


def environment(device) -> dict[str, Any]:
    """The content of env.json: code, versions, machine and command."""
    import numpy
    import torch

    commit = git("rev-parse", "HEAD")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "command": sys.argv,
        "git_commit": commit,
        "git_dirty": bool(git("status", "--porcelain")) if commit else None,
        "attnlab": __version__,
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


def git(*command: str) -> str | None:
    """What git prints of this checkout, without blanks around it; None where it fails, is not
    there, or this is an installed package, which may lie in a repository of something else.
    """
    if CHECKOUT is None:
        return None
    try:
        done = subprocess.run(
            ["git", "-C", str(CHECKOUT), *command], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
