"""What a report says and draws of arms at their own learning rates: response, rate, effects."""

import math
from collections.abc import Iterable
from statistics import fmean

from attnlab.config.measures import PERPLEXITY, Measure
from attnlab.report.compare import baseline_of, fingerprints
from attnlab.report.curves import MOST_ARMS, Curve, Curves, style
from attnlab.report.run_notes import DIFFERENT, code_changes, failures, repeats
from attnlab.report.statistics import Effect
from attnlab.report.tables import DASH, Table, effect_text
from attnlab.report.tuning import Tuned, Tuning, Values

# Perplexities that span more are drawn on a logarithmic axis: a rate that nearly fails would press
# the others, among which the choice is, into one line.
WIDE = 2


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
    one = len(tuning.seeds) == 1
    over = f"with tuning seed {seeds}" if one else f"in the mean of tuning seeds {seeds}"
    said = [
        f"Validation {tuning.measure.name} {over} chose each arm's own rate. No run with a tuning "
        "seed is in any effect. Intervals are simultaneous 95 % intervals within a column, and "
        "take the chosen rates as given."
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
