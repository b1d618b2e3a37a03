"""Jobs of a sweep: what is typed for each, what that means, what runs it and how it ended."""

import signal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from attnlab.config.compose import compose_config, plain, run_path
from attnlab.config.measures import OF_KIND
from attnlab.config.messages import validate
from attnlab.config.schema import Config
from attnlab.errors import FolderInUse
from attnlab.runs.environment import other_source
from attnlab.runs.folder import RunFolder
from attnlab.sweeps.python import python

FAILED = 1  # exit code of a sweep in which a job failed
UNNAMED = ("experiment=", "hydra.", "launcher=")  # overrides that do not tell jobs apart
FINISHED = "finished"
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
        return " ".join(self.named)

    @property
    def named(self) -> list[str]:
        """The overrides that can tell jobs apart."""
        return [o for o in self.overrides if not o.startswith(UNNAMED)]

    @property
    def finished(self) -> bool:
        """Whether result.json says so, of data that lies where it lay: else the run itself looks
        whether it is the same.
        """
        folder = RunFolder(self.path, self.cfg)
        return folder.result is not None and not folder.moved

    @property
    def score(self) -> str:
        """What its result is compared in, or nothing."""
        key = f"test/{OF_KIND[self.cfg.data.kind][0].name}"
        value = (RunFolder(self.path, self.cfg).result or {}).get(key)
        return "" if value is None else f"{key} {value:.5g}"

    @property
    def failure(self) -> tuple[int, str] | None:
        """When failed.txt was written, and its first line."""
        file = self.path / "failed.txt"
        if not file.is_file():
            return None
        return file.stat().st_mtime_ns, file.read_text().strip().partition("\n")[0]


def compose_jobs(job_overrides: Iterable[Sequence[str]]) -> list[Job]:
    """Jobs by their overrides; one of those with the same run folder, as in seed=0,0. Errors:
    `BadInput`, also where a run folder holds another run; those of Hydra.
    """
    jobs: dict[Path, Job] = {}
    for overrides in job_overrides:
        composed = compose_config(list(overrides))
        cfg = validate(plain(composed))
        path = run_path(cfg, composed.hydra.run.dir)
        RunFolder(path, cfg).check_usable()
        jobs.setdefault(path, Job(tuple(overrides), cfg, path))
    return list(jobs.values())


def with_baselines(jobs: list[Job]) -> list[Job]:
    """The jobs, and one of dot_product for each that has none: what an ablation is compared to."""
    wanted = {job.path: job for job in jobs}
    for job in jobs:
        rest = [o for o in job.overrides if not o.lstrip("+").startswith(("model=", "model."))]
        (baseline,) = compose_jobs([[*rest, "model=dot_product"]])
        wanted.setdefault(baseline.path, baseline)
    return list(wanted.values())


def command(job: Job) -> list[str]:
    """What runs the job in a process of its own."""
    return [*python("attnlab"), "train", *job.overrides, "hydra.mode=RUN"]


def ending(code: int, reason: str, job: Job, before: tuple[int, str] | None) -> str:
    """How a job's process ended, by its exit code and what it said. before: an earlier one's
    failure.
    """
    if code == 0:
        return FINISHED
    if code == FolderInUse.exit_code:
        return ELSEWHERE
    failure = job.failure
    if not reason and failure and failure != before:
        reason = failure[1]
    what = f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"
    return f"{what} ({reason})" if reason else what


def summarize(jobs: list[Job], ends: list[str], signum: int = 0) -> int:
    """Print the table of a sweep's jobs and how each ended; returns the sweep's exit code."""
    shared = set.intersection(*(set(job.overrides) for job in jobs)) if len(jobs) > 1 else set()
    own = [" ".join(o for o in job.named if o not in shared) for job in jobs]
    wide = max(map(len, own))
    for end, job, name in zip(ends, jobs, own, strict=True):
        say(f"  {end:15}  {name:{wide}}  {job.score:22}  {job.path}")
    elsewhere = ends.count(ELSEWHERE)
    finished = sum(end.startswith("finished") for end in ends)
    say(
        f"sweep: {finished} of {len(jobs)} finished" + f", {elsewhere} elsewhere" * bool(elsewhere)
    )
    if changed := list(filter(None, (other_source(job.path) for job in jobs if job.finished))):
        say(f"sweep: of other code than this: {len(changed)}; {changed[0]}")
    if signum:
        say("sweep stopped; the same command continues")
        return 128 + signum
    if finished + elsewhere < len(jobs):
        return FAILED
    return FolderInUse.exit_code if elsewhere else 0


def say(line: str) -> None:
    """Print a line at once, also where stdout is a file."""
    print(line, flush=True)
