"""How the package starts itself in a process of its own."""

import sys


def python(module: str) -> list[str]:
    """The command that runs a module. -P: none that lies in the working directory."""
    return [sys.executable, "-P", "-m", module]
