"""Time and memory of attention alone: every arm beside the dot product, FlexAttention and the
paper's Algorithm 1 as printed.
"""

from functools import partial
from typing import Any

import torch

from attnlab.benchmarks.attention import FLEX, LITERAL, SDPA, Shape, measure, peak_memory, steps
from attnlab.benchmarks.gpu.plan import Plan
from attnlab.runtime.device import set_up
from attnlab.training.flops import PEAK

TITLE = "Fast"
ARMS = {"neural_d2": "d2_h4", "neural_d16": "d16_h32", "neural_full": "full_h128"}
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def work(plan: Plan):
    """The fused kernels first, then what they are compared with, each from short to long."""
    rows, device = {}, torch.device(plan.device)
    contenders = [SDPA, *((case, "triton") for case in ARMS.values())]
    contenders += [(case, backend) for backend in (LITERAL, FLEX) for case in ARMS.values()]
    for case, backend in contenders[: 2 if plan.smoke else None]:
        for precision, dtype in DTYPES.items():
            if plan.smoke and precision == "bf16":
                continue  # wrong in the interpreter
            for n in plan.lengths:
                shape = Shape(n, plan.width, plan.batch, plan.heads, True, dtype)
                key = f"{case}, {backend}, {precision}, {n}"
                rows[key] = partial(timed, plan, shape, case, backend, precision, device)
    return rows


def timed(plan: Plan, shape: Shape, case: str, backend: str, precision: str, device):
    """Both passes of one contender on one shape, with the share of the card's peak."""
    if device.type == "cuda":
        set_up(device)  # as in training, for which torch chooses SDPA's kernels otherwise
        torch.use_deterministic_algorithms(backend != FLEX)  # whose backward adds atomically
    largest = torch.cuda.mem_get_info()[1] // 8 if device.type == "cuda" else 2**29
    passes = steps(shape, case, backend, device, largest)
    peaks = peak_memory(passes, device)
    rows = measure(passes, shape, case, backend, device, plan.seconds)
    if not rows:
        return {"left_out": "a tensor would be too large, or the backend cannot serve"}
    found: dict[str, Any] = {}
    for row, peak_mib in zip(rows, peaks, strict=True):
        row["peak_mib"] = peak_mib
        peak = PEAK.get(row["device"], {}).get(precision)
        products = flops(shape, row["hidden"]) * (3 if row["pass"] != "forward" else 1)
        row["share_of_peak"] = round(products / (row["ms"] / 1000) / peak, 4) if peak else None
        found[row.pop("pass")] = row
    return found


def flops(shape: Shape, hidden: list[int] | None) -> int:
    """Of the forward's products over the pairs that the causal mask leaves, two for each multiply-
    add: scores (D, or the layers of the score network) and values (D). The backward counts twice.
    """
    scores = shape.d
    if hidden:
        scores = sum(a * b for a, b in zip(hidden, [*hidden[1:], 1], strict=True))
    pairs = shape.batch * shape.heads * shape.n * (shape.n + 1) // 2
    return 2 * pairs * (scores + shape.d)


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"B {plan.batch}, H {plan.heads}, D {plan.width}, causal; medians of interleaved samples.",
        "The ratio is to torch's scaled_dot_product_attention, with quartiles; below 1 is faster.",
        "As in training, torch may use only kernels that repeat bit for bit, which slows the",
        "backward of that attention; beside FlexAttention, which does not repeat, it may use all.",
        "Share: of the card's peak at this precision, by the products of the visible pairs.",
        "",
        "| score, by, precision, N | forward ms | ratio | share | both ms | ratio | share | MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        if "left_out" in row:
            lines.append(f"| {key} | left out: {row['left_out']} | | | | | | |")
            continue
        cells = []
        for name in ("forward", "forward_backward"):
            one, (low, high) = row[name], row[name]["ratio_quartiles"]
            share = "" if one["share_of_peak"] is None else f"{100 * one['share_of_peak']:.1f} %"
            cells += [f"{one['ms']:.3f}", f"{one['ratio_to_sdpa']:.2f} [{low:.2f}, {high:.2f}]"]
            cells.append(share)
        cells.append(f"{row['forward_backward']['peak_mib']:,.0f}")
        lines.append(f"| {key} | {' | '.join(cells)} |")
    return lines
