"""Whether W&B's offline files of the trained arms hold quality, memory and throughput."""

import json
import struct
from functools import partial
from pathlib import Path
from typing import Any

from attnlab.benchmarks.gpu.plan import Plan
from attnlab.benchmarks.gpu.trains import language_arms

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


def offline_rows(folder: Path) -> list[dict[str, Any]]:
    """History rows of a run folder's one offline W&B run, whose file is a LevelDB log of protobuf
    records; wandb has no public reader. Errors: ValueError if there is not exactly one.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob(f"wandb/offline-run-*/run-{(folder / 'wandb_id.txt').read_text()}.wandb")
    data, at, parts, rows = file.read_bytes(), 7, b"", []  # 7: the file's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's tail too short for a header is padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(parts)
            parts = b""
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                )
    return rows


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    head = ["| rows in the offline file | " + " | ".join(WANTED) + " |", "|---" * 5 + "|"]
    return head + [
        f"| {key} | " + " | ".join(str(row[name]) for name in WANTED) + " |"
        for key, row in rows.items()
    ]
