"""The table of `attnlab summary`: one row a run."""

from pathlib import Path
from typing import Any

from attnlab.config.schema import can_change_result
from attnlab.report.collect import Run
from attnlab.report.naming import differing, typed
from attnlab.report.tables import Table

COLUMNS = {
    "data": "data",
    "model": "model",
    "seed": "seed",
    "scale": "scale",
    "protocol": "protocol",
    "options": "differs in",
    "status": "status",
    "test/perplexity": "test perplexity",
    "test/unigram_perplexity": "unigram",
    "test/bleu": "test BLEU",
    "test/accuracy": "test accuracy",
    "test/chance_accuracy": "chance",
    "test/copy_accuracy": "copy",
    "dead_scorer": "dead scorer",
    "params": "parameters",
    "tokens_per_s": "tokens/s",
    "samples_per_s": "samples/s",
    "peak_memory_mib": "peak MiB",
    "wall_s": "s",
}
GROUP = ("data.name", "scale", "protocol", "model.name")
ORDER = ("data", "scale", "model", "seed")


def markdown(runs: list[Run]) -> str:
    """One Markdown table of all runs, without columns that no run fills."""
    options = _options(runs)
    rows = sorted(
        (_row(run) | options.get(run.folder, {}) for run in runs),
        key=lambda row: [row[key] for key in ORDER],
    )
    keys = [key for key in COLUMNS if any(row.get(key) not in (None, "") for row in rows)]
    cells = [[_shown(row.get(key)) for key in keys] for row in rows]
    return Table({COLUMNS[key]: "text" for key in keys}, cells).markdown()


def _row(run: Run) -> dict[str, Any]:
    health = [v for k, v in run.result.items() if k.endswith("/dead_scorer")]
    return {
        **run.result,
        "data": run.config.get("data.name", f"{run.folder}: {run.cause}"),
        "model": run.config.get("model.name", ""),
        "seed": run.config.get("seed", 0),
        "scale": run.config.get("scale", ""),
        "protocol": run.config.get("protocol", ""),
        "status": run.status,
        "dead_scorer": max(health, default=None),  # of the layer with most of them
    }


def _options(runs: list[Run]) -> dict[Path, dict[str, str]]:
    """By folder, in what a run differs from others of its data, scale, protocol and model."""
    alike: dict[tuple, list[Run]] = {}
    for run in runs:
        if run.config:
            alike.setdefault(tuple(run.config.get(key) for key in GROUP), []).append(run)
    found = {}
    for group in alike.values():
        keys = [
            k for k in differing([r.config for r in group]) if can_change_result(k) and k != "seed"
        ]
        for run in group:
            said = (f"{key.removeprefix('model.')}={typed(run.config.get(key))}" for key in keys)
            found[run.folder] = {"options": ", ".join(said)}
    return found


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
