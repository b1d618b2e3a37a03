"""Figures; needs the `report` extra (matplotlib)."""

import io
import math
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from attnlab.report.curves import Curve, Curves
from attnlab.report.depth import PLACES, Depth
from attnlab.report.forest import Forest
from attnlab.report.health import Share
from attnlab.report.ladder import Ladder
from attnlab.report.surface import REACH, Surface
from attnlab.runs.files import write_atomic

DASH = {"solid": "-", "dash": "--", "dashdot": "-.", "dot": ":"}
# The same runs give the same bytes: no date, and no random names inside an SVG.
matplotlib.rcParams["svg.hashsalt"] = "attnlab"
WITHOUT_DATE = {"svg": {"Date": None}, "png": {}}


def plot_benchmark(rows: list[dict], file: Path) -> None:
    """Time and memory of forward and backward over N, a line for each case by its fastest backend
    and the literal Algorithm 1 of released_d2, beside the dot product.
    """
    rows = [row for row in rows if row["pass"] == "forward_backward"]
    lines: dict[str, list[dict]] = {}
    for row in rows:
        if row["backend"] in ("sdpa", "cpp", "triton"):
            lines.setdefault(row["case"], []).append(row)
        elif row["case"] == "released_d2" and row["backend"] in (
            "algorithm_1",
            "eager",
            "chunked",
        ):
            lines.setdefault(f"released_d2, {row['backend']}", []).append(row)
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for name, points in lines.items():
        base = name == "dot_product"
        style = {"color": "black", "linewidth": 2.5, "zorder": 3} if base else {"linewidth": 1.3}
        dashes = "--" if "," in name else "-"
        for axis, key in zip(axes, ("ms", "peak_mib"), strict=True):
            n, y = [p["n"] for p in points], [p[key] for p in points]
            axis.plot(n, y, dashes, marker="o", markersize=3, label=name, **style)
    for axis, label in zip(axes, ("ms", "peak MiB above what was there"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="N, tokens", ylabel=label)
        sizes = sorted({row["n"] for row in rows})
        axis.set_xticks(sizes, [str(n) for n in sizes])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    one = rows[0]
    figure.suptitle(
        f"Attention, forward and backward: B {one['batch']}, H {one['heads']}, D {one['d']}, "
        f"{one['dtype']}, {'causal' if one['causal'] else 'full'}\n{one['device']}, "
        f"{one['threads']} threads, torch {one['torch']}",
        fontsize=10,
    )
    figure.savefig(file, dpi=150)
    plt.close(figure)


def plot_curves(curves: Curves, stem: Path) -> None:
    """The paper's figures 9 to 11, as <stem>.png and <stem>.svg: mean over seeds, and a band from
    the smallest to the largest; every run as a thin line where they are few.
    """
    figure, axis = plt.subplots(figsize=(7, 4.3), layout="constrained")
    for curve in curves.curves:
        _draw(axis, curve)
    if curves.log:
        axis.set_yscale("log")
        _plain_numbers(axis)
    if curves.x_log:
        axis.set_xscale("log")
        x = sorted({value for curve in curves.curves for value in curve.x})
        axis.set_xticks(x, [f"{value:g}" for value in x], minor=False)
        axis.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axis.set(xlabel=curves.x_label, ylabel=curves.y_label)
    axis.set_title(textwrap.fill(curves.title, 90), fontsize=10)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    if curves.x_label == "epoch":
        axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
    _legend(figure, *axis.get_legend_handles_labels(), most=3)
    _save(figure, stem)


def _draw(axis, curve: Curve) -> None:
    style = {"color": curve.color, "linestyle": DASH[curve.dash]}
    label = legend(curve)
    for line in curve.lines:
        if not line.whole or curve.n > 1:
            dashes = "-" if line.whole else (0, (1, 2))
            axis.plot(line.x, line.y, color=curve.color, linestyle=dashes, lw=0.7, alpha=0.5)
    if curve.n > 1:
        axis.fill_between(curve.x, curve.low, curve.high, color=curve.color, alpha=0.12, lw=0)
    marker = "o" if len(curve.x) <= 30 else None
    axis.plot(curve.x, curve.mean, lw=1.8, marker=marker, markersize=3.5, label=label, **style)


def legend(curve: Curve) -> str:
    """An arm's name in a figure: of how many runs with a result it is the mean."""
    if curve.n > 1:
        return f"{curve.label}, mean of {curve.n}"
    return f"{curve.label}, {'single run' if curve.n else 'no result'}"


def _legend(figure, lines: list, names: list[str], most: int) -> None:
    """Below all panels, in as many columns as there is room for, up to `most`. The figure grows
    where it takes more than two rows.
    """
    for columns in range(min(most, len(names)), 0, -1):
        place = {"loc": "outside lower center", "ncols": columns}
        drawn = figure.legend(lines, names, fontsize=9, frameon=False, **place)
        if columns == 1 or drawn.get_window_extent().width <= figure.bbox.width:
            break
        drawn.remove()
    rows = math.ceil(len(names) / columns)
    figure.set_figheight(figure.get_figheight() + 0.18 * max(0, rows - 2))


def _plain_numbers(axis) -> None:
    """Ticks of a logarithmic axis as 100, 200, 500 and not as powers of ten."""
    ticks = matplotlib.ticker
    axis.yaxis.set_major_locator(ticks.LogLocator(subs=(1, 2, 5), numticks=12))
    axis.yaxis.set_major_formatter(ticks.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(ticks.NullLocator())


def plot_health(shares: list[Share], title: str, stem: Path) -> None:
    """Percent of runs that are dead at step 0 and in the end, with 95 % intervals, as <stem>.png
    and <stem>.svg.
    """
    figure, axis = plt.subplots(figsize=(7, 4.3), layout="constrained")
    names = dict.fromkeys(name for share in shares for name in share.names)
    places = {name: i for i, name in enumerate(names)}
    for shift, marker, share in zip((-0.1, 0.1), "os", shares, strict=True):
        x = [places[name] + shift for name in share.names]
        bars = (share.below, share.above)
        axis.errorbar(x, share.percent, bars, fmt=marker, capsize=4, label=f"at {share.time}")
    names = [textwrap.fill(name, 20) for name in places]
    axis.set_xticks(range(len(places)), names, fontsize=8)
    axis.set(ylabel="dead runs, %, with 95 % interval", ylim=(-2, None))
    axis.set_title(textwrap.fill(title, 90), fontsize=10)
    axis.grid(alpha=0.25, axis="y")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=9, frameon=False)
    _save(figure, stem)


def plot_saturation(panels: dict[str, Curves], stem: Path) -> None:
    """Health of the first layer over steps, as <stem>.png and <stem>.svg, a panel for each
    quantity.
    """
    figure, axes = plt.subplots(1, len(panels), figsize=(11, 4.3), layout="constrained")
    for axis, (label, curves) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for curve in curves.curves:
            _draw(axis, curve)
        axis.set(xlabel=curves.x_label, ylabel=label, ylim=(-3, 103))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    lines, names = np.atleast_1d(axes)[0].get_legend_handles_labels()
    _legend(figure, lines, names, most=4)
    figure.suptitle(textwrap.fill(curves.title, 110), fontsize=10)
    _save(figure, stem)


def plot_forest(forest: Forest, stem: Path) -> None:
    """Effects with intervals, as <stem>.png and <stem>.svg: better is to the right; the grey band
    is what is smaller than the smallest effect of interest.
    """
    figure, axis = plt.subplots(figsize=(8, 1.3 + 0.32 * len(forest.rows)), layout="constrained")
    axis.axvline(0, color="#666666", lw=0.8)
    for place, row in enumerate(forest.rows):
        effect = row.effect
        if row.smallest:
            axis.barh(place, 2 * row.smallest, 1, -row.smallest, color="#999999", alpha=0.2, lw=0)
        bars = [[effect.mean - effect.low], [effect.high - effect.mean]]
        axis.errorbar(effect.mean, place, xerr=bars, fmt="s", ms=5, capsize=3, color="#0072B2")
    labels = [textwrap.fill(f"{r.label} (n\u00a0=\u00a0{r.effect.n})", 60) for r in forest.rows]
    axis.set_yticks(range(len(labels)), labels, fontsize=8)
    axis.invert_yaxis()
    axis.set_xlabel(forest.x_label)
    figure.suptitle(textwrap.fill(forest.title, 80), fontsize=10)  # labels leave it less than half
    axis.grid(alpha=0.25, axis="x")
    axis.spines[["top", "right"]].set_visible(False)
    _save(figure, stem)


def plot_depth(depth: Depth, stem: Path) -> None:
    """The diagnostics of every layer, as <stem>.png and <stem>.svg: a panel for each quantity, the
    last evaluation with bands, step 0 thin and dashed.
    """
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.6), sharex=True, layout="constrained")
    thin = {"linestyle": "--", "lw": 0.8, "alpha": 0.7}
    for axis, panel in zip(axes.flat, depth.panels, strict=True):
        for line, curve in zip(panel.begin, panel.curves, strict=True):
            axis.plot(line.x, line.y, color=curve.color, **thin)
            _draw(axis, curve)
        axis.set_title(panel.label, fontsize=10)
        axis.set_yscale("log" if panel.log else "linear")
        axis.set_xticks(list(depth.ticks), list(depth.ticks.values()))
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel(PLACES)
    lines, names = axes[0, 0].get_legend_handles_labels()
    lines.append(plt.Line2D([], [], color="#666666", **thin))
    _legend(figure, lines, [*names, "step 0"], most=4)
    figure.suptitle(textwrap.fill(depth.title, 110), fontsize=10)
    _save(figure, stem)


def plot_surface(surface: Surface, title: str, stem: Path) -> None:
    """The paper's figure 1, as <stem>.png and <stem>.svg: two surfaces over (x, y)."""
    figure = plt.figure(figsize=(9, 4.3), layout="constrained")
    x, y = np.meshgrid(surface.axis, surface.axis)
    parts = (("dot product", surface.dot), (f"Neural Attention: {surface.label}", surface.neural))
    for i, (name, scores) in enumerate(parts, 1):
        axis = figure.add_subplot(1, 2, i, projection="3d")
        axis.plot_surface(
            x, y, np.array(scores), cmap="viridis", linewidth=0, rstride=1, cstride=1
        )
        axis.set(xlabel="x", ylabel="y", xlim=(-REACH, REACH), ylim=(-REACH, REACH))
        axis.set_zlabel("score")
        axis.set_title(name, fontsize=10)
    title = f"Score of a query with itself, q' = k' = (x, y): {title}"
    figure.suptitle(textwrap.fill(title, 110), fontsize=10)
    _save(figure, stem)


def plot_ladder(ladder: Ladder, stem: Path) -> None:
    """Accuracy of the lowest seed as a heat map, as <stem>.png and <stem>.svg: a row for each
    level, a column for each arm; solved levels are bold.
    """
    arms, levels = list(ladder.accuracy), ladder.levels
    size = (2.2 + max(4.0, 1.3 * len(arms)), 1.7 + 0.42 * len(levels))
    figure, axis = plt.subplots(figsize=size, layout="constrained")
    lowest = [[ladder.lowest(arm, level) for arm in arms] for level in levels]
    values = np.array(lowest, dtype=float)  # nan where there is no run
    image = axis.imshow(values, cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        if np.isfinite(value):
            solved = ladder.solved(arms[j], levels[i])
            look = {"color": "black" if value > 60 else "white", "fontsize": 11}
            weight = "bold" if solved else "normal"
            text = f"{value:.1f}"
            axis.text(j, i, text, ha="center", va="center", weight=weight, **look)
    names = [textwrap.fill(arm.replace("_", "_ "), 14).replace("_ ", "_") for arm in arms]
    axis.set_xticks(range(len(arms)), names, fontsize=11)
    axis.set_yticks(range(len(levels)), ladder.names, fontsize=11)
    axis.tick_params(length=0)
    axis.spines[:].set_visible(False)
    figure.colorbar(image, label="test accuracy, %,\nlowest seed", shrink=0.9)
    axis.set_title(textwrap.fill(ladder.title, 70), fontsize=10)
    _save(figure, stem)


def _save(figure, stem: Path) -> None:
    """As PNG and SVG, each whole or not at all."""
    for kind, metadata in WITHOUT_DATE.items():
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, dpi=150, metadata=metadata)
        write_atomic(stem.with_name(f"{stem.name}.{kind}"), buffer.getvalue())
    plt.close(figure)
