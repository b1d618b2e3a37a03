"""What an effect over seeds says: in a word, in a sentence, and how many seeds would say more."""

import math
from dataclasses import dataclass
from functools import cached_property

from attnlab.config.measures import quantity
from attnlab.report.statistics import Effect, equivalent, seeds_to_decide


@dataclass(frozen=True)
class Verdict:
    """One word, and the plain reason with the numbers. effect, margin: of an open verdict with an
    sd, what `needed` goes by; None where a smallest effect of interest judges.
    """

    word: str
    reason: str
    effect: Effect | None = None
    margin: float | None = None

    @cached_property
    def needed(self) -> int | None:
        """How many seeds would decide with a probability of 90 % if the mean and sd measured so
        far are the true ones; None if more than 1000 would be needed, if there is no sd yet, or if
        it is decided.
        """
        return None if self.effect is None else seeds_to_decide(self.effect, self.margin)


def verdict(effect: Effect, published: float | None, smallest: float | None = None) -> Verdict:
    """What the interval says about the published effect (same unit, above 0; None: not known).

    reproduced: above 0, and contains or exceeds the published effect. contradicted: all of it
    below the published effect, be it above 0 or not. undecided: contains 0 and the published one.
    Nothing published: better, worse, no difference shown. With a smallest effect of interest (same
    unit): equivalent, which is a finding, if all of the interval is nearer to 0 than that; better
    or worse; else undecided. n = 1: single run. The same on all seeds, and no `Effect.floor`:
    undecided.
    """
    if effect.sd is None and effect.n > 1:
        reason = f"{_mean(effect)}, the same on all {effect.n} seeds"
        return Verdict("undecided", f"{reason}; a spread of 0 says nothing of its error")
    if effect.sd is None:
        reason = f"{_mean(effect)} on one seed; its spread is unknown"
        return Verdict("single run", reason)
    if smallest is not None:
        word, clause, margin = _against_smallest(effect, smallest)
    elif published is not None:
        word, clause, margin = _against_published(effect, published)
    else:
        word, clause, margin = _against_zero(effect)
    is_open = () if margin is None else (effect, margin)
    return Verdict(word, f"{_measured(effect)} {clause}", *is_open)


# Each gives the word, the rest of the reason and, for an open verdict, the margin: the interval
# decides as soon as its half-width is below it, if the mean is as it was.


def _against_published(e: Effect, published: float) -> tuple[str, str, float | None]:
    claim = f"the published {quantity(published, e.unit, '+.3g')}"
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


def _against_smallest(e: Effect, smallest: float) -> tuple[str, str, float | None]:
    bound = f"the smallest effect of interest, {quantity(smallest, e.unit)}"
    if equivalent(e, smallest):
        side = ", and excludes 0" if e.low > 0 or e.high < 0 else ""
        return "equivalent", f"lies within {bound}{side}", None
    word, clause, _ = _against_zero(e)
    if word != "no difference shown":
        size = "beyond" if min(abs(e.low), abs(e.high)) > smallest else "perhaps not beyond"
        return word, f"{clause}, {size} {bound}", None
    return "undecided", f"contains 0 and reaches {bound}", None  # `planned_seeds` says more


def _measured(e: Effect) -> str:
    interval = f"{100 * e.level:.4g} % interval {e.low:+.3g} to {e.high:+.3g}"
    bound = ", widened for the number of test samples," if _bound(e) else ""
    return f"{_mean(e)} over {e.n} seeds, {interval}{bound}"


def _mean(e: Effect) -> str:
    return quantity(e.mean, e.unit, "+.3g")


def _bound(e: Effect) -> bool:
    """Whether the test split, and not the seeds, makes the interval as wide as it is."""
    return e.floor > e.sd / math.sqrt(e.n)
