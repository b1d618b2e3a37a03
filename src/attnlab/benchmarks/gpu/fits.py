"""Whole training steps of every arm of tables 1, 3 and 4 at the published batch, in the memory of
a 24 GB card.
"""

import gc
import itertools
import statistics
import time
from functools import partial
from typing import Any

import torch

from attnlab.benchmarks.gpu.plan import GIB, Plan
from attnlab.benchmarks.timing import measured_on
from attnlab.benchmarks.training_step import published_shape, training_step
from attnlab.config.compose import compose_config, plain
from attnlab.config.messages import validate
from attnlab.config.schema import Config
from attnlab.runtime.device import choose_device
from attnlab.training.flops import PEAK, flops_per_step
from attnlab.training.trainer import total_steps

TITLE = "Fits"
TABLES = ["table1", "table3", "table4"]
IMAGES = 50_000  # in CIFAR's training split
STEPS = 5  # timed, after a first one


def work(plan: Plan):
    """Without torch.compile first, which takes long."""
    rows = {}
    for compiled, precision in itertools.product(plan.compiled, ("fp32", "bf16")):
        for table, model, runs in arms():
            if plan.smoke and (table, model, precision) != ("table1", "neural_d2", "fp32"):
                continue
            words = [f"scale={plan.scale}", f"runtime.compile={str(compiled).lower()}"]
            words += plan.neural if model.startswith("neural") else []
            cfg = configured(table, model, f"trainer.precision={precision}", *words)
            key = f"{table}, {model}, {precision}, {'compiled' if compiled else 'not compiled'}"
            rows[key] = partial(a_few_steps, plan, cfg, runs)
    return rows


def arms() -> list[tuple[str, str, int]]:
    """Table, model and number of seeds of every arm."""
    found = []
    for table in TABLES:
        grid = compose_config([f"experiment={table}"]).hydra.sweeper.params
        seeds = len(str(grid["seed"]).split(","))
        found += [(table, model, seeds) for model in grid["model"].split(",")]
    return found


def configured(table: str, model: str, *words: str) -> Config:
    """One arm of a table."""
    return validate(plain(compose_config([f"experiment={table}", f"model={model}", *words])))


def a_few_steps(plan: Plan, cfg: Config, runs: int) -> dict[str, Any]:
    """Peak memory, median time of a step, tokens (or images) a second, MFU, and hours of `runs`
    whole runs, without evaluation.
    """
    runtime = cfg.runtime.model_copy(update={"device": plan.device})
    cfg = cfg.model_copy(update={"runtime": runtime})
    device, cuda = choose_device(runtime, cfg.trainer.precision), plan.device == "cuda"
    if cuda:
        torch.compiler.reset()
        gc.collect()  # a model of the row before, which a cycle of references may keep
        torch.cuda.empty_cache()
        share = min(1.0, plan.memory / torch.cuda.mem_get_info()[1])
        torch.cuda.set_per_process_memory_fraction(share)
        torch.cuda.reset_peak_memory_stats()
    shape = published_shape(cfg)
    step, _ = training_step(cfg, device, shape)
    step()
    times = []
    for _ in range(STEPS):  # by the host's clock: training waits for the host in every step
        began = time.perf_counter()
        step()
        times.append(time.perf_counter() - began)
    step_s = statistics.median(times)
    steps = total_steps(cfg.trainer, IMAGES - (getattr(cfg.data, "validation_size", None) or 0))
    flops = flops_per_step(cfg.arch, cfg.model, cfg.trainer.batch_size, **shape)
    where = measured_on(device)
    peak = PEAK.get(where["device"], {}).get(cfg.trainer.precision)
    samples = cfg.trainer.batch_size * (shape["tokens"] if cfg.arch.body == "lm" else 1)
    return {
        "peak_gib": round(torch.cuda.max_memory_allocated() / GIB, 2) if cuda else None,
        "reserved_gib": round(torch.cuda.max_memory_reserved() / GIB, 2) if cuda else None,
        "step_ms": round(1000 * step_s, 2),
        "per_s": round(samples / step_s, 1),
        "mfu": round(flops / step_s / peak, 4) if peak else None,
        "hours": round(runs * steps * step_s / 3600, 1),
        **where,
    }


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    lines = [
        f"Training steps at scale={plan.scale} on random data, in a process that may use "
        f"{plan.memory / GIB:g} GiB: about what a 24 GB card leaves beside driver and libraries.",
        "Hours are of all runs of the arm (three seeds), without evaluation.",
        "",
        "| arm | peak GiB | reserved GiB | step ms | tokens or images a s | MFU | hours |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        cells = (row[name] for name in ("peak_gib", "reserved_gib", "step_ms", "per_s"))
        mfu = "" if row["mfu"] is None else f"{100 * row['mfu']:.1f} %"
        lines.append(f"| {key} | {' | '.join(map(str, cells))} | {mfu} | {row['hours']:,} |")
    return lines
