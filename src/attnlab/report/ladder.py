"""Which levels of a task each arm solves: comparisons that differ in its level together."""

from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from attnlab.config.symbols import LEVELS, suffix
from attnlab.report import naming
from attnlab.report.collect import Run
from attnlab.report.compare import Arm, Comparison, shared
from attnlab.report.run_notes import failures
from attnlab.report.tables import DASH, Table

SOLVED = 0.999  # accuracy, of every seed
LEVEL = {f"data.{key}" for level in LEVELS.values() for key in level}
ACCURACIES = ("accuracy", "chance_accuracy", "copy_accuracy")  # in result.json

Level = tuple[int, int]


@dataclass
class Ladder:
    """task: data.name. trained: the levels of training where data.test_ladder tests others, else
    None. accuracy: arm -> level -> test accuracies, one a seed. failed: arm ->
    level -> runs that ended without a result. trivial: level ->
    accuracy by chance and of repeating the last symbol.
    """

    title: str
    slug: str
    task: str
    trained: list[Level] | None
    accuracy: dict[str, dict[Level, list[float]]] = field(default_factory=dict)
    failed: dict[str, dict[Level, list[Run]]] = field(default_factory=dict)
    trivial: dict[Level, tuple[float, float]] = field(default_factory=dict)

    @property
    def levels(self) -> list[Level]:
        """All, by the first key and then the second."""
        return sorted({level for found in self.accuracy.values() for level in found})

    @property
    def keys(self) -> tuple[str, str]:
        """What the two numbers of a level are called."""
        return LEVELS[self.task]

    @property
    def names(self) -> list[str]:
        """One for each of `levels`."""
        return [_name(self.keys, level) for level in self.levels]

    def lowest(self, arm: str, level: Level) -> float | None:
        """Accuracy of an arm's lowest seed, in percent; None without a run, or if one failed."""
        found = self.accuracy[arm].get(level)
        return 100 * min(found) if found and not self.failed[arm].get(level) else None

    def solved(self, arm: str, level: Level) -> bool:
        """Whether every seed with a result solves it, and there is one."""
        lowest = self.lowest(arm, level)
        return lowest is not None and lowest >= 100 * SOLVED

    def reached(self, arm: str, first: int) -> int | None:
        """The highest second number up to which the arm solves every level with this first one;
        None if it does not solve the lowest.
        """
        highest = None
        for level in (level for level in self.levels if level[0] == first):
            if not self.solved(arm, level):
                break
            highest = level[1]
        return highest


def _name(keys: tuple[str, str], level: Level) -> str:
    return ", ".join(map("{} = {}".format, keys, level))


def ladders(comparisons: list[Comparison]) -> list[Ladder]:
    """A ladder for each group of comparisons on symbols that agree in all but the level."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if comparison.config["data.name"] in LEVELS:
            groups.setdefault(naming.frozen(_beside_level(comparison)), []).append(comparison)
    titles = naming.titles([_beside_level(group[0]) for group in groups.values()])
    slugs = [f"ladder_{number}" for number in range(1, len(titles) + 1)]
    found = [_ladder(*parts) for parts in zip(titles, slugs, groups.values(), strict=True)]
    return [ladder for ladder in found if ladder.levels]


def _beside_level(comparison: Comparison) -> dict[str, Any]:
    """Its settings without the level; but where other levels are tested, that of training is one
    setting more.
    """
    settings = shared(comparison.config)
    if settings["data.test_ladder"]:
        return settings
    return {key: value for key, value in settings.items() if key not in LEVEL}


def _ladder(title: str, slug: str, group: list[Comparison]) -> Ladder:
    config = group[0].config
    trained = _trained(config) if config["data.test_ladder"] else None
    ladder = Ladder(title, slug, config["data.name"], trained)
    arms: dict[str, list[Arm]] = {}
    for comparison in group:
        for arm in comparison.family:
            arms.setdefault(arm.label, []).append(arm)
    for label, members in arms.items():
        levels = ladder.accuracy[label] = {}
        failed = ladder.failed[label] = {}
        for run in (run for arm in members for run in arm.failed):
            for level in _tested(run.config):
                failed.setdefault(level, []).append(run)
        for run in (run for arm in members for run in arm.counted.values()):
            tasks = _tested(run.config)
            for level in tasks:
                end = suffix(ladder.keys, level) if len(tasks) > 1 else ""
                keys = [f"test/{kind}{end}" for kind in ACCURACIES]
                if not run.result.keys() >= set(keys):
                    continue
                found, *trivial = (run.result[key] for key in keys)
                levels.setdefault(level, []).append(found)
                ladder.trivial[level] = tuple(trivial)
    return ladder


def _tested(config: dict[str, Any]) -> list[Level]:
    return [tuple(level) for level in config["data.test_ladder"] or _trained(config)]


def _trained(config: dict[str, Any]) -> list[Level]:
    single = [config[f"data.{key}"] for key in LEVELS[config["data.name"]]]
    return [tuple(level) for level in config["data.ladder"] or [single]]


def table(ladder: Ladder) -> Table:
    """A row for each level: the trivial accuracies, and each arm's mean with its lowest seed; then
    the level that each arm reaches, for every first number.
    """
    columns = dict.fromkeys((*ladder.keys, "chance, %", "copy, %"), "number")
    columns |= dict.fromkeys(ladder.accuracy, "number")
    rows = []
    for level in ladder.levels:
        cells = [_cell(ladder, arm, level) for arm in ladder.accuracy]
        rows.append([*map(str, level), *map(_percent, ladder.trivial[level]), *cells])
    for first in sorted({first for first, _ in ladder.levels}):
        reached = [ladder.reached(arm, first) for arm in ladder.accuracy]
        said = ["none" if high is None else f"{ladder.keys[1]} = {high}" for high in reached]
        rows.append([str(first), "reached", "", "", *said])
    return Table(columns, rows)


def _cell(ladder: Ladder, arm: str, level: Level) -> str:
    found, failed = ladder.accuracy[arm].get(level), len(ladder.failed[arm].get(level, []))
    more = f"; {failed} failed" * bool(failed)
    if not found:
        return f"{failed} failed" if failed else DASH
    if len(found) == 1:
        return f"{_percent(found[0])} (single{more})"
    lowest = f" (lowest of {len(found)}: {_percent(min(found))}{more})"
    return _percent(fmean(found)) + ("" if ladder.solved(arm, level) else lowest)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def note(ladder: Ladder) -> str:
    """What the table means."""
    said = (
        f"Task {ladder.task} (docs/tasks.md): accuracy in percent of the symbols that the history "
        "determines, the best checkpoint on test sequences, mean over seeds. A level is solved if "
        f"every seed reaches {100 * SOLVED:g} %; then the mean stands alone. `reached`: the "
        f"highest {ladder.keys[1]} such that it and all smaller ones are solved. Copy: repeating "
        "the last symbol."
    )
    if ladder.trained is not None:
        levels = "; ".join(_name(ladder.keys, level) for level in ladder.trained)
        said += f" These are levels of the test; training had {levels}."
    if ladder.task == "nt":
        said += (
            " There are n^tau different sequences, so at low levels test sequences occur in "
            "training too."
        )
    failed = {
        run.folder: run
        for levels in ladder.failed.values()
        for runs in levels.values()
        for run in runs
    }
    return " ".join([said, *failures(list(failed.values()))])
