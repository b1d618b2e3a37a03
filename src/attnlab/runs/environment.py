"""The content of a run's env.json: code, versions, machine and command."""

import contextlib
import functools
import hashlib
import json
import os
import platform
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from attnlab import __version__
from attnlab.config.compose import CHECKOUT, PACKAGE
from attnlab.config.schema import CODE_VERSION, Runtime

# What computes a run's numbers, in the package.
COMPUTES = (
    *("functional.py", "run.py", "config/symbols.py", "config/mechanisms.py"),
    *("runtime/seeding.py", "runtime/distributed.py", "runtime/device.py"),
    *("data/*.py", "kernels/**/*.*", "models/**/*.py", "training/*.py"),
)


def environment(device, runtime: Runtime) -> dict[str, Any]:
    """The content of env.json: code, versions, machine and command."""
    import numpy
    import torch

    from attnlab.runtime.distributed import world_size

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "command": sys.argv,
        "cwd": os.getcwd(),
        "git_commit": commit,
        "git_dirty": None if changes is None else bool(changes),
        "attnlab": __version__,
        "code_version": CODE_VERSION,
        "source": source(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": version("torchvision"),
        "numpy": numpy.__version__,
        "device": device.type,
        "device_name": name,
        "threads": torch.get_num_threads(),
        "compile": runtime.compile,
        "processes": world_size(),
        "host": socket.gethostname(),
    }


def stored_environment(path: Path) -> dict[str, Any]:
    """The run's env.json, or an empty dict."""
    try:
        found = json.loads((path / "env.json").read_text())
        return found if all(isinstance(e, dict) for e in (found, *found.get("before", []))) else {}
    except (OSError, ValueError, AttributeError, TypeError):  # lost or damaged
        return {}


@functools.cache
def source() -> str:
    """Eight hex digits over the code that computes a run's numbers. They change with every edit
    there, while CODE_VERSION is raised by hand.
    """
    files = {file for pattern in COMPUTES for file in PACKAGE.glob(pattern)}
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.suffix != ".pyc":
            digest.update(file.relative_to(PACKAGE).as_posix().encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:8]


def other_source(path: Path) -> str:
    """What to say if a run was made by other code than this; empty if it was not."""
    then, now = stored_environment(path).get("source"), source()
    if then in (None, now):
        return ""
    return (
        f"{path}: was made by other code (source {then} in its env.json, now {now}). If the "
        "change affects its numbers, move the folder away, or raise CODE_VERSION for all runs"
    )


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
