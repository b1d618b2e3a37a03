"""What a sweep will need, from two real training steps of each kind of run on this machine.

As a program: reads a configuration (JSON) on stdin, measures it in this process, prints a `Cost`.
"""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from attnlab.benchmark import training_step
from attnlab.config import UNHASHED, Config
from attnlab.device import choose_device
from attnlab.folder import Ledger
from attnlab.sweep import Job
from attnlab.training.meter import peak_memory_mib
from attnlab.training.trainer import total_steps

GIB = 2**30
IMAGES = {"cifar10": 50_000, "cifar100": 50_000, "digits": 1_438}  # in the training split


@dataclass(frozen=True)
class Cost:
    """Of one kind of run: seconds a step, peak GiB of memory, values in the model."""

    step_s: float
    peak_gib: float
    params: int

    @property
    def disk_gib(self) -> float:
        """Weights and Adam's two moments, twice while a checkpoint is replaced, and the best
        weights.
        """
        return 4 * self.params * (2 * 3 + 1) / GIB


def kind(cfg: Config) -> str:
    """What runs of the same cost agree in."""
    return cfg.model_dump_json(exclude={"seed"} | UNHASHED)


def calibrate(cfg: Config) -> Cost | str:
    """Measure one kind of run in a process of its own, or say in one line why that failed."""
    command = [sys.executable, "-m", "attnlab.estimate"]
    done = subprocess.run(command, input=cfg.model_dump_json(), capture_output=True, text=True)
    if done.returncode == 0:
        return Cost(**json.loads(done.stdout))
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}: too little memory?"
    return done.stderr.strip().splitlines()[-1]


def measure(cfg: Config) -> Cost:
    """Two training steps at the configured size and batch, the second one timed, on random tokens
    or images; no loading, no evaluation.
    """
    with contextlib.suppress(OSError):  # if memory ends, this process goes and no other
        Path("/proc/self/oom_score_adj").write_text("1000")
    device = choose_device(cfg)
    step, model = training_step(cfg, device)
    step()
    began = time.perf_counter()
    step()
    spent = time.perf_counter() - began
    params = sum(p.numel() for p in model.parameters())
    return Cost(round(spent, 3), round(peak_memory_mib(device) / 1024, 2), params)


def steps_to_go(job: Job) -> int:
    """Updates that a run still has before it; 0 if it is finished."""
    if job.finished:
        return 0
    done = [row["step"] for row in Ledger(job.path / "metrics.jsonl").rows()]
    return total_steps(job.cfg, _samples(job.cfg.data)) - max(done, default=0)


def _samples(data) -> int:
    """In the training split; 0 for text, whose budget is in steps."""
    if data.kind == "symbols":
        return data.train_size
    return IMAGES[data.name] - data.validation_size if data.kind == "image" else 0


@dataclass(frozen=True)
class Estimate:
    """What a list of jobs needs: a Markdown table, hours in all, and whether all can run here."""

    table: str
    hours: float
    possible: bool


def estimate(jobs: list[Job], say=lambda line: None) -> Estimate:
    """Measure every kind of run that is still to be done. say: called before each measurement."""
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(kind(job.cfg), []).append(job)
    lines = [
        "| data | model | scale | runs | steps to go | s a step | hours | GiB memory | GiB disk |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    hours = disk = 0.0
    possible = True
    for alike in kinds.values():
        cfg, steps = alike[0].cfg, sum(map(steps_to_go, alike))
        row = [cfg.data.name, cfg.model.name, cfg.scale, len(alike), f"{steps:,}"]
        if not steps:
            row += ["finished", "", "", ""]
        else:
            say(f"measuring two steps of {cfg.data.name} {cfg.model.name} ({cfg.scale})")
            cost = calibrate(cfg)
            if isinstance(cost, str):
                possible = False
                row += [cost, "", "", ""]
            else:
                here, space = steps * cost.step_s / 3600, len(alike) * cost.disk_gib
                hours, disk = hours + here, disk + space
                row += [cost.step_s, f"{here:,.1f}", cost.peak_gib, f"{space:.1f}"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    lines.append(f"\n{hours:,.1f} hours and {disk:.1f} GiB of disk in all, without evaluation.")
    return Estimate("\n".join(lines), hours, possible)


if __name__ == "__main__":
    cost = measure(Config.model_validate_json(sys.stdin.read()))
    print(json.dumps(dataclasses.asdict(cost)))
