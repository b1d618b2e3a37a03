"""All runs as a table for pandas: one row a run."""

import json
from pathlib import Path
from typing import Any

import pandas

from attnlab.errors import BadInput
from attnlab.report.collect import Run
from attnlab.report.naming import differing
from attnlab.runs.files import write_atomic

FORMATS = (".csv", ".parquet")
ALWAYS = ("data.name", "model.name", "seed")
# Of result.json, what the configuration says as well.
SAID = ("status", "model", "data", "seed", "scale", "protocol")


def frame(runs: list[Run]) -> pandas.DataFrame:
    """One row a run: its folder and status, why it is not finished, every configuration key that
    is not the same in all runs, and result.json. Lists are JSON text; what a run lacks is missing.
    """
    keys = dict.fromkeys((*ALWAYS, *differing([run.config for run in runs if run.config])))
    rows = [
        {"folder": str(run.folder), "status": run.status, "cause": run.cause or None}
        | {key: run.config.get(key) for key in keys}
        | {key: value for key, value in run.result.items() if key not in SAID}
        for run in runs
    ]
    table = pandas.DataFrame([{k: _plain(v) for k, v in row.items()} for row in rows])
    table = table.convert_dtypes()
    mixed = table.select_dtypes("object").columns  # parquet has one type a column
    table[mixed] = table[mixed].map(_text, na_action="ignore").astype("string")
    return table


def write(runs: list[Run], file: Path) -> None:
    """Write `frame` as .csv or .parquet, whole or not at all. Errors: `BadInput`."""
    if file.suffix not in FORMATS:
        raise BadInput(f"out={file}: must end in {' or '.join(FORMATS)}")
    table = frame(runs)
    csv = file.suffix == ".csv"
    content = table.to_csv(index=False) if csv else table.to_parquet(index=False)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, content)
    except OSError as error:
        raise BadInput(f"out={file}: cannot be written: {error}") from None


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
