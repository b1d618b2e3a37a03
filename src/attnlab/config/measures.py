"""What runs are judged by: each measure, how arms are compared in it, and how it is written."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Measure:
    """A quality that is measured on a split.

    name: of its key in result.json, behind `test/` or `best/val/`. sign: 1 if more is better, else
    -1. low, high: the values that it can have. unit: of the effect of one arm over another: "%" is
    how much lower it is, relative to the other; any other unit is the difference. factor: from a
    value to one in this unit, and to one as it is written, with `suffix` behind it. effect: unit
    and direction, for the axis of a picture.
    """

    name: str
    sign: int
    low: float
    high: float
    unit: str
    factor: float
    suffix: str
    effect: str

    def of(self, result: dict) -> float | None:
        """Its test value in a result.json; None if that is not a number that it can be."""
        value = result.get(f"test/{self.name}")
        if value is None or not math.isfinite(value):
            return None
        return value if self.low <= value <= self.high else None

    def difference(self, arm: float, other: float) -> float:
        """How much better `arm` is than `other`, in `unit`."""
        if self.unit == "%":
            return 100 * (1 - arm / other)
        return self.factor * (arm - other)

    def shown(self, value: float) -> str:
        """A value as it is written."""
        return f"{self.factor * value:,.2f}{self.suffix}"

    @property
    def axis(self) -> str:
        """Its name, and the unit in which values are written."""
        return self.name + self.suffix.replace(" ", ", ")

    @property
    def within(self) -> tuple[float, float]:
        """The least and the greatest value, as they are written."""
        return self.factor * self.low, self.factor * self.high


def quantity(number: float, unit: str, form: str = "g") -> str:
    """A number and its unit, as a sentence has them: 1 point, 0.5 points."""
    written = format(number, form)
    one = written.lstrip("+-") == "1"
    return f"{written} {unit.removesuffix('s') if one else unit}"


PERPLEXITY = Measure("perplexity", -1, 1, math.inf, "%", 1, "", "% lower perplexity")
ACCURACY = Measure("accuracy", 1, 0, 1, "points", 100, " %", "points of accuracy")
BLEU = Measure("bleu", 1, 0, 100, "BLEU", 1, "", "BLEU")
MEASURES = {measure.name: measure for measure in (PERPLEXITY, ACCURACY, BLEU)}

# What is measured on data of a kind. Runs are compared in the first, and learning rates chosen by
# it; a registered question may ask for another.
OF_KIND = {
    "text": (PERPLEXITY,),
    "translation": (PERPLEXITY, BLEU),
    "image": (ACCURACY,),
    "symbols": (ACCURACY,),
}
