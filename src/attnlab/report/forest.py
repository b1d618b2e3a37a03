"""Effects with their intervals, one below the other, as one picture."""

from dataclasses import dataclass

from attnlab.config.measures import Measure
from attnlab.report.compare import Comparison
from attnlab.report.questions import Answer
from attnlab.report.statistics import Effect


@dataclass(frozen=True)
class Row:
    """smallest: the effect of interest that the effect is judged by, a band around 0; None where
    none was registered, and for a difference of two effects.
    """

    label: str
    effect: Effect
    smallest: float | None = None


@dataclass(frozen=True)
class Forest:
    """rows: the first one on top."""

    title: str
    rows: list[Row]
    measure: Measure

    @property
    def smallest(self) -> float | None:
        """The effect of interest of those rows that have one."""
        return next((row.smallest for row in self.rows if row.smallest), None)

    @property
    def x_label(self) -> str:
        """Unit and level; better is to the right."""
        return f"effect, {self.measure.effect} ({100 * self.rows[0].effect.level:.4g} % intervals)"


def of_comparison(comparison: Comparison) -> Forest | None:
    """Every compared arm over the dot product, but for those that a question judges, which has a
    picture of its own; None where no effect has an interval.
    """
    effects = comparison.effects.items()
    rows = [Row(arm, effect) for arm, effect in effects if arm not in comparison.registered]
    return _forest(comparison.title, rows, comparison.measure)


def of_answer(answer: Answer) -> Forest | None:
    """The registered contrasts that have an interval; None without any."""
    smallest = answer.question.smallest_effect
    rows = [
        Row(answer.name(c), c.effect, None if c.base else smallest)
        for c in answer.contrasts
        if c.effect
    ]
    return _forest(answer.title, rows, answer.question.measure)


def _forest(title: str, rows: list[Row], measure: Measure) -> Forest | None:
    shown = [row for row in rows if row.effect.sd is not None]
    return Forest(title, shown, measure) if shown else None
