"""Sweeps: one process a job, so that nothing leaks between jobs and none takes the others down.

What is finished is skipped, what was interrupted goes on, and a failure is said at once and does
not stop the rest.
"""

import os
import queue
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed

from attnlab.compose import CONFIGS, compose_config, plain, run_path
from attnlab.config import Config
from attnlab.errors import FolderInUse
from attnlab.folder import RunFolder
from attnlab.launch import REASON
from attnlab.training.signals import handled_by
from attnlab.validation import validate

TRAIN = CONFIGS.parent / "train.py"
FAILED = 1  # exit code of a sweep in which a job failed
UNNAMED = ("experiment=", "hydra.", "launcher=")  # overrides that do not tell jobs apart
ELSEWHERE = "runs elsewhere"  # another process has its folder, here or on another machine


@dataclass(frozen=True)
class Job:
    """One run of a sweep: what is typed for it, and what that means."""

    overrides: tuple[str, ...]
    cfg: Config
    path: Path

    @property
    def name(self) -> str:
        """The overrides in one line, without the experiment that they come from."""
        return " ".join(o for o in self.overrides if not o.startswith(UNNAMED))

    @property
    def finished(self) -> bool:
        """Whether result.json says so, of data that lies where it lay: else the run itself looks
        whether it is the same.
        """
        folder = RunFolder(self.path, self.cfg)
        return folder.result is not None and not folder.moved

    @property
    def failure(self) -> tuple[int, str] | None:
        """When failed.txt was written, and its first line."""
        file = self.path / "failed.txt"
        if not file.is_file():
            return None
        return file.stat().st_mtime_ns, file.read_text().strip().partition("\n")[0]


def compose_jobs(job_overrides: Iterable[Sequence[str]]) -> list[Job]:
    """Jobs by their overrides. Errors: `BadInput`, those of Hydra."""
    jobs = []
    for overrides in job_overrides:
        composed = compose_config(list(overrides), hydra=True)
        cfg = validate(plain(composed))
        jobs.append(Job(tuple(overrides), cfg, run_path(cfg, composed.hydra.run.dir)))
    return jobs


def with_baselines(jobs: list[Job]) -> list[Job]:
    """The jobs, and one of dot_product for each that has none: what an ablation is compared to."""
    wanted = {job.path: job for job in jobs}
    for job in jobs:
        rest = [o for o in job.overrides if not o.startswith(("model=", "model."))]
        (baseline,) = compose_jobs([[*rest, "model=dot_product"]])
        wanted.setdefault(baseline.path, baseline)
    return list(wanted.values())


def run_jobs(jobs: list[Job], n_jobs: int = 1) -> int:
    """Run jobs by train.py, `n_jobs` at a time, each of these with the next GPU in turn; prints a
    line when a job starts and ends, and a table last.

    Returns 0; FAILED; FolderInUse's code if all that is missing runs elsewhere; 128 + n after
    signal n: it goes on to the running jobs, which save, and no other is started.
    """
    crew = Crew(n_jobs)
    ends: dict[int, str] = {}
    with handled_by(crew.forward):
        for _ in range(2):  # what runs elsewhere is looked at again when all others are done
            left = [i for i in range(len(jobs)) if ends.get(i, ELSEWHERE) == ELSEWHERE]
            run = (delayed(_one)(crew, jobs[i], f"job {i + 1} of {len(jobs)}") for i in left)
            ends |= zip(left, Parallel(n_jobs, backend="threading")(run), strict=True)
    return summarize(jobs, [ends[i] for i in range(len(jobs))], crew.signum)


def summarize(jobs: list[Job], ends: list[str], signum: int = 0) -> int:
    """Print the table of a sweep's jobs and how each ended; returns the sweep's exit code."""
    for end, job in zip(ends, jobs, strict=True):
        _say(f"  {end:15}  {job.path}")
    elsewhere = ends.count(ELSEWHERE)
    finished = sum(end.startswith("finished") for end in ends)
    _say(
        f"sweep: {finished} of {len(jobs)} finished" + f", {elsewhere} elsewhere" * bool(elsewhere)
    )
    if signum:
        _say("sweep stopped; the same command continues")
        return 128 + signum
    if finished + elsewhere < len(jobs):
        return FAILED
    return FolderInUse.exit_code if elsewhere else 0


def _one(crew: "Crew", job: Job, number: str) -> str:
    """Run one job, unless it is done or the sweep is to stop; how it ended."""
    label = f"{number}: {job.name}"
    if job.finished:
        _say(f"{label}: finished before")
        return "finished before"
    if crew.signum:
        return "not started"
    _say(f"{label}: starts")
    began, before = time.monotonic(), job.failure
    end = ending(*crew.run(command(job)), job, before)
    _say(f"{label}: {end} after {time.monotonic() - began:.0f} s")
    return end


def command(job: Job) -> list[str]:
    """What runs the job in a process of its own."""
    return [sys.executable, str(TRAIN), *job.overrides, "hydra.mode=RUN"]


def ending(code: int, reason: str, job: Job, before: tuple[int, str] | None) -> str:
    """How a job's process ended, by its exit code and what it said. before: an earlier one's
    failure.
    """
    if code == 0:
        return "finished"
    if code == FolderInUse.exit_code:
        return ELSEWHERE
    failure = job.failure
    if not reason and failure and failure != before:
        reason = failure[1]
    return f"exit code {code} ({reason})" if reason else f"exit code {code}"


class Crew:
    """Up to so many processes at a time. What asks the sweep to stop is handed on to all."""

    def __init__(self, size: int):
        self.signum = 0
        self._running: set[subprocess.Popen] = set()
        self._places: queue.SimpleQueue[dict[str, str]] = queue.SimpleQueue()
        gpus = visible_gpus() if size > 1 else []
        for place in range(size):
            gpu = {"CUDA_VISIBLE_DEVICES": gpus[place % len(gpus)]} if gpus else {}
            self._places.put(gpu)

    def run(self, command: list[str]) -> tuple[int, str]:
        """The exit code of a command, run in a free place, and the first line of why it failed."""
        place = self._places.get()
        try:
            with tempfile.NamedTemporaryFile("r", prefix="attnlab-") as reason:
                code = self._run(command, {**place, REASON: reason.name})
                return code, reason.read().partition("\n")[0]
        finally:
            self._places.put(place)

    def _run(self, command: list[str], environment: dict[str, str]) -> int:
        # In a session of its own it gets a terminal's Ctrl-C from here, once, as it should
        process = subprocess.Popen(command, env=os.environ | environment, start_new_session=True)
        self._running.add(process)
        if self.signum:
            process.send_signal(self.signum)
        code = process.wait()
        self._running.discard(process)
        return code

    def forward(self, signum: int, frame) -> None:
        """Hand a signal on to what runs."""
        self.signum = signum
        for process in list(self._running):
            process.send_signal(signum)


def visible_gpus() -> list[str]:
    """The GPUs that jobs may use, as CUDA_VISIBLE_DEVICES names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(i) for i in range(torch.cuda.device_count())]


def _say(line: str) -> None:
    print(line, flush=True)
