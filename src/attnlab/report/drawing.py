"""The figures of a report: each as files, and as what the page draws itself."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from attnlab.errors import BadInput
from attnlab.report import depth, figures, health, interactive, published, setting
from attnlab.report.compare import Comparison
from attnlab.report.curves import curves
from attnlab.report.ladder import Ladder
from attnlab.report.surface import chosen, surface


@dataclass
class Figure:
    """file: relative to the report, without its kind. plots: what is drawn in the page, one beside
    the other: headings (may be empty) and JSON; none of a figure that is kept as a file alone.
    """

    caption: str
    file: str
    plots: dict[str, Markup]


def ladder_figure(found: Ladder, out: Path) -> Figure:
    """The heat map of a ladder."""
    file = f"figures/{found.slug}"
    figures.plot_ladder(found, out / file)
    caption = "Test accuracy of the lowest seed in percent, for each level and arm."
    return Figure(caption, file, {"": Markup(interactive.ladder_plot(found))})


def curve_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """The metric over steps or epochs; none without an evaluation."""
    found = curves(comparison)
    if found is None:
        return []
    source = setting.source(comparison.config["data.name"])
    number = published.EXPERIMENTS[source].figure if source else None
    name = f"figure{number}" if number else "curves"
    file = f"figures/{name}_{comparison.slug}"
    figures.plot_curves(found, out / file)
    caption = f"{found.y_label.capitalize()} over {found.x_label}s"
    if any(curve.n > 1 for curve in found.curves):
        caption += ": mean over seeds, the band from the smallest to the largest"
    caption += f". In the form of the paper's figure {number}." if number else "."
    if found.left_out:
        caption += f" Not drawn: {', '.join(found.left_out)}."
    return [Figure(caption, file, {"": Markup(interactive.curve_plot(found))})]


def health_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """The share of dead runs; none for few runs."""
    found = health.health(comparison)
    if max((len(h.begin) for h in found), default=0) < health.MANY:
        return []
    file = f"figures/dead_{comparison.slug}"
    shares = health.shares(found)
    figures.plot_health(shares, comparison.title, out / file)
    caption = "Share of runs whose score network is dead, every row having one constant score."
    return [Figure(caption, file, {"": Markup(interactive.health_plot(shares))})]


def depth_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """The diagnostics over depth; none without them."""
    found = depth.depth(comparison)
    if found is None:
        return []
    file = f"figures/depth_{comparison.slug}"
    figures.plot_depth(found, out / file)
    caption = "Over depth, in the last evaluation and (thin, dashed) at step 0"
    if any(curve.n > 1 for curve in found.panels[0].curves):
        caption += ": mean over seeds, the band its 95 % t-interval"
    caption += "."
    if found.left_out:
        caption += f" Not drawn: {', '.join(found.left_out)}."
    plots = {name: Markup(plot) for name, plot in interactive.depth_plots(found).items()}
    return [Figure(caption, file, plots)]


def surface_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """The paper's figure 1; for a comparison with `has_surface`. Without the run's checkpoint the
    file of an earlier report stays. Errors: `BadInput` if there is neither.
    """
    label, run = chosen(comparison)
    file = f"figures/figure1_{comparison.slug}"
    caption = (
        "Score of a query with itself over the plane, q' = k' = (x, y), in the form of the "
        f"paper's figure 1: the dot product, and the trained score network of {label} "
        f"({run.folder.name}), unscaled."
    )
    try:
        found = surface(comparison)
    except BadInput:
        if not (out / f"{file}.png").is_file():
            raise
        kept = " Drawn by an earlier report: the checkpoint is not here any more."
        return [Figure(caption + kept, file, {})]
    figures.plot_surface(found, comparison.title, out / file)
    headings = ("Dot product", f"Neural Attention: {label}")
    plots = map(Markup, interactive.surface_plots(found))
    return [Figure(caption, file, dict(zip(headings, plots, strict=True)))]


FIGURES = {  # of a comparison
    "The figure of curves": curve_figure,
    "The figure of dead scorers": health_figure,
    "The figure over depth": depth_figure,
    "The score surface (figure 1)": surface_figure,
}
