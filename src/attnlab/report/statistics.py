"""Means, intervals and verdicts over seeds.

Everything is a t-interval or a t-test over seeds: it is about the spread that seeds make (initial
values, order of data, dropout), and assumes that effects over seeds are roughly normal. A
published effect is taken as exact: the paper gives no spread of its own.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache
from statistics import fmean, stdev  # exact: equal values have a spread of exactly 0
from typing import Literal

from scipy import stats

BASELINE = "dot_product"
ALPHA = 0.05
MAX_SEEDS = 1000  # nobody trains more; beyond it `Verdict.needed` is None

Metric = Literal["perplexity", "accuracy"]
UNIT: dict[Metric, str] = {"perplexity": "%", "accuracy": "points"}


@dataclass(frozen=True)
class Summary:
    """n values, their mean and sd (n - 1 below), and the t-interval of the mean.

    Unit: that of the values. A single run (n = 1) has no sd, low and high: None.
    """

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Effect(Summary):
    """Effect of an arm over the dot product, positive if the arm is better.

    unit: "%" (perplexity lower by) or "points" (accuracy higher by, of 100).
    level: of the interval, 0.95 for one compared arm.
    p: two-sided, of the paired t-test; None for a single run.
    p_holm: p corrected for all arms of the comparison; for a single compared arm it is p.
    """

    unit: str
    level: float
    p: float | None
    p_holm: float | None


@dataclass(frozen=True)
class Verdict:
    """One word, the plain reason with the numbers, and how many seeds would decide.

    needed: for an open verdict, a projection from the mean and sd measured so far; None if more
        than 1000 would be needed, if there is no sd yet, or if it is decided.
    """

    word: str
    reason: str
    needed: int | None = None


def summarize(values: Sequence[float], level: float = 1 - ALPHA) -> Summary:
    """Mean, sd and t-interval of `values`. Errors: ValueError if none, or one is not finite."""
    if not all(map(math.isfinite, values)):
        raise ValueError(f"values must be finite, not {list(values)}")
    n, mean = len(values), fmean(values)
    if n == 1:
        return Summary(n, mean, None, None, None)
    sd = stdev(values)
    half = sd * _half_width(n, level)
    return Summary(n, mean, sd, mean - half, mean + half)


def paired_effect(
    arm: Mapping[int, float],
    dot: Mapping[int, float],
    metric: Metric,
    level: float = 1 - ALPHA,
) -> Effect:
    """Effect of `arm` over `dot`, each a dict of seed -> perplexity, or accuracy from 0 to 1.

    Only seeds of both count: they share data order and initial values, so their difference has
    less noise than either. Errors: ValueError if they have no seed in common.
    """
    unit, seeds = UNIT[metric], arm.keys() & dot.keys()
    if metric == "perplexity":
        effects = [100 * (1 - arm[seed] / dot[seed]) for seed in seeds]
    else:
        effects = [100 * (arm[seed] - dot[seed]) for seed in seeds]
    summary = summarize(effects, level)
    p = _p_value(summary)
    return Effect(*astuple(summary), unit=unit, level=level, p=p, p_holm=p)


def compare(runs: Mapping[str, Mapping[int, float]], metric: Metric) -> dict[str, Effect]:
    """Effect of every arm with a seed in common with dot_product; `runs`: arm -> seed -> value.

    Holm for p: never weaker than Bonferroni. Bonferroni for intervals: Holm has no simple ones,
    and these hold for all k arms at once. So p_holm < 0.05 may stand beside an interval with 0.
    """
    dot = runs.get(BASELINE, {})
    seeds = {arm: len(runs[arm].keys() & dot.keys()) for arm in runs if arm != BASELINE}
    k = sum(n > 1 for n in seeds.values())  # a single run is not tested, so it costs nothing
    level = 1 - ALPHA / max(k, 1)
    effects = {arm: paired_effect(runs[arm], dot, metric, level) for arm, n in seeds.items() if n}
    p_holm = holm({arm: effect.p for arm, effect in effects.items() if effect.p is not None})
    return {arm: replace(effect, p_holm=p_holm.get(arm)) for arm, effect in effects.items()}


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


def verdict(effect: Effect, published: float | None) -> Verdict:
    """What the interval says about the published effect (same unit, above 0; None: not known).

    reproduced: above 0, and contains or exceeds the published effect. contradicted: all of it
    below the published effect, be it above 0 or not. undecided: contains 0 and the published one.
    Nothing published: better, worse, no difference shown. n = 1: single run.
    """
    if effect.sd is None:
        reason = f"{effect.mean:+.3g} {effect.unit} on one seed; its spread is unknown"
        return Verdict("single run", reason)
    against = _against_zero(effect) if published is None else _against_published(effect, published)
    word, clause, margin = against
    return Verdict(word, f"{_measured(effect)} {clause}", _seeds_needed(effect, margin))


# Each gives the word, the rest of the reason and, for an open verdict, the margin: the interval
# decides as soon as its half-width is below it.


def _against_published(e: Effect, published: float) -> tuple[str, str, float | None]:
    claim = f"the published {published:+.3g} {e.unit}"
    if e.high < published:
        side = ", though above 0" if e.low > 0 else ", and below 0" if e.high < 0 else ""
        return "contradicted", f"is below {claim}{side}", None
    if e.low > 0:
        relation = "exceeds" if e.low > published else "contains"
        return "reproduced", f"is above 0 and {relation} {claim}", None
    return "undecided", f"contains both 0 and {claim}", max(e.mean, published - e.mean)


def _against_zero(e: Effect) -> tuple[str, str, float | None]:
    if e.low > 0:
        return "better", "is above 0", None
    if e.high < 0:
        return "worse", "is below 0", None
    return "no difference shown", "contains 0", abs(e.mean)


def _measured(e: Effect) -> str:
    if math.isclose(e.low, e.high):  # by chance, or in coarse steps: the reader should know
        return f"{e.mean:+.3g} {e.unit}, the same on all {e.n} seeds,"
    interval = f"{100 * e.level:.4g} % interval {e.low:+.3g} to {e.high:+.3g}"
    return f"{e.mean:+.3g} {e.unit} over {e.n} seeds, {interval}"


def _seeds_needed(e: Effect, margin: float | None) -> int | None:
    if margin is None:
        return None
    more = range(e.n + 1, MAX_SEEDS + 1)
    return next((n for n in more if e.sd * _half_width(n, e.level) < margin), None)


@cache
def _half_width(n: int, level: float) -> float:
    """Of the t-interval of a mean of n values, in units of their sd."""
    return float(stats.t.ppf((1 + level) / 2, n - 1)) / math.sqrt(n)


def _p_value(s: Summary) -> float | None:
    if s.sd is None:
        return None
    if s.sd == 0:  # the t-test's limit; 0 / 0 would be nan
        return 1.0 if s.mean == 0 else 0.0
    return float(2 * stats.t.sf(math.sqrt(s.n) * abs(s.mean) / s.sd, s.n - 1))
