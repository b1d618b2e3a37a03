"""Score networks that start dead and layers that start saturated, and how many end so."""

from dataclasses import dataclass
from statistics import fmean

from attnlab.report import naming
from attnlab.report.compare import Arm, Comparison
from attnlab.report.statistics import share_interval
from attnlab.report.tables import DASH, Table

MANY = 10  # with at least so many runs, the share of dead ones has an interval and a figure


@dataclass(frozen=True)
class Health:
    """One layer of an arm: for every run the share of its rows with a constant score, at step 0
    and in the last evaluation.
    """

    label: str
    layer: str
    begin: list[float]
    end: list[float]


def health(comparison: Comparison) -> list[Health]:
    """Every arm and layer with a score network."""
    layers = ((arm, layer) for arm in comparison.arms for layer in _layers(arm, "dead_scorer"))
    return [
        Health(arm.label, layer, *_begin_and_end(arm, layer, "dead_scorer"))
        for arm, layer in layers
    ]


def _layers(arm: Arm, name: str) -> list[str]:
    keys = {key for run in arm.one_each for row in run.rows for key in row}
    return sorted({k.split("/")[1] for k in keys if k.endswith(f"/{name}")}, key=int)


def _begin_and_end(arm: Arm, layer: str, name: str) -> tuple[list[float], list[float]]:
    """Of every seed the value at step 0, and that of the last evaluation."""
    key = f"attention/{layer}/{name}"
    values = [[(row["step"], row[key]) for row in run.rows if key in row] for run in arm.one_each]
    begin = [run[0][1] for run in values if run and run[0][0] == 0]
    end = [run[-1][1] for run in values if run and run[-1][0] > 0]
    return begin, end


# What is logged of saturation -> heading and format of its mean.
SATURATION = {
    "saturated": ("saturated rows", ".1%"),
    "normalized_entropy": ("entropy / uniform", ".1%"),
    "logit_std": ("sd of scores", ",.3g"),
}


def saturation_table(comparison: Comparison) -> Table:
    """Means over runs at step 0 and in the last evaluation, a row for every arm and layer."""
    columns = {"model": "text", "layer": "number", "runs": "number"}
    for heading, _ in SATURATION.values():
        columns |= {f"{heading} at step 0": "number", f"{heading} at the end": "number"}
    rows = []
    for arm in comparison.arms:
        for layer in _layers(arm, "saturated"):
            cells = []
            for name, (_, form) in SATURATION.items():
                ends = _begin_and_end(arm, layer, name)
                cells += [f"{fmean(values):{form}}" if values else DASH for values in ends]
            runs = max(map(len, _begin_and_end(arm, layer, "saturated")))
            rows.append([arm.label, layer, str(runs), *cells])
    return Table(columns, rows)


def dead(shares: list[float]) -> int:
    """How many of the runs are dead: every row has one constant score."""
    return sum(share == 1 for share in shares)


@dataclass(frozen=True)
class Share:
    """Percent of the runs of each arm that are dead at one `time`, with exact 95 % intervals."""

    time: str
    names: list[str]
    percent: list[float]
    below: list[float]  # from the percentage down to the interval's end
    above: list[float]


def shares(found: list[Health]) -> list[Share]:
    """At step 0 and in the end, in the natural order of the arms' names: d_prime=2 before 16."""
    result = []
    found = sorted(found, key=lambda h: (naming.natural(h.label), int(h.layer)))
    for time in ("step 0", "the end"):
        rows = {
            f"{h.label}, layer {h.layer}": h.begin if time == "step 0" else h.end for h in found
        }
        rows = {name: values for name, values in rows.items() if values}
        percent = [100 * dead(values) / len(values) for values in rows.values()]
        ends = [share_interval(dead(values), len(values)) for values in rows.values()]
        below = [y - 100 * low for y, (low, _) in zip(percent, ends, strict=True)]
        above = [100 * high - y for y, (_, high) in zip(percent, ends, strict=True)]
        result.append(Share(time, list(rows), percent, below, above))
    return result


def table(found: list[Health]) -> Table:
    """Share of dead rows and number of dead runs; of many runs with the exact 95 % interval."""
    columns = {
        "model": "text",
        "layer": "number",
        "runs": "number",
        "dead rows at step 0": "number",
        "runs dead at step 0": "number",
        "dead rows at the end": "number",
        "runs dead at the end": "number",
    }
    rows = [
        [h.label, h.layer, str(max(len(h.begin), len(h.end))), *_cells(h.begin), *_cells(h.end)]
        for h in found
    ]
    return Table(columns, rows)


def _cells(shares: list[float]) -> list[str]:
    if not shares:
        return [DASH, DASH]
    runs = f"{dead(shares)} of {len(shares)}"
    if len(shares) >= MANY:
        low, high = share_interval(dead(shares), len(shares))
        runs += f" [{100 * low:.1f}, {100 * high:.1f}] %"
    return [f"{100 * fmean(shares):.1f} %", runs]
