"""Curves of a comparison: the evaluated metric over steps or epochs, per arm and seed."""

import math
from dataclasses import dataclass, field
from statistics import fmean

from attnlab.config.measures import PERPLEXITY
from attnlab.report.archive import evenly
from attnlab.report.collect import Run
from attnlab.report.compare import NAMES, Arm, Comparison

MOST_POINTS = 200  # of a curve; a page with more is slow and shows the same
MOST_LINES = 24  # single runs drawn beside the means
# Okabe and Ito's palette, which colour-blind readers can tell apart; dashes tell print readers.
KNOWN = ("#000000", "#009E73", "#D55E00", "#0072B2")  # NAMES
OTHERS = ("#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("solid", "dash", "dashdot", "dot")
WIDE = 10  # perplexities that span more are drawn on a logarithmic axis
SPLITS = {"val": "validation", "test": "test"}
SATURATION = {
    "saturated": "layer 0: saturated rows, %",
    "normalized_entropy": "layer 0: entropy, % of uniform",
}
MOST_ARMS = len(KNOWN) + len(OTHERS)


@dataclass
class Line:
    """One run. whole: whether it finished."""

    name: str
    x: list[float]
    y: list[float]
    whole: bool


@dataclass
class Curve:
    """One arm: mean over its finished runs, and the band around it."""

    label: str
    color: str
    dash: str
    n: int
    x: list[float] = field(default_factory=list)
    mean: list[float] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)


@dataclass
class Curves:
    """What one figure shows. y_label says metric and split; left_out: arms beyond the palette."""

    title: str
    x_label: str
    y_label: str
    log: bool
    curves: list[Curve]
    left_out: list[str]
    x_log: bool = False


def curves(comparison: Comparison) -> Curves | None:
    """The figure of a comparison, in the form of the paper's figures 9 to 11; None without an
    evaluation.
    """
    split = "test" if comparison.config["trainer.select_on"] == "test" else "val"
    key = f"{split}/{comparison.measure.name}"
    per_epoch = _steps_per_epoch(comparison)
    single = len(comparison.runs) <= MOST_LINES
    drawn: list[Curve] = []
    left_out: list[str] = []
    for arm in comparison.arms:
        points = {run.folder: _points(run, key, per_epoch) for run in arm.runs}
        if not any(points.values()):
            continue
        if len(drawn) == MOST_ARMS:
            left_out.append(arm.label)
            continue
        curve = _mean(arm, points, *style(arm, [(c.color, c.dash) for c in drawn]))
        if single:
            curve.lines = [_line(arm, run, points[run.folder]) for run in arm.runs]
        drawn.append(curve)
    y = [v for curve in drawn for run in (curve.mean, *(c.y for c in curve.lines)) for v in run]
    if not y:
        return None
    text = comparison.measure is PERPLEXITY
    return Curves(
        title=comparison.title,
        x_label="epoch" if per_epoch else "iteration" if text else "step",
        y_label=f"{SPLITS[split]} {comparison.measure.axis}",
        log=text and max(y) > WIDE * min(y),
        curves=drawn,
        left_out=left_out,
    )


FIRST = "attention/0"  # what enters the first layer has passed no other


def saturation_curves(comparison: Comparison) -> dict[str, Curves]:
    """Share of saturated rows and entropy of the first layer over steps, by heading; empty where
    no run has logged them.
    """
    found = {}
    for name, label in SATURATION.items():
        points = {
            arm: {run.folder: _points(run, f"{FIRST}/{name}", None) for run in arm.runs}
            for arm in comparison.arms
        }
        measured = [arm for arm in comparison.arms if any(points[arm].values())]
        drawn: list[Curve] = []
        for arm in measured[:MOST_ARMS]:
            curve = _mean(arm, points[arm], *style(arm, [(c.color, c.dash) for c in drawn]))
            for of in (curve.mean, curve.low, curve.high):
                of[:] = [100 * value for value in of]
            drawn.append(curve)
        if drawn:
            left_out = [arm.label for arm in measured[MOST_ARMS:]]
            found[label] = Curves(comparison.title, "step", label, False, drawn, left_out)
    return found


def _points(run: Run, key: str, per_epoch: float | None) -> dict[float, float]:
    """x -> y of one run's evaluations, the first row of a step: with selection on test, the last
    step has a second one, of the best checkpoint.
    """
    factor = 100 if key.endswith("accuracy") else 1
    points: dict[float, float] = {}
    for row in run.rows:
        if isinstance(row.get(key), int | float) and math.isfinite(row[key]):
            points.setdefault(row["step"] / (per_epoch or 1), _short(factor * row[key]))
    return points


def _steps_per_epoch(comparison: Comparison) -> float | None:
    """Where the budget is in epochs: a finished run's steps by its epochs."""
    epochs = comparison.config["trainer.epochs"]
    if epochs is None or comparison.config["trainer.max_steps"] is not None:
        return None
    steps = (run.result.get("steps") for run in comparison.counted)
    return next((n / epochs for n in steps if n), None)


def _mean(arm: Arm, points: dict, color: str, dash: str) -> Curve:
    """Over the x that all finished runs of the arm with evaluations have."""
    finished = [found for run in arm.counted.values() if (found := points[run.folder])]
    curve = Curve(arm.label, color, dash, len(finished))
    if finished:
        curve.x = evenly(sorted(set.intersection(*map(set, finished))), MOST_POINTS)
        columns = [[run[x] for run in finished] for x in curve.x]
        curve.mean = [_short(fmean(column)) for column in columns]
        curve.low, curve.high = [min(c) for c in columns], [max(c) for c in columns]
    return curve


def _line(arm: Arm, run: Run, points: dict[float, float]) -> Line:
    x = evenly(sorted(points), MOST_POINTS)
    name = f"{arm.label}, seed {run.config['seed']}"
    whole = run.status == "finished"
    return Line(name if whole else f"{name}, {run.status}", x, [points[v] for v in x], whole)


def _short(value: float) -> float:
    """Six digits: nobody sees more, and the page holds thousands of values."""
    return float(f"{value:.6g}")


def style(arm: Arm, used: list[tuple[str, str]]) -> tuple[str, str]:
    """Colour and dash, the colour as rarely among the `used` ones as can be, and then the pair:
    the paper's arms have the same colour in every figure.
    """
    name = arm.own["model.name"]
    own = (KNOWN[NAMES.index(name)],) if name in NAMES else ()
    colors = [color for color, _ in used]
    color = min((*own, *OTHERS, *KNOWN), key=colors.count)  # the first of equals
    turn = len(used) % len(DASHES)
    return min(((color, dash) for dash in DASHES[turn:] + DASHES[:turn]), key=used.count)
