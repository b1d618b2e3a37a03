"""Runs without their folders: one file `runs.jsonl` for an experiment, a line for each run.

A line is strict JSON: `run` (the folder's path below the experiment), `config`, `env` and `result`
(config.yaml, env.json, result.json), `curve` (rows of metrics.jsonl) and `failed` (failed.txt, of
a run that has one). What is not a finite number is null.
"""

import json
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from attnlab.errors import BadInput
from attnlab.runs.files import write_atomic

NAME = "runs.jsonl"
POINTS = 50  # of a curve: evaluations, and as many rows of training between them
ABSOLUTE = re.compile(r"(^|=)(/[^,]*)")  # a path, alone or as the value of an override
EVALUATED = ("val/", "test/", "attention/", "representation/", "gradient/")
# Keys of result.json that say how fast a run was.
SPEEDS = ("_per_s", "step_ms_median", "wall_s", "mfu")

WRITER = "it must be a file that attnlab collect wrote"

Row = dict[str, Any]


def records(file: Path) -> Iterator[Row]:
    """The runs of a file. Errors: `BadInput` naming the first line that is not a run."""
    try:
        lines = file.read_text().splitlines()
    except UnicodeError as error:
        raise BadInput(f"{file}: is not text ({error}); {WRITER}") from None
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise BadInput(f"{file}: line {number} is not JSON ({error}); {WRITER}") from None
        if not isinstance(record, dict) or not isinstance(record.get("run"), str):
            raise BadInput(f"{file}: line {number} is not a run; {WRITER}")
        yield record


def write(file: Path, found: dict[str, Row]) -> None:
    """Write runs by name, in the order of their names, replacing the file."""
    lines = (_line({"run": name, **found[name]}) for name in sorted(found))
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(file, "".join(f"{line}\n" for line in lines))


def restore(file: Path, root: Path) -> tuple[int, int]:
    """Make the folders of a file's runs again below `root`. A folder that is there is left as it
    is. Returns how many were made, and how many were there.

    Errors: `BadInput` for a line that is not a run, or one whose folder would lie outside of
    `root`; of those before it, the folders are made.
    """
    made = there = 0
    for record in records(file):
        folder = root / record["run"]
        if not folder.resolve().is_relative_to(root.resolve()):
            raise BadInput(f"{file}: run {record['run']}: lies outside of {root}")
        if (folder / "config.yaml").exists():
            there += 1
            continue
        try:
            files = _files(record)
        except (KeyError, TypeError) as error:
            raise BadInput(f"{file}: run {record['run']} is not whole: {error!r}") from None
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_atomic(folder / name, content)
        made += 1
    return made, there


def _files(record: Row) -> dict[str, str]:
    """The files of a run folder that a line was made from; the one that makes it a run is last."""
    files = {
        "env.json": json.dumps(record["env"], indent=1) + "\n",
        "metrics.jsonl": "".join(json.dumps(row) + "\n" for row in record["curve"]),
        "result.json": json.dumps(record["result"], indent=1) + "\n",
        "failed.txt": record.get("failed", ""),
        "config.yaml": yaml.safe_dump(record["config"], sort_keys=False),
    }
    return {name: content for name, content in files.items() if content not in ("", "{}\n")}


def _line(record: Row) -> str:
    return json.dumps(_strict(record), allow_nan=False, separators=(",", ":"))


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _strict(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_strict(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def without_speeds(result: Row) -> Row:
    """result.json without what other work on the same machine has changed."""
    return {key: value for key, value in result.items() if not key.endswith(SPEEDS)}


def portable(value: Any) -> Any:
    """A configuration or a command with absolute paths written relative to the working folder, as
    the folders of one machine mean nothing elsewhere.
    """
    if isinstance(value, dict):
        return {key: portable(each) for key, each in value.items()}
    if isinstance(value, list):
        return [portable(each) for each in value]
    if isinstance(value, str):
        return ABSOLUTE.sub(lambda found: found[1] + os.path.relpath(found[2]), value)
    return value


def thinned(rows: list[Row], points: int = POINTS) -> list[Row]:
    """About so many rows of training and as many evaluations, evenly, each kind with its first and
    its last row; every key has its first and its last value.
    """
    evaluated = [i for i, row in enumerate(rows) if any(k.startswith(EVALUATED) for k in row)]
    trained = [i for i in range(len(rows)) if i not in set(evaluated)]
    kept = {*evenly(evaluated, points), *evenly(trained, points)}
    keys = {key for row in rows for key in row}
    for key in keys:
        places = [i for i in evaluated if key in rows[i]]
        kept.update(places[:1] + places[-1:])
    return [rows[i] for i in sorted(kept)]


def evenly(values: list, most: int) -> list:
    """At most so many of the values, evenly spaced, with the first and the last."""
    if len(values) <= most:
        return values
    last = len(values) - 1
    return [values[round(i * last / (most - 1))] for i in range(most)]
