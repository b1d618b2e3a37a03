"""Time, memory and disk space of a sweep, from two training steps of each kind of run here.

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

from attnlab.benchmarks.timing import measured_on
from attnlab.benchmarks.training_step import training_step
from attnlab.config.schema import UNHASHED, Config
from attnlab.data.loader import build_data
from attnlab.runtime.device import choose_device
from attnlab.runtime.exits import exit_on_failure
from attnlab.sweeps.jobs import Job
from attnlab.sweeps.prepare import key, prepare
from attnlab.sweeps.python import python
from attnlab.training import checkpoint
from attnlab.training.meter import peak_memory_mib, reset_peak_memory
from attnlab.training.trainer import total_steps

GIB = 2**30


@dataclass(frozen=True)
class Cost:
    """Cost of one kind of run: seconds per step, peak GiB of memory, values in the model, and the
    device on which it was measured.
    """

    step_s: float
    peak_gib: float
    params: int
    device: str

    def disk_gib(self, keep: int) -> float:
        """Of a run that keeps so many checkpoints of weights and Adam's two moments: these, one
        more while it is saved, and the best weights.
        """
        return 4 * self.params * (3 * (keep + 1) + 1) / GIB


def kind(cfg: Config) -> str:
    """A key that runs of equal cost share."""
    return cfg.model_dump_json(exclude={"seed"} | UNHASHED)


def calibrate(cfg: Config) -> Cost | str:
    """Measure one kind of run in a process of its own, or return one line on why that failed."""
    command = python("attnlab.sweeps.estimate")
    done = subprocess.run(command, input=cfg.model_dump_json(), capture_output=True, text=True)
    if done.returncode == 0:
        return Cost(**json.loads(done.stdout))
    if done.returncode < 0:
        return f"killed by signal {-done.returncode}: too little memory?"
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[-1].removeprefix("error: ")


def measure(cfg: Config) -> Cost:
    """Two training steps at the configured size and batch, the second one timed, on random tokens
    or images of the data's shape; no loading, no evaluation.
    """
    with contextlib.suppress(OSError):  # out of memory, Linux ends this process
        Path("/proc/self/oom_score_adj").write_text("1000")
    device = choose_device(cfg.runtime, cfg.trainer.precision)
    shape = build_data(cfg.data, cfg.seed, cfg.runtime.cache).shape(cfg.arch)
    reset_peak_memory(device)
    step, model = training_step(cfg, device, shape)
    step()
    began = time.perf_counter()
    step()
    spent = time.perf_counter() - began
    params = sum(p.numel() for p in model.parameters())
    peak = round(peak_memory_mib(device) / 1024, 2)
    return Cost(round(spent, 4), peak, params, measured_on(device)["device"])


def steps_to_go(job: Job, samples: int) -> int:
    """Updates that a run on so many training samples still has before it: those behind its newest
    checkpoint.
    """
    done = [checkpoint.step_of(file) for file in checkpoint.newest_first(job.path / "checkpoints")]
    return total_steps(job.cfg.trainer, samples) - max(done, default=0)


@dataclass(frozen=True)
class Estimate:
    """Needs of a list of jobs: a Markdown table, total hours, and whether all can run here."""

    table: str
    hours: float
    possible: bool


def estimate(jobs: list[Job]) -> Estimate:
    """Measure every kind of run that is still to be done, after their data has been prepared; each
    is named on stdout first. Errors: `BadInput` for data that cannot be had.
    """
    samples = prepare(job.cfg for job in jobs if not job.finished)
    kinds: dict[str, list[Job]] = {}
    for job in jobs:
        kinds.setdefault(kind(job.cfg), []).append(job)
    lines = [
        "| data | model | scale | runs | steps to go | s a step | hours | GiB memory | GiB disk |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    hours = disk = 0.0
    possible, devices = True, set()
    for alike in kinds.values():
        cfg, left = alike[0].cfg, [job for job in alike if not job.finished]
        steps = sum(steps_to_go(job, samples[key(cfg)]) for job in left)
        row = [cfg.data.name, cfg.model.name, cfg.scale, len(alike), f"{steps:,}"]
        if not left:
            row += ["finished", "", "", ""]
        else:
            arm = f"{cfg.data.name} {cfg.model.name} ({cfg.scale})"
            print(f"measuring two steps of {arm}", flush=True)  # minutes a kind at full size
            cost = calibrate(cfg)
            if isinstance(cost, str):
                possible = False
                row += [cost, "", "", ""]
            else:
                here = steps * cost.step_s / 3600
                space = len(left) * cost.disk_gib(cfg.runtime.keep_checkpoints)
                hours += here
                disk += space
                devices.add(cost.device)
                row += [cost.step_s, f"{here:,.1f}", cost.peak_gib, f"{space:.1f}"]
        lines.append("| " + " | ".join(map(str, row)) + " |")
    where = f" on {', '.join(sorted(devices))}" if devices else ""
    lines.append(
        f"\n{hours:,.1f} hours{where} and {disk:.1f} GiB of disk in all, without evaluation."
    )
    return Estimate("\n".join(lines), hours, possible)


if __name__ == "__main__":
    with exit_on_failure():
        cost = measure(Config.model_validate_json(sys.stdin.read()))
        print(json.dumps(dataclasses.asdict(cost)))
