"""What a card is expected to need and to do, without one: memory of the tables' arms, checked on
the CPU, and bounds of the kernels' times. What `make gpu` has measured stands beside it.
"""

from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attnlab.benchmarks import roofline
from attnlab.benchmarks.gpu.fits import arms, configured
from attnlab.benchmarks.gpu.plan import CONTEXT, Plan
from attnlab.benchmarks.memory import modelled_peak_mib
from attnlab.benchmarks.training_step import published_shape, training_step
from attnlab.config.schema import Config
from attnlab.kernels.triton_backend import Case
from attnlab.runs.environment import source
from attnlab.runs.files import Ledger
from attnlab.runtime.device import give_back_freed_memory, release_freed_memory
from attnlab.training.meter import memory_mib, peak_memory_mib, reset_peak_memory

TITLE = "Modelled"

LM = ("arch.width=256", "arch.layers=4", "data.sequence_length=512", "trainer.batch_size=4")
VIT = ("arch.width=384", "arch.layers=6", "data.image_size=112", "trainer.batch_size=16")
SMALL = {  # table, model, precision, sizes: what is measured on the CPU, too
    "language, dot_product, fp32": ("table1", "dot_product", "fp32", LM),
    "language, neural_d2, fp32": ("table1", "neural_d2", "fp32", LM),
    "language, neural_d2, bf16": ("table1", "neural_d2", "bf16", LM),
    "vision, neural_d2, fp32": ("table3", "neural_d2", "fp32", VIT),
}
# h, h2, two hidden layers: bf16 values, head width 64, causal, ReLU.
CASES = {
    "released_d2": (2, 1, True),
    "d2_h4": (4, 1, False),
    "d16_h32": (32, 1, False),
    "full_h128": (128, 1, False),
}
BATCH, HEADS, N, D = 16, 8, 2048, 64


def work(plan: Plan):
    """Memory, its check, and a bound for each score network and card."""
    rows = {}
    for table, model, _ in arms():
        for precision in ("fp32", "bf16"):
            cfg = configured(table, model, f"trainer.precision={precision}")
            rows[f"memory, {table}, {model}, {precision}"] = partial(modelled, cfg)
    for name, (table, model, precision, sizes) in SMALL.items():
        cfg = configured(table, model, f"trainer.precision={precision}", *sizes)
        rows[f"check, {name}"] = partial(checked, cfg)
    for case in CASES:
        for card in roofline.CARDS:
            rows[f"bound, {case}, {card}"] = partial(bound, case, roofline.CARDS[card])
    return rows


def modelled(cfg: Config) -> dict[str, Any]:
    """Peak GiB at the published batch."""
    return {"gib": round(modelled_peak_mib(cfg, published_shape(cfg)) / 1024, 2)}


def checked(cfg: Config) -> dict[str, Any]:
    """Modelled and measured MiB of a small size on this CPU."""
    with ProcessPoolExecutor(1, CONTEXT) as alone:
        measured = alone.submit(measured_peak_mib, cfg).result()
    expected = modelled_peak_mib(cfg, published_shape(cfg))
    error = round(100 * (expected / measured - 1), 1)
    return {"modelled_mib": round(expected), "measured_mib": round(measured), "percent": error}


def measured_peak_mib(cfg: Config) -> float:
    """Peak resident MiB of two training steps, above what the process had before. A step with one
    sample has loaded the libraries by then.
    """
    device = torch.device("cpu")
    give_back_freed_memory()
    alone = cfg.trainer.model_copy(update={"batch_size": 1})
    training_step(cfg.model_copy(update={"trainer": alone}), device, published_shape(cfg))[0]()
    release_freed_memory()
    reset_peak_memory(device)
    before = memory_mib(device)
    step, _ = training_step(cfg, device, published_shape(cfg))
    step()
    step()
    return peak_memory_mib(device) - before


def bound(name: str, card: roofline.Card) -> dict[str, Any]:
    """Least ms of forward and both passes, and their ratio to the dot product's least."""
    h, h2, two = CASES[name]
    case = Case(h, h2, two, "relu", True, D, True)
    found: dict[str, Any] = {}
    ours = {k: roofline.per_pair(k, case, card.arch) for k in ("forward", "rows", "cols")}
    spent = {k: roofline.clocks(counts, card) for k, counts in ours.items()}
    base = {k: roofline.dot_product(k, D, card)[0] for k in ("forward", "backward")}
    both = sum(clocks for clocks, _ in spent.values())
    for key, clocks, dot in (
        ("forward", spent["forward"][0], base["forward"]),
        ("both", both, sum(base.values())),
    ):
        moved = roofline.bytes_moved(case, N, key == "both")
        ms = roofline.milliseconds(clocks, moved, BATCH * HEADS, N, card)
        found[f"{key}_ms"], found[f"{key}_ratio"] = round(ms, 3), round(clocks / dot, 2)
    found["limit"] = {k: unit for k, (_, unit) in spent.items()}
    found["instructions"] = {
        k: round(sum(v for name, v in counts.items() if name != "flop"), 1)
        for k, counts in ours.items()
    }
    return found


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    fits, fast = measured(plan.results, "fits"), measured(plan.results, "fast")
    lines = [
        "### Memory of tables 1, 3 and 4 at the published batch",
        "",
        "Peak of all tensors over two training steps, by torch's memory tracker on tensors",
        "without data. Measured: by `make gpu`, with the device; empty where nothing is measured.",
        "",
        "| arm | modelled GiB | measured GiB |",
        "|---|---|---|",
    ]
    for key, row in of_kind(rows, "memory").items():
        there = [f"{r['peak_gib']} ({r['device']})" for r in fits.get(f"{key}, not compiled", [])]
        lines.append(f"| {key} | {row['gib']} | {', '.join(there)} |")
    lines += [
        "",
        "### The model of memory against this CPU",
        "",
        "Small sizes; measured is the peak of the process above what it had before.",
        "",
        "| size | modelled MiB | measured MiB | error |",
        "|---|---|---|---|",
    ]
    for key, row in of_kind(rows, "check").items():
        numbers = f"{row['modelled_mib']} | {row['measured_mib']} | {row['percent']} %"
        lines.append(f"| {key} | {numbers} |")
    lines += [
        "",
        "### Bounds of the kernels' times",
        "",
        f"B {BATCH}, H {HEADS}, N {N}, D {D}, causal, bf16. Least time by the instructions of the",
        "compiled loops and by bytes, and its ratio to the least time of dot-product attention",
        "(which no kernel reaches, so measured ratios may be lower).",
        "Instructions are those of one thread per pair in forward, and in the backward's kernels",
        "for queries (rows) and keys (cols); behind them the unit that decides.",
        "",
        "| score network, card | forward ms | ratio | both ms | ratio | instructions | measured |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, row in of_kind(rows, "bound").items():
        counts = ", ".join(f"{k} {v} ({row['limit'][k]})" for k, v in row["instructions"].items())
        numbers = f"{row['forward_ms']} | {row['forward_ratio']} | {row['both_ms']}"
        case, card = key.split(", ")
        there = [r for r in fast.get(f"{case}, triton, bf16, {N}", []) if "forward" in r]
        ratios = [
            f"{r['forward']['ratio_to_sdpa']} / {r['forward_backward']['ratio_to_sdpa']}"
            for r in there
            if card.split()[-1] in r["forward"]["device"]
        ]
        lines.append(
            f"| {key} | {numbers} | {row['both_ratio']} | {counts} | {' '.join(ratios)} |"
        )
    return lines


def of_kind(rows: dict[str, dict], kind: str) -> dict[str, dict]:
    """The rows of one kind, without its name."""
    return {k.partition(", ")[2]: row for k, row in rows.items() if k.startswith(f"{kind}, ")}


def measured(results: Path, stage: str) -> dict[str, list[dict]]:
    """Rows without error of a stage on every card, by their name; those of other code are left
    out.
    """
    found: dict[str, list[dict]] = {}
    code = source()
    for file in sorted(results.glob(f"*/{stage}.jsonl")):
        rows = {row["row"]: row for row in Ledger(file).rows()}
        for key, row in rows.items():
            if "error" not in row and row.get("code") == code:
                found.setdefault(key, []).append(row)
    return found
