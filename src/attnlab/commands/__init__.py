"""The program `attnlab`: one module here for each of its commands.

A command is a module with a function `main`: its parameters are the command's key=value arguments
(`attnlab.commands.arguments`), and its docstring is the help.
"""

import ast
import sys
from importlib import import_module
from pathlib import Path

from attnlab import __version__

COMMANDS = (
    *("train", "summary", "report", "evaluate", "generate", "translate", "show_attention"),
    *("export", "reproduce", "compare_arms", "match_time", "collect", "restore", "upload"),
    "benchmark",
)


def main() -> None:
    """attnlab <command> <arguments>."""
    name, *words = sys.argv[1:] or [""]
    if name in ("-h", "--help"):
        print(_help())
    elif not name:  # as in a script whose variable is empty
        print(_help(), file=sys.stderr)
        sys.exit(2)
    elif name == "--version":
        print(__version__)
    else:
        start(name.replace("-", "_"), words)


def start(name: str, words: list[str] | None = None) -> None:
    """Run one command with these words, or those of this process."""
    from attnlab.commands.arguments import main_with
    from attnlab.config.messages import nearest
    from attnlab.errors import BadInput
    from attnlab.runtime.exits import exit_on_failure

    with exit_on_failure():  # of Ctrl-C too, while something is imported or Hydra composes
        if name not in COMMANDS:
            near = nearest(name, list(COMMANDS))
            raise BadInput(f"{name}: unknown command{near}; allowed: {', '.join(COMMANDS)}")
        if words is not None:
            sys.argv = [f"attnlab {name}", *words]
        main = import_module(f"{__name__}.{name}").main
        if name == "train":  # Hydra reads its words, and has its own help
            main()
        else:
            main_with(main)


def _help() -> str:
    """Every command with the first line of its docstring, without importing any."""
    lines = ["attnlab <command> <key=value ...>", ""]
    for name in COMMANDS:
        tree = ast.parse(Path(__file__).with_name(f"{name}.py").read_text())
        first = ast.get_docstring(tree).splitlines()[0].split(":  ")[0].rstrip(".:")
        lines.append(f"  {name:16} {first}")
    return "\n".join([*lines, "", "attnlab <command> --help explains one."])
