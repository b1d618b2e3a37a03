"""The content of a run's files, read and checked; a ValueError says what of it is damaged."""

import json
import re
from pathlib import Path
from types import UnionType
from typing import Any

import yaml

from attnlab.config.compose import flatten
from attnlab.config.measures import OF_KIND
from attnlab.config.schema import READS, added_keys

# What a report asks of every configuration, whatever version of the schema wrote it: the kind of
# a value, or the values it may have.
NAMES = ("scale", "protocol", "model.name", "model.mechanism", "data.name", "trainer.select_on")
SIZES = ("arch.layers", "arch.heads", "arch.width", "trainer.batch_size")
NEEDED: dict[str, type | UnionType | set[str]] = {
    "seed": int,
    "data.kind": set(OF_KIND),
    "arch.body": set(READS),
    **dict.fromkeys(NAMES, str),
    **dict.fromkeys(SIZES, int),
    **dict.fromkeys(("trainer.max_steps", "trainer.epochs"), int | None),
    "trainer.lr": int | float,
}
# Keys of the metrics.jsonl rows that a report shows; the last is in every row with diagnostics.
SHOWN = ('"val/', '"test/', "/dead_scorer", "/saturated", '"representation/')
# Keys of result.json and metrics.jsonl that are numbers wherever they are anything.
NUMBERS = re.compile(
    r"((val|test|best|attention|representation|gradient)/.*|step|steps|params.*|test_samples"
    r"|.*_per_s|.*_mib|step_ms_median)"
)
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where it is built


def read_yaml(file: Path) -> Any:
    """A YAML file's content. Errors: ValueError, OSError."""
    try:
        return yaml.load(file.read_text(), Loader=LOADER)
    except yaml.YAMLError as error:
        raise ValueError(f"config.yaml: {error}") from None


def configuration(content: Any) -> dict[str, Any]:
    """A run's configuration with dotted keys. Errors: ValueError if it is none."""
    config = flatten(content) if isinstance(content, dict) else {}
    config = (added_keys(config.get) | config) if config else {}
    if missing := sorted(NEEDED.keys() - config.keys()):
        raise ValueError(f"config.yaml is not the configuration of a run: no {missing[0]}")
    for key, allowed in NEEDED.items():
        value = config[key]
        fits = value in allowed if isinstance(allowed, set) else isinstance(value, allowed)
        if not fits or isinstance(value, bool) or (key in SIZES and value < 1):
            raise ValueError(f"config.yaml is not the configuration of a run: {key}={value!r}")
    return config


def environments(env: Any) -> dict[str, Any]:
    """A run's env.json. Errors: ValueError if it is none."""
    before = env.get("before", []) if isinstance(env, dict) else None
    if not isinstance(before, list) or not all(isinstance(start, dict) for start in before):
        raise ValueError("env.json: not the environment of a run")
    return env


def numbers(values: dict[str, Any], where: str) -> dict[str, Any]:
    """`values` without those that are null. Errors: ValueError if what must be a number is not."""
    known = {key: value for key, value in values.items() if value is not None}
    for key, value in known.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number and NUMBERS.fullmatch(key):
            raise ValueError(f"{where}: {key}={value!r} is not a number")
    return known


def read_object(file: Path) -> dict[str, Any]:
    """A JSON file's content, empty without the file. Errors: ValueError naming the file."""
    try:
        content = json.loads(file.read_text()) if file.is_file() else {}
    except ValueError as error:
        raise ValueError(f"{file.name}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file.name}: not a JSON object")
    return content


def read_rows(file: Path) -> tuple[list[dict[str, Any]], int | None]:
    """The rows that a report shows, and the step of the last row of all.

    A long run has tens of thousands of rows of training loss: only the others are parsed. A torn
    row is left out, as the run itself does when it continues.
    """
    lines = lines_of(file)
    shown = (row_of(line) for line in lines if any(key in line for key in SHOWN))
    last = next((row["step"] for line in reversed(lines) if (row := row_of(line))), None)
    return [row for row in shown if row], last


def lines_of(file: Path) -> list[str]:
    """Of a text file; none without the file."""
    return file.read_text(errors="replace").splitlines() if file.is_file() else []


def row_of(line: str) -> dict[str, Any] | None:
    """A line of metrics.jsonl; None if it is torn, or no row."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None
