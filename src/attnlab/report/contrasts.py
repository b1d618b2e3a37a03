"""The comparisons that a question registers, with their effects where there are runs."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from attnlab.config.question import Question
from attnlab.report import statistics
from attnlab.report.collect import Run
from attnlab.report.compare import same_data, samples_tested
from attnlab.report.statistics import Effect


@dataclass(frozen=True)
class Contrast:
    """One registered comparison: an arm over a control within a setting, or, where `base` names
    another setting, how much more that is than there. effect: None while there are no paired runs.
    """

    setting: str
    arm: str
    control: str
    effect: Effect | None
    base: str = ""

    @property
    def label(self) -> str:
        """Without its setting."""
        than = f", minus that of {self.base}" if self.base else ""
        return f"{self.arm} over {self.control}{than}"


def contrasts(
    question: Question, names: list[str], cells: dict[tuple[str, str], dict[int, Run]]
) -> Iterator[Contrast]:
    """All that the question registers, whether there are runs for it or not: the level of their
    simultaneous 95 % intervals is that of all of them from the start.
    """
    measure = question.measure
    first = question.controls[0]
    within = len(names) * len(question.treated) * len(question.controls)
    level = 1 - statistics.ALPHA / (within + (len(names) - 1) * len(question.treated))
    counted = [run for found in cells.values() for run in found.values()]
    known, comparable = samples_tested(counted), same_data(counted)

    def values(setting: str, arm: str) -> dict[int, float]:
        found = cells.get((setting, arm), {}) if comparable else {}
        return {seed: run.tested(measure) for seed, run in found.items()}

    def effect(setting: str, arm: str, control: str) -> Effect | None:
        ours, theirs = values(setting, arm), values(setting, control)
        if not ours.keys() & theirs.keys():
            return None
        return statistics.paired_effect(ours, theirs, measure, level, known)

    def per_seed(setting: str, arm: str) -> dict[int, float]:
        return statistics.per_seed(values(setting, arm), values(setting, first), measure)

    for name in names:
        for arm in question.treated:
            for control in question.controls:
                yield Contrast(name, arm, control, effect(name, arm, control))
    for name in names[1:]:
        for arm in question.treated:
            here, there = per_seed(name, arm), per_seed(names[0], arm)
            more = [here[seed] - there[seed] for seed in sorted(here.keys() & there.keys())]
            parts = (effect(name, arm, first), effect(names[0], arm, first))
            floor = math.hypot(*(part.floor for part in parts if part))
            found = statistics.effect_of(more, measure.unit, level, floor) if more else None
            yield Contrast(name, arm, first, found, base=names[0])
