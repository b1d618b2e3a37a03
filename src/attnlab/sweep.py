"""Sweeps: one process a job, so that nothing leaks between jobs and none takes the others down.

What is finished is skipped, what was interrupted goes on, and a failure is said at once and does
not stop the rest.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnlab.cli import CONFIGS, compose_config, plain, run_path
from attnlab.config import Config
from attnlab.folder import RunFolder
from attnlab.validation import validate

TRAIN = CONFIGS.parent / "train.py"
FAILED = 1  # exit code of a sweep in which a job failed


@dataclass(frozen=True)
class Job:
    """One run of a sweep: what is typed for it, and what that means."""

    overrides: tuple[str, ...]
    cfg: Config
    path: Path

    @property
    def name(self) -> str:
        """The overrides in one line, without the experiment that they come from."""
        return " ".join(o for o in self.overrides if not o.startswith(("experiment=", "hydra.")))

    @property
    def finished(self) -> bool:
        """Whether result.json says so."""
        return RunFolder(self.path, self.cfg).result is not None


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


def run_jobs(jobs: list[Job]) -> int:
    """Run jobs one after the other by train.py; prints a line when each starts and ends, and a
    table last.

    Returns 0, FAILED, or 128 + n after signal n: SIGINT and SIGTERM go on to the running job,
    which saves, and no other is started.
    """
    ends: list[tuple[str, Job]] = []
    for number, job in enumerate(jobs, 1):
        label = f"job {number} of {len(jobs)}: {job.name}"
        if job.finished:
            ends.append(("finished before", job))
            _say(f"{label}: finished before")
            continue
        _say(f"{label}: starts")
        began = time.monotonic()
        code, signum = _run(job)
        end = "finished" if code == 0 else f"exit code {code}{_cause(job)}"
        ends.append((end, job))
        _say(f"{label}: {end} after {time.monotonic() - began:.0f} s")
        if signum:
            _say(f"sweep stopped at job {number} of {len(jobs)}; the same command continues")
            return 128 + signum
    for end, job in ends:
        _say(f"  {end:15}  {job.path}")
    failed = sum(not end.startswith("finished") for end, _ in ends)
    _say(f"sweep: {len(jobs) - failed} of {len(jobs)} finished")
    return FAILED if failed else 0


def _run(job: Job) -> tuple[int, int]:
    """Exit code of the job's process, and the signal that asked the sweep to stop, or 0."""
    command = [sys.executable, str(TRAIN), *job.overrides, "hydra.mode=RUN"]
    # In a session of its own the job gets a terminal's Ctrl-C from here, once, as it should.
    process = subprocess.Popen(command, start_new_session=True)
    asked = [0]

    def forward(signum, frame):
        asked[0] = signum
        process.send_signal(signum)

    before = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        return process.wait(), asked[0]
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)


def _cause(job: Job) -> str:
    file = job.path / "failed.txt"
    return f" ({file.read_text().strip().splitlines()[0]})" if file.is_file() else ""


def _say(line: str) -> None:
    print(line, flush=True)
