"""Language arms that train for a while, a run that is killed and continued, and two processes."""

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attnlab.benchmarks.gpu.fits import arms
from attnlab.benchmarks.gpu.plan import Plan, Program
from attnlab.config.compose import CONFIGS, compose_config, plain
from attnlab.config.messages import validate
from attnlab.errors import Interrupted
from attnlab.runs.files import Ledger
from attnlab.training import checkpoint

TITLE = "Trains"
FORK = multiprocessing.get_context("fork")
LEAST = 8  # rows of metrics before a run is stopped: timed steps, and an evaluation
SHORT = ["logger=none", "trainer.log_every=1", "trainer.save_every=4", "trainer.eval_every=6"]
OFFLINE = ["logger=wandb", "logger.mode=offline"]


def work(plan: Plan):
    """The kill, as nothing else shows that runs repeat on this card; two processes where there are
    two GPUs; each arm.
    """
    rows = {"kill -9, then the same command": partial(killed, plan)}
    if plan.gpus > 1:
        rows["two processes"] = partial(two_processes, plan)
    return rows | {model: partial(curve, plan, model) for model in language_arms(plan)}


def language_arms(plan: Plan) -> list[str]:
    """Those of table 1."""
    models = [model for table, model, _ in arms() if table == "table1"]
    return ["neural_d2"] if plan.smoke else models


def words(plan: Plan, model: str, *more: str) -> list[str]:
    """What train.py would be told."""
    neural = plan.neural if model.startswith("neural") else []
    return [*plan.train, f"model={model}", *neural, *more]


def curve(plan: Plan, model: str) -> dict[str, Any]:
    """Train for some seconds and stop by SIGTERM: losses over steps, and the last measures."""
    (folder,) = fresh(plan, model)
    process = started(plan, words(plan, model, *OFFLINE), folder)
    wait_for_rows(process, folder, LEAST)
    process.join(plan.train_s)
    stop(process, signal.SIGTERM)
    metrics = Ledger(folder / "metrics.jsonl").rows()
    timing = Ledger(folder / "timing.jsonl").rows()
    losses = [(row["step"], row["train/loss"]) for row in metrics if "train/loss" in row]
    last = {key: value for row in (*metrics, *timing) for key, value in row.items()}
    kept = ("step", "val/perplexity", "throughput/tokens_per_s", "memory/peak_mib")
    return {"curve": losses, **{key: last.get(key) for key in kept}}


def killed(plan: Plan) -> dict[str, Any]:
    """A run that is killed and continued ends with the bits of one that is not."""
    steps = words(plan, "neural_d2", *SHORT, "trainer.max_steps=12")
    whole, other = fresh(plan, "whole", "killed")
    finish(started(plan, steps, whole))
    process = started(plan, steps, other)
    wait_for_rows(process, other, 5)
    stop(process, signal.SIGKILL)
    at = len(Ledger(other / "metrics.jsonl").rows())
    finish(started(plan, steps, other))
    same = (whole / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    pair = [checkpoint.load(checkpoint.newest_first(f / "checkpoints")[0]) for f in (whole, other)]
    return {"holds": same and equal(*pair), "killed_after_rows": at, "steps": 12}


def two_processes(plan: Plan) -> dict[str, Any]:
    """torchrun with two processes trains like one that accumulates over the same micro-batches."""
    steps = words(plan, "neural_d2", *SHORT, "trainer.max_steps=12", "trainer.micro_batch_size=8")
    folders = fresh(plan, "one", "two")
    finish(started(plan, steps, folders[0]))
    command = [*(sys.executable, "-m", "torch.distributed.run", "--standalone")]
    command += ["--nproc-per-node=2", str(CONFIGS.parent / "train.py")]
    subprocess.run([*command, *steps, f"hydra.run.dir={folders[1]}"], check=True)
    one, two = (
        [row["train/loss"] for row in Ledger(folder / "metrics.jsonl").rows() if "train/lr" in row]
        for folder in folders
    )
    apart = max(abs(x - y) / abs(x) for x, y in zip(one, two, strict=True))
    return {"holds": apart < 0.01, "largest_relative_difference_of_losses": apart}


def fresh(plan: Plan, *names: str) -> list[Path]:
    """Run folders without what an earlier start has left there."""
    folders = [plan.scratch / name for name in names]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return folders


def started(plan: Plan, overrides: list[str], folder: Path):
    """A process that trains, forked from this one, which has touched no device and has computed
    nothing in threads: of those a forked process would wait for ever.
    """
    process = FORK.Process(target=train, args=(plan.program, overrides, folder))
    process.start()
    return process


def train(program: Program, overrides: list[str], folder: Path) -> None:
    """What train.py does, without its command line."""
    cfg = validate(plain(compose_config(overrides)))
    try:
        program(cfg, folder)
    except Interrupted as stopped:
        print(stopped)


def wait_for_rows(process, folder: Path, rows: int) -> None:
    """Until a run has written so many rows. Errors: RuntimeError if it ends before."""
    file = folder / "metrics.jsonl"
    while not file.is_file() or file.read_bytes().count(b"\n") < rows:
        if not process.is_alive():
            raise RuntimeError(f"training ended with exit code {process.exitcode}")
        time.sleep(0.005)


def stop(process, signum: int) -> None:
    """Send a signal and wait. Errors: RuntimeError if it had ended before, or failed."""
    if not process.is_alive():
        raise RuntimeError(f"training ended by itself, exit code {process.exitcode}")
    os.kill(process.pid, signum)
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"training ended with exit code {process.exitcode}")


def finish(process) -> None:
    """Wait for the end. Errors: RuntimeError if training failed."""
    process.join()
    if process.exitcode:
        raise RuntimeError(f"training ended with exit code {process.exitcode}")


def equal(one: Any, other: Any) -> bool:
    """Whether two checkpoints, or parts of them, are equal to the bit; without torch's threads
    (see `started`).
    """
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape
        return alike and one.numpy().tobytes() == other.numpy().tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown, and learning_curves.png beside them."""
    curves = {key: row["curve"] for key, row in rows.items() if "curve" in row}
    lines = []
    if curves:
        draw(curves, plan.results / "learning_curves.png")
        lines += [
            f"Each arm for {plan.train_s:g} seconds after its first steps: "
            f"`{' '.join(plan.train)}`.",
            "",
            "![training loss over steps](learning_curves.png)",
            "",
            "| arm | steps | validation perplexity | tokens a s | peak MiB |",
            "|---|---|---|---|---|",
        ]
        for key in curves:
            row = rows[key]
            names = ("step", "val/perplexity", "throughput/tokens_per_s", "memory/peak_mib")
            lines.append(f"| {key} | {' | '.join(str(row[name]) for name in names)} |")
        lines.append("")
    for key, row in rows.items():
        if "holds" in row:
            more = ", ".join(f"{k} {v}" for k, v in row.items() if k in ("killed_after_rows",))
            lines.append(f"- {key}: {'holds' if row['holds'] else '**fails**'} {more}".rstrip())
    return lines


def draw(curves: dict[str, list], file: Path) -> None:
    """Training loss over steps, a line for each arm."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, points in curves.items():
        axis.plot(*zip(*points, strict=True), label=name)
    axis.set(xlabel="step", ylabel="training loss, nats per token")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(file, dpi=120)
    plt.close(figure)
