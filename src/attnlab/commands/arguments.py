"""key=value arguments of a command, typed by the signature of its main function."""

import inspect
import sys
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from attnlab.config.compose import load
from attnlab.config.messages import nearest
from attnlab.config.schema import Config
from attnlab.errors import BadInput
from attnlab.runs.log import to_stderr
from attnlab.runtime.exits import exit_on_failure

ALLOWED = {bool: "yes or no", int: "a whole number", float: "a number"}
# How a value is read where its type alone would not do: bool("no") is true.
KINDS = {bool: {"yes": True, "true": True, "no": False, "false": False}.__getitem__}


@dataclass
class RunArgument:
    """A run folder named on the command line, by `key`."""

    path: Path
    key: str

    def config(self, device: str) -> Config:
        """The run's configuration, on another device if asked for."""
        cfg = load(self.path, self.key)
        if device not in ("same", "auto", "cpu", "cuda"):
            raise BadInput(f"device={device}: must be same, auto, cpu or cuda")
        if device == "same":
            return cfg
        return cfg.model_copy(
            update={"runtime": cfg.runtime.model_copy(update={"device": device})}
        )


def main_with(main: Callable) -> None:
    """Call `main` with the command line's key=value pairs, or with its words if it takes *words;
    a failure ends the process with its exit code and one line.
    """
    to_stderr()
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(sys.modules[main.__module__].__doc__ + "\n" + _usage(main))
        return
    with exit_on_failure():
        if any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(main).parameters.values()):
            main(*sys.argv[1:])  # has a language of its own: overrides, experiments
        else:
            main(**parse(main, sys.argv[1:]))


def parse(main: Callable, words: list[str]) -> dict:
    """key=value words as keyword arguments; a word without "=" is the first one's value. Errors:
    `BadInput` naming the key and what is allowed.
    """
    parameters = inspect.signature(main).parameters
    first = next(iter(parameters))
    given = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals and first not in given:
            key, value = first, word
        elif not equals:
            raise BadInput(
                f"{word}: {first}={given[first]} is there already, and other arguments are "
                f"key=value; {_usage(main)}"
            )
        elif key not in parameters:
            raise BadInput(
                f"{word}: unknown argument{nearest(key, list(parameters))}; {_usage(main)}"
            )
        kind = _kind(parameters[key])
        try:
            given[key] = (
                RunArgument(Path(value), key)
                if kind is RunArgument
                else KINDS.get(kind, kind)(value)
            )
        except (ValueError, KeyError):
            raise BadInput(f"{word}: must be {ALLOWED[kind]}") from None
    for key, parameter in parameters.items():
        if key not in given and parameter.default is parameter.empty:
            raise BadInput(f"{key}=: missing; {_usage(main)}")
    return given


def _kind(parameter: inspect.Parameter) -> type:
    """The type of a value: T where the annotation is T or `T | None`."""
    return (*typing.get_args(parameter.annotation), parameter.annotation)[0]


def _usage(main: Callable) -> str:
    parts = []
    for key, parameter in inspect.signature(main).parameters.items():
        default = parameter.default
        if isinstance(default, bool):
            default = "yes" if default else "no"
        word = f"{key}=<{key}>" if default in (None, parameter.empty) else f"{key}={default}"
        parts.append(word if default is parameter.empty else f"[{word}]")
    return "arguments: " + " ".join(parts)
