"""Which levels of the NT tasks each arm solves: comparisons that differ in N and tau together."""

from dataclasses import dataclass, field
from statistics import fmean

from attnlab.report import naming
from attnlab.report.compare import Arm, Comparison, shared
from attnlab.report.tables import DASH, Table

SOLVED = 0.999  # accuracy, of every seed
LEVEL = {"data.n", "data.tau"}
ACCURACIES = ("accuracy", "chance_accuracy", "copy_accuracy")  # in result.json

Level = tuple[int, int]  # N, tau


@dataclass
class Ladder:
    """accuracy: arm -> level -> test accuracies, one a seed. trivial: level -> accuracy by chance
    and of repeating the last symbol.
    """

    title: str
    slug: str
    accuracy: dict[str, dict[Level, list[float]]] = field(default_factory=dict)
    trivial: dict[Level, tuple[float, float]] = field(default_factory=dict)

    @property
    def levels(self) -> list[Level]:
        """All, by N and then tau."""
        return sorted({level for found in self.accuracy.values() for level in found})

    def lowest(self, arm: str, level: Level) -> float | None:
        """Accuracy of an arm's lowest seed, in percent; None without a run."""
        found = self.accuracy[arm].get(level)
        return 100 * min(found) if found else None

    def solved(self, arm: str, level: Level) -> bool:
        """Whether every seed solves it, and there is one."""
        found = self.accuracy[arm].get(level, [])
        return bool(found) and min(found) >= SOLVED

    def reached(self, arm: str, n: int) -> int | None:
        """The highest tau that an arm reaches by climbing: it and all below it are solved."""
        highest = None
        for level in (level for level in self.levels if level[0] == n):
            if not self.solved(arm, level):
                break
            highest = level[1]
        return highest


def ladders(comparisons: list[Comparison]) -> list[Ladder]:
    """A ladder for each group of comparisons on symbols that agree in all but N and tau."""
    groups: dict[str, list[Comparison]] = {}
    for comparison in comparisons:
        if comparison.config["data.kind"] == "symbols":
            rest = {k: v for k, v in shared(comparison.config).items() if k not in LEVEL}
            groups.setdefault(naming.frozen(rest), []).append(comparison)
    titles = naming.titles(
        [{k: v for k, v in g[0].config.items() if k not in LEVEL} for g in groups.values()]
    )
    slugs = [f"ladder_{number}" for number in range(1, len(titles) + 1)]
    return [_ladder(*parts) for parts in zip(titles, slugs, groups.values(), strict=True)]


def _ladder(title: str, slug: str, group: list[Comparison]) -> Ladder:
    ladder = Ladder(title, slug)
    arms: dict[str, list[Arm]] = {}
    for comparison in group:
        for arm in comparison.arms:
            members = arms.setdefault(arm.label, [])
            if arm not in members:  # the baseline stands in several comparisons
                members.append(arm)
    for label, members in arms.items():
        levels = ladder.accuracy[label] = {}
        for run in (run for arm in members for run in arm.counted.values()):
            tasks = run.config["data.ladder"] or [[run.config["data.n"], run.config["data.tau"]]]
            for n, tau in tasks:
                suffix = f"_n{n}_tau{tau}" if len(tasks) > 1 else ""
                keys = [f"test/{kind}{suffix}" for kind in ACCURACIES]
                if not run.result.keys() >= set(keys):
                    continue
                found, *trivial = (run.result[key] for key in keys)
                levels.setdefault((n, tau), []).append(found)
                ladder.trivial[n, tau] = tuple(trivial)
    return ladder


def table(ladder: Ladder) -> Table:
    """A row for each level: the trivial accuracies, and each arm's mean with its lowest seed; then
    the level that each arm reaches, for every N.
    """
    columns = {"N": "number", "tau": "number", "chance, %": "number", "copy, %": "number"}
    columns |= dict.fromkeys(ladder.accuracy, "number")
    rows = []
    for n, tau in ladder.levels:
        cells = [_cell(ladder, arm, (n, tau)) for arm in ladder.accuracy]
        rows.append([str(n), str(tau), *map(_percent, ladder.trivial[n, tau]), *cells])
    for n in sorted({n for n, _ in ladder.levels}):
        reached = [ladder.reached(arm, n) for arm in ladder.accuracy]
        said = ["none" if tau is None else f"tau = {tau}" for tau in reached]
        rows.append([str(n), "reached", "", "", *said])
    return Table(columns, rows)


def _cell(ladder: Ladder, arm: str, level: Level) -> str:
    found = ladder.accuracy[arm].get(level)
    if not found:
        return DASH
    lowest = (
        f" (lowest of {len(found)}: {_percent(min(found))})" if len(found) > 1 else " (single)"
    )
    return _percent(fmean(found)) + ("" if ladder.solved(arm, level) else lowest)


def _percent(share: float) -> str:
    return f"{100 * share:.2f}"


def note(ladder: Ladder) -> str:
    """What the table means."""
    return (
        "NT(N, tau), our definition of the task: x_t = (x_{t-1} + x_{t-tau}) mod N; accuracy in "
        "percent of the symbols that follow from the first tau, the best checkpoint on test "
        "sequences, mean over seeds. A level is solved if every seed reaches "
        f"{100 * SOLVED:g} %; then the mean stands alone. `reached`: the highest tau such that it "
        "and all smaller ones are solved. Copy: repeating the last symbol. There are N^tau "
        "different sequences, so at low levels test sequences occur in training too."
    )
