"""What tune=lr found: every arm's response to the learning rate, and the effects at one common
rate beside those at each arm's own.

Trials choose a rate and do nothing else: a run with a seed of theirs is in no effect.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from attnlab.config.measures import Measure
from attnlab.report import naming, statistics
from attnlab.report.collect import Run
from attnlab.report.compare import Arm, arms_of, baseline_of, same_data, samples_tested, shared
from attnlab.report.statistics import Effect
from attnlab.sweeps.tuning import Choice, choose

RATE = "trainer.lr"
Values = dict[int, float]  # seed -> test metric


@dataclass
class Tuned:
    """One arm. response: rate -> validation metric of its trials. own: the rate that they choose,
    None where they choose none; why_none: the reason. fresh: rate -> the runs with seeds that
    are not for tuning.
    """

    arm: Arm
    response: dict[float, Values]
    own: Choice | None
    why_none: str
    fresh: dict[float, Arm]

    def at(self, rate: float | None) -> Values:
        """Test metric of the fresh seeds at a rate."""
        return self.fresh[rate].values if rate in self.fresh else {}


@dataclass
class Tuning:
    """Arms whose runs agree in everything but arm, seed and learning rate. common: the rate of
    `shared` with most runs; None without one. at_common, at_own: effects over the dot product by
    label. registered: label -> the question that judges its effect at own rates.
    """

    title: str
    slug: str
    measure: Measure
    seeds: list[int]
    arms: list[Tuned]
    common: float | None
    at_common: dict[str, Effect]
    at_own: dict[str, Effect]
    registered: dict[str, str] = field(default_factory=dict)

    @property
    def rates(self) -> list[float]:
        """Of all trials, rising."""
        return sorted({rate for tuned in self.arms for rate in tuned.response})

    @property
    def shared(self) -> set[float]:
        """The rates at which all arms have been run, no trials."""
        return _shared_rates(self.arms)

    @property
    def at_own_rates(self) -> list[Run]:
        """The runs, no trials, of every arm at the rate that its trials chose."""
        return [
            run
            for tuned in self.arms
            if tuned.own and tuned.own.rate in tuned.fresh
            for run in tuned.fresh[tuned.own.rate].runs
        ]


def tunings(runs: Iterable[Run]) -> tuple[list[Tuning], list[Run]]:
    """All tunings, and the runs to be compared as ever: all but trials, runs with a tuning seed,
    and those at an own rate at which not all arms were run.
    """
    groups: dict[str, list[Run]] = {}
    rest = []
    for run in runs:
        if run.status == "unreadable":
            rest.append(run)
        else:
            groups.setdefault(naming.frozen(_all_but_rate(run)), []).append(run)
    tuned = [group for group in groups.values() if any(map(_is_trial, group))]
    titles = naming.titles([_all_but_rate(group[0]) for group in tuned])
    slugs = naming.slugs(f"tuning {title}" for title in titles)
    found = [_tuning(*each) for each in zip(titles, slugs, tuned, strict=True)]
    rest += [run for group in groups.values() if group not in tuned for run in group]
    for tuning, group in zip(found, tuned, strict=True):
        alone = (run for run in tuning.at_own_rates if run.config[RATE] not in tuning.shared)
        chosen = {run.folder for run in alone}
        kept = (run for run in group if run.config["seed"] not in tuning.seeds)
        rest += [run for run in kept if run.folder not in chosen]
    return found, rest


def _all_but_rate(run: Run) -> dict[str, Any]:
    return {key: value for key, value in shared(run.config).items() if key != RATE}


def _is_trial(run: Run) -> bool:
    return run.config["runtime.tuning"]


def _tuning(title: str, short: str, group: list[Run]) -> Tuning:
    seeds = sorted({run.config["seed"] for run in group if _is_trial(run)})
    measure = group[0].measure
    groups = arms_of(group)
    tried = {arm: rates for arm in groups if (rates := _tried(arm))}
    arms = [
        _tuned(arm, seeds, [tried[other] for other in tried if other is not arm], measure)
        for arm in groups
    ]
    common = _common(arms)
    fresh = [run for run in group if run.value is not None and run.config["seed"] not in seeds]
    at = {
        "common": {t.arm.label: t.at(common) for t in arms},
        "own": {t.arm.label: t.at(t.own.rate) if t.own else {} for t in arms},
    }
    baseline = baseline_of(groups)

    def effects(values: dict[str, Values]) -> dict[str, Effect]:
        if baseline is None or not same_data(fresh):
            return {}
        dot = values.pop(baseline.label)
        return statistics.compare(values, dot, measure, samples_tested(fresh))

    effects_at = {name: effects(values) for name, values in at.items()}
    return Tuning(
        title, short, measure, seeds, arms, common, effects_at["common"], effects_at["own"]
    )


def _shared_rates(arms: list[Tuned]) -> set[float]:
    """The rates at which every arm that was run has runs."""
    found = ({rate for rate in tuned.fresh if tuned.at(rate)} for tuned in arms)
    run = [rates for rates in found if rates]
    return set.intersection(*run) if run else set()


def _common(arms: list[Tuned]) -> float | None:
    """Of the shared rates the one with most runs; of several one that no arm chose."""
    own = {tuned.own.rate for tuned in arms if tuned.own}
    run = [tuned for tuned in arms if tuned.fresh]
    rates = sorted(_shared_rates(arms))
    counts = {rate: sum(len(tuned.at(rate)) for tuned in run) for rate in rates}
    return max(counts, key=lambda rate: (counts[rate], rate not in own), default=None)


def _tried(arm: Arm) -> set[float]:
    return {run.config[RATE] for run in arm.runs if _is_trial(run)}


def _cut_short(rate: float, tried: set[float], others: list[set[float]]) -> bool:
    """Whether the best rate is the last one of the arm, and most other arms were tried beyond it:
    so a sweep leaves it that was stopped. Where the best one is not the last, others may have been
    tried at more rates because theirs was.
    """
    highest, lowest = rate == max(tried), rate == min(tried)
    beyond = (
        any((highest and other > rate) or (lowest and other < rate) for other in rates)
        for rates in others
    )
    return 2 * sum(beyond) > len(others)


def _tuned(arm: Arm, seeds: list[int], others: list[set[float]], measure: Measure) -> Tuned:
    """others: the rates of every other arm that was tried."""
    response: dict[float, Values] = {}
    fresh: dict[float, list[Run]] = {}
    for run in arm.runs:
        rate, seed = run.config[RATE], run.config["seed"]
        if seed not in seeds:
            fresh.setdefault(rate, []).append(run)
        elif run.status == "finished" or run.cause.startswith("NonFinite"):
            validated = run.result.get(f"best/val/{measure.name}", math.nan)
            response.setdefault(rate, {}).setdefault(seed, validated)
    # a run that was there before the trials is taken for one of them, by the sweep as well
    there = {rate for rate, found in response.items() if len(found) == len(seeds)}
    tried = _tried(arm) | there
    values = {rate: list(response.get(rate, {}).values()) for rate in sorted(tried)}
    own, why_none = choose(values, measure), ""
    if not tried:
        why_none = "no trials"
    elif tried != there:
        why_none = "trials unfinished"
    elif own is None:
        why_none = "diverged at every rate"
    elif _cut_short(own.rate, tried, others):
        why_none = "to be tried at more rates, as the others were"
    own = None if why_none else own
    at = {rate: Arm(arm.label, arm.own, arm.ablation, runs) for rate, runs in fresh.items()}
    return Tuned(arm, response, own, why_none, at)
