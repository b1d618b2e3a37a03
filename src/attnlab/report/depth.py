"""Per-layer diagnostics of attention, representations and gradients, drawn over depth."""

import math
from dataclasses import dataclass
from typing import Any

from attnlab.report.collect import Run
from attnlab.report.compare import Arm, Comparison
from attnlab.report.curves import MOST_ARMS, Curve, Line, style
from attnlab.report.statistics import Summary, summarize
from attnlab.report.tables import DASH, Table

INPUT = -1  # the place of what enters the first block, before layer 0
GRADIENT = "gradient norm of query weights"  # spans decades: means and intervals of its logarithm
DRAWN = {
    "rank-one residual": "representation/{}/rank_one_residual",
    "cosine similarity of tokens": "representation/{}/cosine",
    GRADIENT: "gradient/{}/query",
    "entropy of weights, nats": "attention/{}/entropy",
}
SIGNED = {  # in the table where an arm has negative weights
    "share of negative weights": "attention/{}/negative_mass",
    "row sum of weights": "attention/{}/row_sum",
}
MOST_TICKS = 8
# Attentions of a layer, by body: those of encoder, decoder, and cross-attention, numbered in turn.
PARTS = {"seq2seq": 3}
PLACES = "layer (in: what enters the first)"

Row = dict[str, Any]


@dataclass
class Panel:
    """One quantity over places (INPUT or a layer). curves: the last evaluation, mean over seeds in
    a band that is its 95 % t-interval; begin: the means at step 0.
    """

    label: str
    log: bool
    curves: list[Curve]
    begin: list[Line]


@dataclass
class Depth:
    """What one figure shows. ticks: place -> its name; left_out: arms beyond the palette."""

    title: str
    panels: list[Panel]
    ticks: dict[int, str]
    left_out: list[str]


def depth(comparison: Comparison) -> Depth | None:
    """The figure of a comparison; None where no finished run has diagnostics."""
    measured = [arm for arm in comparison.arms if _ends(arm)]
    if not measured:
        return None
    arms, left_out = measured[:MOST_ARMS], [arm.label for arm in measured[MOST_ARMS:]]
    layers = _layers(comparison)
    every = math.ceil(layers / MOST_TICKS)
    ticks = {INPUT: "in"} | {layer: str(layer) for layer in range(0, layers, every)}
    panels = [_panel(label, arms, layers) for label in DRAWN]
    return Depth(comparison.title, panels, ticks, left_out)


def _layers(comparison: Comparison) -> int:
    """Layers with diagnostics, as they are numbered there."""
    config = comparison.config
    return config["arch.layers"] * PARTS.get(config["arch.body"], 1)


def _panel(label: str, arms: list[Arm], layers: int) -> Panel:
    curves: list[Curve] = []
    begin: list[Line] = []
    for arm in arms:
        ends = _ends(arm)
        curve = Curve(arm.label, *style(arm, [(c.color, c.dash) for c in curves]), n=len(ends))
        for place, s in _profile(ends, label, layers).items():
            curve.x.append(place)
            curve.mean.append(s.mean)
            curve.low.append(s.mean if s.low is None else s.low)
            curve.high.append(s.mean if s.high is None else s.high)
        curves.append(curve)
        first = _profile(_begins(arm), label, layers)
        means = [s.mean for s in first.values()]
        begin.append(Line(f"{arm.label}, step 0", list(first), means, whole=True))
    return Panel(label, label == GRADIENT, curves, begin)


def _ends(arm: Arm) -> list[Row]:
    """Of every finished run with diagnostics the row of the last evaluation."""
    found = [[row for row in _diagnosed(run) if row["step"] > 0] for run in arm.counted.values()]
    return [rows[-1] for rows in found if rows]


def _begins(arm: Arm) -> list[Row]:
    return [row for run in arm.counted.values() for row in _diagnosed(run) if row["step"] == 0]


def _diagnosed(run: Run) -> list[Row]:
    return [row for row in run.rows if any(key.startswith("representation/") for key in row)]


def _profile(rows: list[Row], label: str, layers: int) -> dict[int, Summary]:
    """Place -> summary over runs, where all of them have a value."""
    found = {place: _summary(rows, label, place) for place in range(INPUT, layers)}
    return {place: s for place, s in found.items() if s}


def _summary(rows: list[Row], label: str, place: int) -> Summary | None:
    key = (DRAWN | SIGNED)[label].format("input" if place == INPUT else place)
    values = [row.get(key) for row in rows]
    if not values or None in values or not all(map(math.isfinite, values)):
        return None
    if label != GRADIENT:
        return summarize(values)
    if min(values) <= 0:
        return None
    s = summarize([math.log(value) for value in values])
    ends = (None if end is None else math.exp(end) for end in (s.low, s.high))
    return Summary(s.n, math.exp(s.mean), s.sd, *ends)


def table(comparison: Comparison) -> Table:
    """First, middle and last layer, or the last layer of each part of a translation model, at
    initialisation and in the last evaluation, every arm below the same quantity.
    """
    arms = [
        (arm, when, rows)
        for arm in comparison.arms
        for when, rows in (("step 0", _begins(arm)), ("trained", _ends(arm)))
        if rows and _ends(arm)
    ]
    layers, parts = _layers(comparison), PARTS.get(comparison.config["arch.body"], 1)
    places = sorted({0, layers // 2, layers - 1})
    if parts > 1:
        places = [layers // parts * part - 1 for part in range(1, parts + 1)]
    mass = (SIGNED["share of negative weights"].format(layer) for layer in range(layers))
    signed = any(row.get(key) for key in mass for _, _, rows in arms for row in rows)
    columns = {
        "quantity": "text",
        "model": "text",
        "when": "text",
        **{f"layer {place}": "number" for place in places},
        "n": "number",
    }
    rows = [
        [
            label,
            arm.label,
            when,
            *(_cell(_summary(found, label, p)) for p in places),
            str(len(found)),
        ]
        for label in (DRAWN | SIGNED if signed else DRAWN)
        for arm, when, found in arms
    ]
    return Table(columns, rows)


def _cell(s: Summary | None) -> str:
    if s is None:
        return DASH
    return f"{s.mean:.3g}" + ("" if s.sd is None else f" [{s.low:.3g}, {s.high:.3g}]")
