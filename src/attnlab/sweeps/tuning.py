"""Each arm at its own learning rate: trials on seeds of their own, then the sweep at the best.

An arm is what was typed for a job, without its seed. It is tried at every rate of the grid on
every tuning seed; the rate with the best mean validation metric is its own. With `tune.extend` an
arm whose best rate is at the edge of its grid is tried beyond it, until a worse rate follows. Then
the sweep's jobs run as they are, at one common rate, and once more at each arm's own, on the
sweep's seeds, none of which is a tuning seed. All of it follows from the runs' result.json: the
same command resumes it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from attnlab.config.measures import OF_KIND, Measure
from attnlab.config.tuning import Tuning, is_tuning
from attnlab.errors import BadInput
from attnlab.runs.folder import RunFolder
from attnlab.sweeps.jobs import FAILED, Job, compose_jobs, say

EXTENSIONS = 8  # of one arm's grid at most; then its best rate stays at the edge
MARK = "runtime.tuning=true"  # in the trials' configurations, for reports


@dataclass(frozen=True)
class Choice:
    """The best rate, and whether it is the smallest or largest of the grid, so that a better one
    may lie beyond.
    """

    rate: float
    at_edge: bool


def choose(response: Mapping[float, Sequence[float]], measure: Measure) -> Choice | None:
    """The rate with the best mean over the tuning seeds. response: rate -> validation value
    of each seed, nan for a run that diverged; a rate at which one did is not chosen.
    None if that leaves no rate. Of equal rates the smallest.
    """
    finite = {rate: v for rate, v in response.items() if v and all(map(math.isfinite, v))}
    means = {rate: fmean(values) for rate, values in finite.items()}
    if not means:
        return None
    rate = max(sorted(means), key=lambda rate: measure.sign * means[rate])
    return Choice(rate, rate in (min(response), max(response)))


def tune(jobs: list[Job], tuning: Tuning, run: Callable[[list[Job]], int]) -> int:
    """Run the trials of all arms, choose, and run the sweep; its exit code. run: runs a list of
    jobs. Trials that are stopped by a loss that is not finite are a result and no failure.

    Errors: `BadInput`, before anything is run, if the sweep has several rates itself, a tuning
    seed is one of its seeds, or checkpoints are selected on the test split.
    """
    rates = {o for job in jobs for o in job.overrides if o.startswith("trainer.lr=")}
    if len(rates) > 1:
        raise BadInput(f"{', '.join(sorted(rates))}: tune=lr chooses among rates; give it one")
    if any(job.cfg.trainer.select_on == "test" for job in jobs):
        raise BadInput("trainer.select_on=test: a learning rate is chosen on validation")
    if both := sorted({job.cfg.seed for job in jobs} & set(tuning.seeds)):
        raise BadInput(
            f"tune.seeds={tuning.seeds}: seed {both[0]} is also a seed of the sweep; a seed that "
            "chose a learning rate cannot count as evidence"
        )
    arms: dict[tuple[str, ...], list[Job]] = {}
    for job in jobs:
        arms.setdefault(_arm(job), []).append(job)
    trials = {arm: _trials(arm, members[0], tuning) for arm, members in arms.items()}
    own: dict[tuple[str, ...], Choice] = {}
    for last in range(EXTENSIONS + 1):
        listed = [job for rates in trials.values() for row in rates.values() for job in row]
        left = [job for job in listed if not diverged(job)]
        code = run(left) if left else 0
        if code not in (0, FAILED):
            return code
        for arm in [arm for arm in arms if arm not in own]:
            found = _choose(arm, trials[arm])
            if found is None:
                return FAILED
            if not found.at_edge or tuning.extend is None or last == EXTENSIONS:
                own[arm] = found
                continue
            up = found.rate == max(trials[arm])
            beyond = _rounded(found.rate * tuning.extend if up else found.rate / tuning.extend)
            trials[arm][beyond] = _tried_at(arm, beyond, tuning)
        if len(own) == len(arms):
            break
    chosen = [_at(arm, job.cfg.seed, own[arm].rate) for arm in arms for job in arms[arm]]
    return run(list({job.path: job for job in (*jobs, *chosen)}.values()))


def without_tuning(job_overrides: Sequence[Sequence[str]]) -> list[list[str]]:
    """What is typed for the jobs, without what is about tuning."""
    return [[o for o in overrides if not is_tuning(o)] for overrides in job_overrides]


def _arm(job: Job) -> tuple[str, ...]:
    return tuple(o for o in job.overrides if not o.startswith("seed="))


def _trials(arm: tuple[str, ...], job: Job, tuning: Tuning) -> dict[float, list[Job]]:
    """Rate -> a job for each tuning seed."""
    lr = job.cfg.trainer.lr
    rates = sorted(lr if f == 1 else _rounded(f * lr) for f in tuning.factors)
    return {rate: _tried_at(arm, rate, tuning) for rate in rates}


def _tried_at(arm: tuple[str, ...], rate: float, tuning: Tuning) -> list[Job]:
    return [_at(arm, seed, rate, MARK) for seed in tuning.seeds]


def _rounded(rate: float) -> float:
    return float(f"{rate:.6g}")


def _at(arm: tuple[str, ...], seed: int, rate: float, *more: str) -> Job:
    kept = [o for o in arm if not o.startswith("trainer.lr=")]
    (job,) = compose_jobs([[*kept, f"seed={seed}", f"trainer.lr={rate!r}", *more]])
    return job


def _choose(arm: tuple[str, ...], trials: dict[float, list[Job]]) -> Choice | None:
    """Print an arm's response and its own rate; None, said as well, if there is none yet."""
    name = " ".join(o for o in arm if o.startswith(("model", "setting", "arch", "data"))) or "arm"
    measure = OF_KIND[next(iter(trials.values()))[0].cfg.data.kind][0]
    response = {rate: [_validated(job, measure) for job in row] for rate, row in trials.items()}
    if any(value is None for values in response.values() for value in values):
        say(f"{name}: trials are not finished; the same command continues")
        return None
    found = choose(response, measure)
    if found is None:
        say(f"{name}: at every rate a trial diverged; tune.factors needs smaller ones")
        return None
    means = ", ".join(f"{rate:g}: {fmean(values):.5g}" for rate, values in response.items())
    edge = ", at the grid's edge: a better one may lie beyond" if found.at_edge else ""
    say(f"{name}: trainer.lr={found.rate:g}{edge} (mean validation {measure.name}: {means})")
    return found


def diverged(job: Job) -> bool:
    """Whether a loss that is not finite has stopped it: it would again."""
    return not job.finished and bool(job.failure) and job.failure[1].startswith("NonFinite")


def _validated(job: Job, measure: Measure) -> float | None:
    """A trial's best validation metric; nan if it diverged, None if it is not finished."""
    result = RunFolder(job.path, job.cfg).result
    if result is not None:
        value = result[f"best/val/{measure.name}"]
        return math.nan if value is None else value  # collected runs have null for nan
    return math.nan if diverged(job) else None
