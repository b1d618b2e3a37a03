"""Effects with their intervals, one below the other, as one picture."""

from dataclasses import dataclass

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

    @property
    def unit(self) -> str:
        """Of all effects."""
        return self.rows[0][1].unit

    @property
    def x_label(self) -> str:
        """Unit and level; better is to the right."""
        unit = "% lower perplexity" if self.unit == "%" else "points of accuracy"
        return f"effect, {unit} ({100 * self.rows[0][1].level:.4g} % intervals)"


def of_comparison(comparison: Comparison) -> Forest | None:
    """Every compared arm over the dot product; None where no effect has an interval."""
    return _forest(comparison.title, list(comparison.effects.items()), None)


def of_answer(answer: Answer) -> Forest | None:
    """The registered contrasts that have an interval; None without any."""
    settings = len({contrast.setting for contrast in answer.contrasts}) > 1
    rows = [
        (f"{c.setting}: {c.label}" if settings else c.label, c.effect)
        for c in answer.contrasts
        if c.effect
    ]
    title = f"{answer.experiment}: {answer.title}"
    return _forest(title, rows, answer.question.smallest_effect)


def _forest(title: str, rows: list[tuple[str, Effect]], smallest: float | None) -> Forest | None:
    shown = [(label, effect) for label, effect in rows if effect.sd is not None]
    return Forest(title, shown, smallest) if shown else None
