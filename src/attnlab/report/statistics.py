"""Means, intervals and effects over seeds.

Everything is a t-interval or a t-test over seeds: it is about the spread that seeds make (initial
values, order of data, dropout), and assumes that effects over seeds are roughly normal. A
published effect is taken as exact: the paper gives no spread of its own.

Accuracy comes in steps of one test sample, so a few seeds can agree by chance: two images of 359
on each of two seeds have a spread of exactly 0 and would decide anything. `sampling_error` is
therefore a floor under the standard error. Where none is known, a spread of 0 decides nothing.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from statistics import fmean, stdev  # exact: equal values have a spread of exactly 0

import numpy as np
from scipy import stats

from attnlab.config.measures import ACCURACY, Measure

ALPHA = 0.05
POWER = 0.9
MAX_SEEDS = 1000  # nobody trains more; a number of seeds beyond it is None
SPREADS = 400  # equally likely ones, over which a power is a mean
ROUNDING = 1e-9  # in units of an effect; values this near are equal


@dataclass(frozen=True)
class Summary:
    """n values, their mean and sd (n - 1 below), and the t-interval of the mean.

    Unit: that of the values. A single run (n = 1) has no sd, low and high: None. Nor has an
    `Effect` that is the same on all seeds, where nothing else is known of its error.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Effect(Summary):
    """Effect of an arm over a control, often the dot product; positive if the arm is better.

    unit: that of the `Measure`: "%" (perplexity lower by), "points" (accuracy higher by, of 100),
    or "BLEU" (higher by).
    level: of the interval, 0.95 for one compared arm.
    p: two-sided, of the paired t-test; None without sd.
    p_holm: p corrected for all arms of the comparison; for a single compared arm it is p.
    floor: the least standard error of the mean, see `sampling_error`.
    """

    unit: str
    level: float
    p: float | None
    p_holm: float | None
    floor: float = 0.0

    @property
    def error(self) -> float:
        """Standard error of the mean; needs an sd."""
        return max(self.sd / math.sqrt(self.n), self.floor)

    @property
    def half_width(self) -> float:
        return self.error * quantile(self.n, self.level)


def summarize(
    values: Sequence[float], level: float = 1 - ALPHA, within: tuple[float, float] | None = None
) -> Summary:
    """Mean, sd and t-interval of `values`; the interval ends where possible values do (`within`).

    Errors: ValueError if there are none, or one is not finite.
    """
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values must be finite, not {list(values)}")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Summary(n, mean, None, None, None)
    sd = stdev(values)
    half = sd / math.sqrt(n) * quantile(n, level)
    low, high = within or (-math.inf, math.inf)
    return Summary(n, mean, sd, max(low, mean - half), min(high, mean + half))


def per_seed(
    arm: Mapping[int, float], control: Mapping[int, float], measure: Measure
) -> dict[int, float]:
    """Seed -> effect of `arm` over `control`, each a dict of seed -> value, in the unit of
    the measure.

    Only seeds of both count: they share data order and initial values, so their difference has
    less noise than either.
    """
    seeds = sorted(arm.keys() & control.keys())
    return {seed: measure.difference(arm[seed], control[seed]) for seed in seeds}


def sampling_error(mean: float, samples: int) -> float:
    """The least standard error of one seed's effect of `mean` points on a test split of so many
    samples, which are counted as independent, as images are.

    Both arms answer the same samples. With b that only one of them gets right and c that only the
    other does, the effect is (b - c) / samples, and McNemar (1947) tests it with the error
    sqrt(b + c) / samples. b and c are not stored, but b + c is at least |b - c|, and at least 1
    where an accuracy could have come out otherwise.

    For the mean over seeds it is a caution and no bound: all seeds are tested on the same samples,
    so a small spread over seeds does not show a small error. Where the seeds err on different
    samples, the error of their mean is smaller.
    """
    return 100 * math.sqrt(max(abs(mean) / 100 * samples, 1)) / samples


def paired_effect(
    arm: Mapping[int, float],
    control: Mapping[int, float],
    measure: Measure,
    level: float = 1 - ALPHA,
    samples: int | None = None,
) -> Effect:
    """Effect of `arm` over `control` (see `per_seed`), for an accuracy over so many `samples`.

    Errors: ValueError if they have no seed in common.
    """
    values = list(per_seed(arm, control, measure).values())
    floor = sampling_error(fmean(values), samples) if samples and values else 0.0
    most = math.inf if measure.unit == "%" else measure.factor * (measure.high - measure.low)
    return effect_of(values, measure.unit, level, floor if measure is ACCURACY else 0.0, most)


def effect_of(
    values: Sequence[float],
    unit: str,
    level: float,
    floor: float = 0.0,
    most: float = math.inf,
) -> Effect:
    """The effect with these values over seeds, whose standard error is at least `floor`, and whose
    size cannot be more than `most`.

    Errors: ValueError if there are no values, or one is not finite.
    """
    s = summarize(values, level)
    if s.sd is None or (floor == 0 and s.sd <= ROUNDING * max(1, abs(s.mean))):
        return Effect(s.n, s.mean, None, None, None, unit, level, p=None, p_holm=None)
    effect = Effect(s.n, s.mean, s.sd, None, None, unit, level, None, None, floor)
    low = max(-most, s.mean - effect.half_width)
    high = min(most, s.mean + effect.half_width)
    p = float(2 * stats.t.sf(abs(s.mean) / effect.error, s.n - 1))
    return replace(effect, low=low, high=high, p=p, p_holm=p)


def compare(
    runs: Mapping[str, Mapping[int, float]],
    control: Mapping[int, float],
    measure: Measure,
    samples: int | None = None,
) -> dict[str, Effect]:
    """Effect over the control (seed -> value) of every arm with a seed in common; `runs`: arm ->
    seed -> value, for an accuracy over so many test `samples`.

    Holm for p: never weaker than Bonferroni. Bonferroni for intervals: Holm has no simple ones,
    and these hold for all k arms at once. So p_holm < 0.05 may stand beside an interval with 0.
    """
    seeds = {arm: len(values.keys() & control.keys()) for arm, values in runs.items()}
    k = sum(n > 1 for n in seeds.values())  # a single run is not tested, so it costs nothing
    level = 1 - ALPHA / max(k, 1)
    effects = {
        arm: paired_effect(runs[arm], control, measure, level, samples)
        for arm, n in seeds.items()
        if n
    }
    p_holm = holm({arm: effect.p for arm, effect in effects.items() if effect.p is not None})
    return {arm: replace(effect, p_holm=p_holm.get(arm)) for arm, effect in effects.items()}


def sd_interval(sd: float, n: int) -> tuple[float, float]:
    """95 % interval of the true standard deviation, where n normal values have this one."""
    low, high = stats.chi2.ppf((1 - ALPHA / 2, ALPHA / 2), n - 1)
    return sd * math.sqrt((n - 1) / low), sd * math.sqrt((n - 1) / high)


def share_interval(k: int, n: int) -> tuple[float, float]:
    """Exact (Clopper-Pearson) 95 % interval of a share of which k of n were seen, 0 to 1."""
    interval = stats.binomtest(k, n).proportion_ci(1 - ALPHA, method="exact")
    return float(interval.low), float(interval.high)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Holm's step-down adjusted p values (Scandinavian Journal of Statistics 6, 1979)."""
    adjusted, floor = {}, 0.0
    for rank, arm in enumerate(sorted(p_values, key=p_values.__getitem__)):
        floor = max(floor, min(1.0, (len(p_values) - rank) * p_values[arm]))
        adjusted[arm] = floor
    return adjusted


def equivalent(effect: Effect, smallest: float) -> bool:
    """Whether the effect is shown to be smaller than the smallest effect of interest, in either
    direction: two one-sided t-tests (Schuirmann 1987), each at half of 1 - level.

    That is the same as an interval, the one that is shown, between -smallest and +smallest. Arms
    that differ by the smallest effect or more are called equivalent with a probability of at most
    (1 - level) / 2.
    """
    return effect.sd is not None and -smallest < effect.low and effect.high < smallest


def planned_seeds(sd: float, smallest: float, level: float, floor: float = 0.0) -> int | None:
    """How many seeds call equal arms equivalent with a probability of 90 %, where a pilot has
    shown this spread of paired effects; they also tell an effect of the smallest size from 0. None
    if more than 1000 would be needed.

    A pilot of few seeds knows its spread only roughly (`sd_interval`).
    """
    return _fewest(lambda n: 2 * _room(n, sd, smallest, level, floor) - 1, 2)


def seeds_to_decide(effect: Effect, margin: float) -> int | None:
    """How many seeds, more than there are, let the interval end before a bound with a probability
    of 90 %, if the mean stays at this distance from the bound and the spread as it is. None if
    more than 1000 would be needed.
    """
    e = effect
    return _fewest(lambda n: _room(n, e.sd, margin, e.level, e.floor), e.n + 1)


def _fewest(power: Callable[[int], np.ndarray], start: int) -> int | None:
    """The first number of seeds whose power is enough; power: one for each of the spreads that
    they may show (`_room`), rising with their number.
    """
    listed = range(start, MAX_SEEDS + 1)
    at = bisect_left(listed, POWER, key=lambda n: float(np.maximum(0, power(n)).mean()))
    return listed[at] if at < len(listed) else None


def _room(n: int, sd: float, margin: float, level: float, floor: float) -> np.ndarray:
    """For each of the spreads that n seeds may show, equally likely ones: how probable it is that
    an interval around a mean at this distance from a bound does not reach it (Phillips 1990).
    """
    shares = (np.arange(SPREADS) + 0.5) / SPREADS
    seen = sd * np.sqrt(stats.chi2.ppf(shares, n - 1) / (n - 1))
    error, true = (np.maximum(s / math.sqrt(n), floor) for s in (seen, sd))
    if true == 0:
        return np.ones(SPREADS)
    return stats.norm.cdf((margin - quantile(n, level) * error) / true)


@cache
def quantile(n: int, level: float) -> float:
    """Of Student's t for the interval of a mean of n values, in units of its standard error."""
    return float(stats.t.ppf((1 + level) / 2, n - 1))
