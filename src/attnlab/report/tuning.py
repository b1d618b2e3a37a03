"""What tune=lr found: every arm's response to the learning rate, and the effects at one common
rate beside those at each arm's own.

Trials choose a rate and do nothing else: a run with a seed of theirs is in no effect.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean

from attnlab.report import naming, statistics
from attnlab.report.collect import Run
from attnlab.report.compare import Arm, arms_of, shared
from attnlab.report.curves import MOST_ARMS, Curve, Curves, style
from attnlab.report.statistics import BASELINE, Effect
from attnlab.report.tables import DASH, Table, effect_text
from attnlab.runs.files import slug
from attnlab.sweeps.tuning import Choice, choose

RATE = "trainer.lr"
Values = dict[int, float]  # seed -> test metric


@dataclass
class Tuned:
    """One arm. response: rate -> validation metric of its trials. own: the rate that they choose.
    fresh: rate -> test metric, of the seeds that are not for tuning.
    """

    arm: Arm
    response: dict[float, list[float]]
    own: Choice | None
    fresh: dict[float, Values]


@dataclass
class Tuning:
    """Arms whose runs agree in everything but arm, seed and learning rate. common: the rate at
    which most of the runs that are no trials were made; None without any. at_common, at_own:
    effects over the dot product by label.
    """

    title: str
    slug: str
    metric: str
    seeds: list[int]
    arms: list[Tuned]
    common: float | None
    at_common: dict[str, Effect]
    at_own: dict[str, Effect]

    @property
    def rates(self) -> list[float]:
        """Of all trials, rising."""
        return sorted({rate for tuned in self.arms for rate in tuned.response})


def tunings(runs: Iterable[Run]) -> tuple[list[Tuning], list[Run]]:
    """All tunings, and the runs to be compared as ever: all but trials and those at an own rate
    that is not the common one.
    """
    groups: dict[str, list[Run]] = {}
    rest = []
    for run in runs:
        if run.status == "unreadable":
            rest.append(run)
        else:
            kept = {key: value for key, value in shared(run.config).items() if key != RATE}
            groups.setdefault(naming.frozen(kept), []).append(run)
    found = []
    for group in groups.values():
        if any(run.config["runtime.tuning"] for run in group):
            found.append(_tuning(group, len(found) + 1))
            group = [run for run in group if _is_common(run, found[-1])]
        rest += group
    return found, rest


def _is_common(run: Run, tuning: Tuning) -> bool:
    return run.config["seed"] not in tuning.seeds and run.config[RATE] == tuning.common


def _tuning(group: list[Run], number: int) -> Tuning:
    seeds = sorted({run.config["seed"] for run in group if run.config["runtime.tuning"]})
    metric = group[0].metric
    arms = [_tuned(arm, seeds, metric) for arm in arms_of(group)]
    counts: dict[float, int] = {}
    for tuned in arms:
        for rate, values in tuned.fresh.items():
            counts[rate] = counts.get(rate, 0) + len(values)
    own = {tuned.own.rate for tuned in arms if tuned.own}
    # of equally many runs those at a rate that no arm chose
    common = max(counts, key=lambda rate: (counts[rate], rate not in own), default=None)
    finished = [run for run in group if run.value is not None]
    one = len({str(run.result.get("data_fingerprint")) for run in finished}) == 1
    samples = {run.result.get("test_samples") for run in finished}
    known = samples.pop() if len(samples) == 1 else None
    at = {
        "common": {t.arm.label: t.fresh.get(common, {}) for t in arms},
        "own": {t.arm.label: t.fresh.get(t.own.rate, {}) if t.own else {} for t in arms},
    }
    baseline = next((t.arm for t in arms if t.arm.own["model.name"] == BASELINE), None)

    def effects(values: dict[str, Values]) -> dict[str, Effect]:
        if baseline is None or not one:
            return {}
        dot = values.pop(baseline.label)
        return statistics.compare({**values, BASELINE: dot}, metric, known)

    title = naming.kind(group[0].config)
    return Tuning(
        title, slug(f"tuning {title} {number}"), metric, seeds, arms, common,
        effects(at["common"]), effects(at["own"]),
    )  # fmt: skip


def _tuned(arm: Arm, seeds: list[int], metric: str) -> Tuned:
    response: dict[float, list[float]] = {}
    fresh: dict[float, Values] = {}
    for run in arm.runs:
        rate, seed = run.config[RATE], run.config["seed"]
        validated = run.result.get(f"best/val/{metric}") if run.status == "finished" else None
        if seed in seeds and (validated is not None or run.cause.startswith("NonFinite")):
            response.setdefault(rate, []).append(math.nan if validated is None else validated)
        elif seed not in seeds and run.value is not None:
            fresh.setdefault(rate, {}).setdefault(seed, run.value)
    return Tuned(arm, response, choose(response, metric) if response else None, fresh)


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
    responses = [_mean(tuned.response.get(rate, []), tuning.metric) for rate in tuning.rates]
    own = DASH
    if tuned.own:
        own = f"{tuned.own.rate:g}" + (" (edge of the grid)" if tuned.own.at_edge else "")
    effects = [_effect(e.get(tuned.arm.label)) for e in (tuning.at_common, tuning.at_own)]
    if tuned.arm.own["model.name"] == BASELINE:
        effects = ["baseline", "baseline"]
    n = len(tuned.fresh.get(tuned.own.rate, {})) if tuned.own else 0
    return [tuned.arm.label, *responses, own, *effects, str(n)]


def _mean(values: list[float], metric: str) -> str:
    if not values:
        return DASH
    if any(map(math.isnan, values)):
        return "diverged"
    return f"{fmean(values):,.2f}" if metric == "perplexity" else f"{100 * fmean(values):.2f} %"


def _effect(effect: Effect | None) -> str:
    return DASH if effect is None else effect_text(effect)


def notes(tuning: Tuning) -> list[str]:
    """What a reader must know of it, in sentences."""
    seeds = ", ".join(map(str, tuning.seeds))
    said = [
        f"Mean validation {tuning.metric} over the tuning seeds ({seeds}) chose each arm's own "
        "rate. No run with a tuning seed is in any effect. Intervals hold together with 95 % "
        "within a column."
    ]
    if edges := [t.arm.label for t in tuning.arms if t.own and t.own.at_edge]:
        said.append(
            f"WARNING: the best rate of {', '.join(edges)} lies at the grid's edge, so a better "
            "one may lie beyond it: more tune.factors would show."
        )
    return said


def curves(tuning: Tuning) -> Curves:
    """Validation metric over the learning rate, a curve for each arm, the band from the smallest
    to the largest seed. A rate at which a trial diverged is left out.
    """
    factor = 1 if tuning.metric == "perplexity" else 100
    drawn: list[Curve] = []
    for tuned in tuning.arms[:MOST_ARMS]:
        look = style(tuned.arm, [(c.color, c.dash) for c in drawn])
        finite = {r: v for r, v in sorted(tuned.response.items()) if all(map(math.isfinite, v))}
        curve = Curve(tuned.arm.label, *look, n=max(map(len, finite.values()), default=0))
        for rate, values in finite.items():
            curve.x.append(rate)
            curve.mean.append(factor * fmean(values))
            curve.low.append(factor * min(values))
            curve.high.append(factor * max(values))
        drawn.append(curve)
    y = [value for curve in drawn for value in curve.mean]
    log = tuning.metric == "perplexity" and bool(y) and max(y) > 10 * min(y)
    label = f"best validation {tuning.metric}" + ("" if factor == 1 else ", %")
    left_out = [tuned.arm.label for tuned in tuning.arms[MOST_ARMS:]]
    return Curves(tuning.title, "learning rate", label, log, drawn, left_out, x_log=True)
