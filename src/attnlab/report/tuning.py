"""What tune=lr found: every arm's response to the learning rate, and the effects at one common
rate beside those at each arm's own.

Trials choose a rate and do nothing else: a run with a seed of theirs is in no effect.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from attnlab.config.measures import PERPLEXITY, Measure
from attnlab.report import naming, statistics
from attnlab.report.collect import Run
from attnlab.report.compare import (
    Arm,
    arms_of,
    baseline_of,
    fingerprints,
    same_data,
    samples_tested,
    shared,
)
from attnlab.report.curves import MOST_ARMS, Curve, Curves, style
from attnlab.report.run_notes import DIFFERENT, code_changes, failures, repeats
from attnlab.report.statistics import Effect
from attnlab.report.tables import DASH, Table, effect_text
from attnlab.sweeps.tuning import Choice, choose

RATE = "trainer.lr"
WIDE = 2  # perplexities that span more are drawn on a logarithmic axis
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


def table(tuning: Tuning) -> Table:
    """A row for every arm: its response, its own rate, and its effects at both rates."""
    common = DASH if tuning.common is None else f"{tuning.common:g}"
    columns = {
        "model": "text",
        **{f"validation at {rate:g}": "number" for rate in tuning.rates},
        "own rate": "text",
        f"effect at the common rate, {common}": "number",
        "effect at own rates": "number",
        "seeds": "number",
    }
    return Table(columns, [_row(tuning, tuned) for tuned in tuning.arms])


def _row(tuning: Tuning, tuned: Tuned) -> list[str]:
    responses = [_mean(tuned.response.get(rate, {}), tuning.measure) for rate in tuning.rates]
    own = tuned.why_none
    if tuned.own:
        own = f"{tuned.own.rate:g}" + (" (edge of the grid)" if tuned.own.at_edge else "")
    label = tuned.arm.label
    effects = [_effect(e.get(label)) for e in (tuning.at_common, tuning.at_own)]
    if asked := tuning.registered.get(label):
        elsewhere = f"see question {asked}"  # whose interval is another one
        effects = [elsewhere if tuned.own.rate == tuning.common else effects[0], elsewhere]
    if tuned.arm is baseline_of([t.arm for t in tuning.arms]):
        effects = ["baseline", "baseline"]
    n = len(tuned.at(tuned.own.rate)) if tuned.own else 0
    return [label, *responses, own, *effects, str(n)]


def _mean(response: Values, measure: Measure) -> str:
    values = list(response.values())
    if not values:
        return DASH
    if any(map(math.isnan, values)):
        return "diverged"
    return measure.shown(fmean(values))


def _effect(effect: Effect | None) -> str:
    return DASH if effect is None else effect_text(effect)


def notes(tuning: Tuning) -> list[str]:
    """What a reader must know of it, in sentences."""
    seeds = ", ".join(map(str, tuning.seeds))
    said = [
        f"Mean validation {tuning.measure.name} over the tuning seeds ({seeds}) chose each arm's "
        "own rate. No run with a tuning seed is in any effect. Intervals are simultaneous 95 % "
        "intervals within a column."
    ]
    rates = ({tuning.common, tuned.own and tuned.own.rate} for tuned in tuning.arms)
    pairs = zip(tuning.arms, rates, strict=True)
    shown = [tuned.fresh[rate] for tuned, at in pairs for rate in at & tuned.fresh.keys()]
    said += failures([run for arm in shown for run in arm.failed])
    said += repeats([run for arm in shown for run in arm.repeated])
    counted = [run for arm in shown for run in arm.counted.values()]
    if len(fingerprints(counted)) > 1:
        said.append(f"WARNING: {DIFFERENT}.")
    return [*said, *code_changes(counted), *edges(tuning)]


def edges(tuning: Tuning, where: str = "") -> Iterable[str]:
    """A warning where an arm's best rate is the smallest or the largest that it was tried at."""
    if found := [t.arm.label for t in tuning.arms if t.own and t.own.at_edge]:
        yield (
            f"WARNING: {where}the best rate of {', '.join(found)} lies at the grid's edge, so a "
            "better one may lie beyond it: more tune.factors would show."
        )


def curves(tuning: Tuning) -> Curves:
    """Validation metric over the learning rate, a curve for each arm, the band from the smallest
    to the largest seed. A rate at which a trial diverged is left out.
    """
    factor = tuning.measure.factor
    drawn: list[Curve] = []
    for tuned in tuning.arms[:MOST_ARMS]:
        look = style(tuned.arm, [(c.color, c.dash) for c in drawn])
        found = {rate: list(values.values()) for rate, values in sorted(tuned.response.items())}
        finite = {
            rate: values for rate, values in found.items() if all(map(math.isfinite, values))
        }
        curve = Curve(tuned.arm.label, *look, n=max(map(len, finite.values()), default=0))
        for rate, values in finite.items():
            curve.x.append(rate)
            curve.mean.append(factor * fmean(values))
            curve.low.append(factor * min(values))
            curve.high.append(factor * max(values))
        drawn.append(curve)
    y = [value for curve in drawn for value in curve.mean]
    log = tuning.measure is PERPLEXITY and bool(y) and max(y) > WIDE * min(y)
    label = f"best validation {tuning.measure.axis}"
    left_out = [tuned.arm.label for tuned in tuning.arms[MOST_ARMS:]]
    return Curves(tuning.title, "learning rate", label, log, drawn, left_out, x_log=True)
