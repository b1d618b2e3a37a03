"""Tiles and warps for the device in hand: which are fastest, beside the ones that
`triton_backend.tiles` chooses.
"""

import fcntl
import itertools
import statistics
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import torch

from attnlab.benchmarks.attention import CASES, Shape, mechanism
from attnlab.benchmarks.gpu.plan import Plan
from attnlab.benchmarks.timing import seconds
from attnlab.errors import first_line
from attnlab.kernels import triton_backend
from attnlab.kernels.triton_scorer import triton

TITLE = "Tiles"
SCORES = ["d2_h4", "d16_h32", "full_h128", "released_d2"]
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
LARGEST = {"bf16": 128 * 128, "fp32": 64 * 64}  # in fp32 a larger one compiles for a minute
TILES = {
    precision: [
        (rows, cols, warps)
        for rows, cols in itertools.product((32, 64, 128), repeat=2)
        for warps in (4, 8)
        if 2048 <= rows * cols * 4 // warps <= 8192 and rows * cols <= largest
    ]
    for precision, largest in LARGEST.items()
}
N, SHORT = 2048, 256  # measured on, compiled on


def work(plan: Plan):
    """A row for each score network, dtype and kernel."""
    rows = {}
    for precision, case in itertools.product(DTYPES, SCORES):
        for kernel in triton_backend.KERNELS:
            if plan.smoke and (case, kernel, precision) != ("d2_h4", "forward", "fp32"):
                continue
            rows[f"{case}, {precision}, {kernel}"] = partial(sweep, plan, case, precision, kernel)
    return rows


def sweep(plan: Plan, case: str, precision: str, kernel: str) -> dict[str, Any]:
    """Milliseconds of the whole pass that a kernel is part of, by the kernel's tile, the default's
    included; the other kernels keep theirs.
    """
    device, dtype = torch.device(plan.device), DTYPES[precision]
    tiles = [(16, 16, 4)] if plan.smoke else TILES[precision]
    sizes = [16, 16] if plan.smoke else [SHORT, N]
    with turn(plan, fcntl.LOCK_SH):
        compiles, timed = (launch(plan, case, n, dtype, device, kernel) for n in sizes)
    found, usable, refused = {}, [], {}
    for tile in [None, *tiles]:
        with chosen(kernel, tile), turn(plan, fcntl.LOCK_SH):  # beside others that compile
            try:
                compiles()
            except (triton.runtime.OutOfResources, triton.runtime.errors.PTXASError) as error:
                print(f"{case}, {precision}, {kernel}, {tile}: {error}", flush=True)
                refused[tile] = first_line(error)
            else:
                usable.append(tile)
    with turn(plan, fcntl.LOCK_EX):
        for tile in usable:
            with chosen(kernel, tile):
                samples = [seconds(timed, device) for _ in range(1 if plan.smoke else 7)]
            name = "default" if tile is None else "x".join(map(str, tile[:2])) + f", {tile[2]}"
            found[name] = round(1000 * statistics.median(samples), 4)
    if not found:
        raise RuntimeError(f"no tile can be used: {refused[None]}")
    best = min(found, key=found.__getitem__)
    if None in refused:  # the default is too large for this card
        return {"ms": found, "best": best, "refused": refused[None]}
    return {"ms": found, "best": best, "gain": round(found["default"] / found[best], 3)}


def launch(plan: Plan, case: str, n: int, dtype, device, kernel: str):
    """A function that runs the pass to which a kernel belongs, on random tables of a case."""
    torch.manual_seed(0)
    shape = Shape(n, plan.width, plan.batch, plan.heads, True, dtype)
    module = mechanism(*CASES[case], "triton", shape).to(device)
    q, k, v, gradient = torch.randn(4, plan.batch, plan.heads, n, plan.width, device=device)
    v, gradient = v.to(dtype), gradient.to(dtype)
    with torch.no_grad():
        tables = module.score_network.tables(q, k, module.scale, module.project)
        tables = [None if x is None else x.contiguous() for x in tables]
    out, lse = triton_backend.forward(*tables, v, "relu", True)
    if kernel == "forward":
        return partial(triton_backend.forward, *tables, v, "relu", True)
    return partial(triton_backend.backward, gradient, *tables, v, out, lse, "relu", True)


@contextmanager
def chosen(kernel: str, tile: tuple[int, int, int] | None):
    """While open, the kernel has this tile."""
    usual = triton_backend.tiles

    def tiles(name, case):
        options = usual(name, case)
        if name == kernel and tile is not None:
            options |= dict(zip(("rows", "cols", "num_warps"), tile, strict=True))
        return options

    with patch.object(triton_backend, "tiles", tiles):
        yield


@contextmanager
def turn(plan: Plan, lock: int):
    """While open, processes of this stage use the card together (LOCK_SH), or one of them does so
    alone (LOCK_EX). At the gate who waits for the card alone holds up the others, or it would
    never be free.
    """
    gate, file = (plan.scratch / f"tiles.{name}" for name in ("gate", "lock"))
    with gate.open("w") as gate, file.open("w") as file:
        fcntl.flock(gate, fcntl.LOCK_EX)
        fcntl.flock(file, lock)
        fcntl.flock(gate, fcntl.LOCK_UN)
        yield


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "Fastest tile (rows x columns, warps) of those tried for each kernel, by the time of",
        f"the whole forward or backward at N {N}, as a table to paste into `tiles` of",
        "src/attnlab/kernels/triton_backend.py. Gain: time of that pass with the tile that is",
        "chosen now, divided by the time with the fastest.",
        "",
        "| score, precision, kernel | chosen now ms | fastest | ms | gain |",
        "|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        ms = row["ms"]
        now = ms.get("default", row.get("refused"))
        times = f"{now} | {row['best']} | {ms[row['best']]} | {row.get('gain', '')}"
        lines.append(f"| {key} | {times} |")
    return lines
