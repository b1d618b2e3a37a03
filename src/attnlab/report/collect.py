"""Find the runs below a folder, read what they left there, and list them.

A run is a folder with a config.yaml, or a line of a `runs.jsonl` (`attnlab.report.archive`).
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnlab.config.measures import OF_KIND, Measure
from attnlab.config.schema import PLACE
from attnlab.errors import BadInput
from attnlab.report import archive, published
from attnlab.report.content import (
    SHOWN,
    configuration,
    environments,
    lines_of,
    numbers,
    read_object,
    read_rows,
    read_yaml,
    row_of,
)

# Part of a run or of its mirror: no runs below these (W&B keeps a config.yaml of its own).
INSIDE_A_RUN = {"checkpoints", "wandb", "tensorboard", "attention"}
STATUSES = ("finished", "unfinished", "interrupted", "failed", "unreadable")


@dataclass
class Run:
    """One run as it is on disk.

    folder: that of the run, which need not be there any more. place: the file or folder that it
    was read from. config: config.yaml with dotted keys, empty if it cannot be read. result:
    result.json. env: env.json. rows: of metrics.jsonl, those with an evaluation
    or what is known of layers. status: finished, failed, interrupted, unfinished
    (running, or killed) or unreadable. cause: why it is not finished or has no value, in one line.
    """

    folder: Path
    place: Path
    config: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    env: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    status: str = "unfinished"
    cause: str = ""

    def mark_unreadable(self, error: Exception) -> None:
        """List the run with what is wrong with it, and compare it with nothing."""
        kind = "" if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: "
        self.status, self.cause = "unreadable", _line(f"{kind}{error}")

    @property
    def starts(self) -> list[dict[str, Any]]:
        """The environments of all its starts that differ, the last one in the end."""
        return [*self.env.get("before", []), self.env]

    @property
    def measure(self) -> Measure:
        """What it is compared in."""
        return OF_KIND[self.config["data.kind"]][0]

    @property
    def value(self) -> float | None:
        """The test value of a finished run; None if that is not a number it can be."""
        # what cannot be read has no measure
        return self.tested(self.measure) if self.status == "finished" else None

    def tested(self, measure: Measure) -> float | None:
        """Likewise, in a measure that need not be its own."""
        return measure.of(self.result) if self.status == "finished" else None


def collect(root: Path) -> list[Run]:
    """Every run below `root`, in the order of their paths; of one that is there as a folder and in
    a file of runs, the folder. Errors: `BadInput` if there is none.
    """
    folders, archives = _found(root)
    archived = {run.folder: run for file in archives for run in _archived(file)}
    runs = (archived | {folder: read(folder) for folder in folders}).values()
    if not runs:
        raise BadInput(
            f"runs={root}: no run folder there (none has a config.yaml), nor a {archive.NAME}"
        )
    found = sorted(runs, key=lambda run: run.folder)
    _name_copies_alike(found)
    return found


def _name_copies_alike(runs: list[Run]) -> None:
    """One data.path for all local copies of a data set with the same content, so that runs on
    several machines, and their lines in a file of runs, are of one comparison. Data from the hub
    keeps its own: only that is compared with published numbers.
    """
    hub = {experiment.data[PLACE] for experiment in published.EXPERIMENTS.values()}
    local = [run for run in runs if run.config.get(PLACE) and run.config[PLACE] not in hub]
    first: dict[tuple[str, str], str] = {}
    alike: dict[tuple[str, str], set[str]] = {}  # name and place -> the places it is a copy of
    for run in local:
        if content := run.result.get("data_fingerprint"):
            name, place = run.config["data.name"], run.config[PLACE]
            known = first.setdefault((name, str(content)), place)
            alike.setdefault((name, place), set()).add(known)
    for run in local:
        name, place = run.config["data.name"], run.config[PLACE]
        content = run.result.get("data_fingerprint")
        # a run that has not finished does not say what it found there
        found = {first[name, str(content)]} if content else alike.get((name, place), set())
        if len(found) == 1:
            (run.config[PLACE],) = found


def _found(root: Path) -> tuple[list[Path], list[Path]]:
    """Run folders, and files of runs."""
    folders, archives = [], [root] if root.name == archive.NAME and root.is_file() else []

    def closed(error: OSError) -> None:
        """What cannot be read may be a run, which is then listed as unreadable."""
        if isinstance(error, PermissionError):
            folders.append(Path(error.filename))

    for folder, below, files in os.walk(root, onerror=closed):
        own = set()  # folders of a run
        if "config.yaml" in files:
            folders.append(Path(folder))
            own = INSIDE_A_RUN
        below[:] = [name for name in below if name not in own and not name.startswith(".")]
        if archive.NAME in files:
            archives.append(Path(folder, archive.NAME))
    return folders, archives


def read(folder: Path) -> Run:
    """One run; what is damaged makes it `unreadable` and stops nothing."""
    run = Run(folder, folder)
    try:
        config = read_yaml(folder / "config.yaml")
        env, result = read_object(folder / "env.json"), read_object(folder / "result.json")
        rows, last = read_rows(folder / "metrics.jsonl")
        file = folder / "failed.txt"
        failed = file.read_text(errors="replace") if file.is_file() else ""
        _fill(run, config, env, result, rows, last, failed)
    except Exception as error:  # what damaged files make of their parsers has no base class
        run.mark_unreadable(error)
    return run


def _archived(file: Path) -> list[Run]:
    """The runs of a file; a line that is none is an unreadable one."""
    runs: list[Run] = []
    try:
        for record in archive.records(file):
            run = Run(file.parent / record["run"], file)
            runs.append(run)
            try:
                curve = record["curve"]
                shown = [row for row in curve if any(k in f'"{key}' for key in row for k in SHOWN)]
                last = curve[-1]["step"] if curve else None
                parts = (record[key] for key in ("config", "env", "result"))
                _fill(run, *parts, shown, last, record.get("failed", ""))
            except Exception as error:  # of odd content, which can be anything
                run.mark_unreadable(error)
    except (OSError, ValueError) as error:
        runs.append(Run(file, file))
        runs[-1].mark_unreadable(error)
    return runs


def _fill(run: Run, config, env, result, rows: list[dict], last: int | None, failed: str) -> None:
    """Put in what was read. Errors: ValueError for what a report cannot read."""
    run.config = configuration(config)
    run.env = environments(env)
    run.result = numbers(result, "result.json")
    run.status = run.result.get("status", "unfinished")
    if run.status not in STATUSES:
        raise ValueError(f"result.json: status={run.status!r}: no such status")
    run.rows = [numbers(row, f"metrics.jsonl: step {row['step']}") for row in rows]
    if run.status != "finished":
        run.cause = _cause(run, last, failed)
    elif run.value is None:
        key = f"test/{run.measure.name}"
        run.cause = f"{key} is {run.result.get(key)}"


def pack(root: Path, file: Path, speeds: bool) -> list[Run]:
    """Write all runs below `root` into one file; returns those left out, which cannot be read.

    Errors: `BadInput` if there is no run.
    """
    packed, left_out, runs = {}, [], collect(root)
    files = {run.place for run in runs if run.place != run.folder}
    archived = {file.parent / r["run"]: r for file in files for r in archive.records(file)}
    for run in runs:
        if run.status == "unreadable":
            left_out.append(run)
            continue
        record = _record(run, archived.get(run.folder))
        record["config"] = archive.portable(record["config"])
        record["env"] = archive.portable(record["env"])
        if not speeds:
            record["result"] = archive.without_speeds(record["result"])
        packed[run.folder.relative_to(root if root.is_dir() else root.parent).as_posix()] = record
    archive.write(file, packed)
    return left_out


def _record(run: Run, archived: dict[str, Any] | None) -> dict[str, Any]:
    """What a line holds of a run, beside its name. archived: the line that it was read from."""
    if archived is not None:
        return {key: value for key, value in archived.items() if key != "run"}
    rows = [row for line in lines_of(run.folder / "metrics.jsonl") if (row := row_of(line))]
    record = {
        "config": read_yaml(run.folder / "config.yaml"),
        "env": run.env,
        "result": read_object(run.folder / "result.json"),
        # the curve of a trial is in no report
        "curve": archive.thinned(rows, 2 if run.config["runtime.tuning"] else archive.POINTS),
    }
    file = run.folder / "failed.txt"
    return record | ({"failed": file.read_text(errors="replace")} if file.is_file() else {})


def _cause(run: Run, last: int | None, failed: str) -> str:
    total = run.config["trainer.max_steps"]
    of = f" of {total:,}" if total else ""
    where = "no step logged" if last is None else f"last step {last:,}{of}"
    if failed:
        return f"{_line(failed)} ({where})"
    return {
        "unfinished": f"running or killed, {where}",
        "interrupted": f"{where}; the same command continues",
    }.get(run.status, f"started again after it {run.status}, {where}")


def _line(text: str) -> str:
    return " ".join(text.split())
