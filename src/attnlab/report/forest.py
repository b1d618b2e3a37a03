"""Effects with their intervals, one below the other, as one picture."""

from dataclasses import dataclass

from attnlab.config.measures import Measure
from attnlab.report.compare import Comparison
from attnlab.report.questions import Answer
from attnlab.report.statistics import Effect


@dataclass(frozen=True)
class Forest:
    """rows: label and effect, the first one on top. smallest: effect of interest, a band around 0;
    None where none was registered.
    """

    title: str
    rows: list[tuple[str, Effect]]
    smallest: float | None
    measure: Measure

    @property
    def x_label(self) -> str:
        """Unit and level; better is to the right."""
        return f"effect, {self.measure.effect} ({100 * self.rows[0][1].level:.4g} % intervals)"


def of_comparison(comparison: Comparison) -> Forest | None:
    """Every compared arm over the dot product, but for those that a question judges, which has a
    picture of its own; None where no effect has an interval.
    """
    rows = [(arm, e) for arm, e in comparison.effects.items() if arm not in comparison.registered]
    return _forest(comparison.title, rows, None, comparison.measure)


def of_answer(answer: Answer) -> Forest | None:
    """The registered contrasts that have an interval; None without any."""
    rows = [(answer.name(c), c.effect) for c in answer.contrasts if c.effect]
    return _forest(answer.title, rows, answer.question.smallest_effect, answer.question.measure)


def _forest(
    title: str, rows: list[tuple[str, Effect]], smallest: float | None, measure: Measure
) -> Forest | None:
    shown = [(label, effect) for label, effect in rows if effect.sd is not None]
    return Forest(title, shown, smallest, measure) if shown else None
