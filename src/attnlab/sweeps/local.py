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
from pathlib import Path
from statistics import fmean

from joblib import Parallel, delayed

from attnlab.runtime.signals import handled_by
from attnlab.runtime.torchrun import REASON
from attnlab.sweeps.jobs import ELSEWHERE, FINISHED, Job, command, ending, say, summarize


def run_jobs(jobs: list[Job], n_jobs: int = 1) -> int:
    """Run jobs as processes, `n_jobs` at a time, each on the next GPU in turn. Prints a line when
    a job ends, on a terminal also when it starts, and a table at the end.

    Returns 0 if all are finished, FAILED, the code of FolderInUse if all that is missing runs
    elsewhere, or 128 + n after signal n. A signal is passed to the running jobs, which save, and
    no further job starts.
    """
    crew, progress = Crew(n_jobs), Progress(len(jobs), n_jobs)
    ends: dict[int, str] = {}
    with handled_by(crew.forward):
        for _ in range(2):  # what runs elsewhere is looked at again when all others are done
            left = [i for i in range(len(jobs)) if ends.get(i, ELSEWHERE) == ELSEWHERE]
            run = (
                delayed(_one)(crew, progress, jobs[i], f"job {i + 1} of {len(jobs)}") for i in left
            )
            ends |= zip(left, Parallel(n_jobs, backend="threading")(run), strict=True)
    return summarize(jobs, [ends[i] for i in range(len(jobs))], crew.signum)


def _one(crew: "Crew", progress: "Progress", job: Job, number: str) -> str:
    """Run one job, unless it is done or the sweep is to stop; how it ended."""
    label = f"{number}: {job.name}"
    if job.finished:
        progress.skip(job)
        say(f"{label}: finished before")
        return "finished before"
    if crew.signum:
        return "not started"
    progress.start(job)
    if sys.stdout.isatty():
        say(f"{label}: starts")
    before = job.failure
    alone = [] if crew.size == 1 else ["runtime.progress=false"]  # bars would mix on a terminal
    end = ending(*crew.run([*command(job), *alone]), job, before)
    say(f"{label}: {end} after {progress.end(job, end):.0f} s; {progress}")
    return end


class Progress:
    """Jobs done and running, and how long the rest takes if it is like what has run so far."""

    def __init__(self, jobs: int, at_once: int):
        self.jobs, self.at_once = jobs, at_once
        self._began: dict[Path, float] = {}
        self._took: list[float] = []
        self._done: set[Path] = set()

    def start(self, job: Job) -> None:
        """A job starts now."""
        self._began[job.path] = time.monotonic()

    def end(self, job: Job, how: str) -> float:
        """A job ended now; the seconds it took. Only a finished one says how long others take."""
        took = time.monotonic() - self._began.pop(job.path)
        if how == FINISHED:
            self._took.append(took)
        if how != ELSEWHERE:
            self._done.add(job.path)
        return took

    def skip(self, job: Job) -> None:
        """A job was done before."""
        self._done.add(job.path)

    def __str__(self) -> str:
        started = list(self._began.values())  # at once: other threads start and end jobs
        said = f"{len(self._done)} of {self.jobs} done, {len(started)} running"
        left = self.jobs - len(self._done)
        if not left or not self._took:
            return said
        mean, now = fmean(self._took), time.monotonic()
        running = [max(0.0, mean - (now - began)) for began in started]
        waiting = mean * (left - len(running))
        return f"{said}, about {_span((sum(running) + waiting) / min(self.at_once, left))} left"


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


class Crew:
    """Up to so many processes at a time. What asks the sweep to stop is handed on to all."""

    def __init__(self, size: int):
        self.size, self.signum = size, 0
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
