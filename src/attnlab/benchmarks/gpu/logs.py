"""Whether W&B's offline files of the trained arms hold quality, memory and throughput."""

from functools import partial
from typing import Any

from attnlab.benchmarks.gpu.plan import Plan
from attnlab.benchmarks.gpu.trains import language_arms
from attnlab.runs.tracking import offline_rows

TITLE = "Logs"
WANTED = ["train/loss", "val/loss", "memory/peak_mib", "throughput/tokens_per_s"]


def work(plan: Plan):
    """A row for each arm."""
    return {model: partial(logged, plan, model) for model in language_arms(plan)}


def logged(plan: Plan, model: str) -> dict[str, Any]:
    """How many rows of each measure the offline file of an arm's run holds."""
    rows = offline_rows(plan.scratch / model)
    counts = {key: sum(key in row for row in rows) for key in WANTED}
    return {"holds": all(counts.values()), **counts}


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    head = ["| rows in the offline file | " + " | ".join(WANTED) + " |", "|---" * 5 + "|"]
    return head + [
        f"| {key} | " + " | ".join(str(row[name]) for name in WANTED) + " |"
        for key, row in rows.items()
    ]
