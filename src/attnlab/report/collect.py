"""Find runs below a folder and lay their results side by side."""

import json
from pathlib import Path
from typing import Any

import yaml

from attnlab.errors import BadInput


def collect(root: Path) -> list[dict[str, Any]]:
    """result.json of every run below `root`; a run without one has its status and identity only.

    Errors: `BadInput` if there is no run.
    """
    runs = [_row(config.parent) for config in sorted(root.rglob("config.yaml"))]
    if not runs:
        raise BadInput(f"runs={root}: no run folder there (none has a config.yaml)")
    return runs


def _row(folder: Path) -> dict[str, Any]:
    file = folder / "result.json"
    if file.is_file():
        result = json.loads(file.read_text())
        health = [v for k, v in result.items() if k.endswith("/dead_scorer")]
        # of the layer with most of them
        return {**result, "dead_scorer": max(health, default=None), "folder": str(folder)}
    cfg = yaml.safe_load((folder / "config.yaml").read_text())
    return {
        "status": "unfinished",  # running, or killed
        "model": cfg["model"]["name"],
        "data": cfg["data"]["name"],
        "seed": cfg["seed"],
        "scale": cfg["scale"],
        "protocol": cfg["protocol"],
        "folder": str(folder),
    }


COLUMNS = {
    "data": "data",
    "model": "model",
    "seed": "seed",
    "scale": "scale",
    "protocol": "protocol",
    "status": "status",
    "test/perplexity": "test perplexity",
    "test/unigram_perplexity": "unigram",
    "test/accuracy": "test accuracy",
    "dead_scorer": "dead scorer",
    "params": "parameters",
    "tokens_per_s": "tokens/s",
    "samples_per_s": "samples/s",
    "peak_memory_mib": "peak MiB",
    "wall_s": "s",
}


def markdown(runs: list[dict[str, Any]]) -> str:
    """One Markdown table of all runs, without columns that no run fills."""
    runs = sorted(runs, key=lambda r: (r["data"], r["scale"], r["model"], r["seed"]))
    keys = [key for key in COLUMNS if any(run.get(key) is not None for run in runs)]
    lines = [[COLUMNS[key] for key in keys]]
    lines += [[_text(run.get(key)) for key in keys] for run in runs]
    widths = [max(len(line[i]) for line in lines) for i in range(len(keys))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in lines
    )


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if isinstance(value, float) else str(value)
