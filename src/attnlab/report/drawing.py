"""The figures of a report: each as files, and as what the page draws itself."""

from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from attnlab.config.measures import quantity
from attnlab.errors import BadInput
from attnlab.report import depth, figures, forest, health, interactive, naming, published
from attnlab.report.compare import Comparison
from attnlab.report.curves import curves, saturation_curves
from attnlab.report.forest import Forest
from attnlab.report.ladder import Ladder
from attnlab.report.questions import Answer
from attnlab.report.surface import chosen, surface
from attnlab.report.tuning import Tuning
from attnlab.report.tuning_text import curves as curves_of_tuning


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
    source = naming.source(comparison.config)
    number = published.EXPERIMENTS[source].figure if source else None
    name = f"figure{number}" if number else "curves"
    file = f"figures/{name}_{comparison.slug}"
    figures.plot_curves(found, out / file)
    caption = f"{found.y_label.capitalize()} over {found.x_label}s"
    if any(curve.n > 1 for curve in found.curves):
        caption += ": mean over seeds, the band from the smallest to the largest"
    caption += f". In the form of the paper's figure {number}." if number else "."
    caption += _not_drawn(found.left_out)
    return [Figure(caption, file, {"": Markup(interactive.curve_plot(found))})]


def _not_drawn(labels: list[str]) -> str:
    """The end of a caption: arms beyond the palette."""
    return f" Not drawn: {', '.join(labels)}." if labels else ""


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


def forest_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """The effects of a comparison; none where no effect has an interval."""
    return _forest_figure(forest.of_comparison(comparison), f"forest_{comparison.slug}", out)


def answer_figure(answer: Answer, slug: str, out: Path) -> list[Figure]:
    """The registered effects of a question; none where no effect has an interval."""
    return _forest_figure(forest.of_answer(answer), f"forest_{slug}", out)


def _forest_figure(found: Forest | None, name: str, out: Path) -> list[Figure]:
    if found is None:
        return []
    file = f"figures/{name}"
    figures.plot_forest(found, out / file)
    caption = "Paired effects, mean over seeds and interval; better is to the right."
    if found.smallest:
        smallest = quantity(found.smallest, found.measure.unit)
        caption += f" Grey: nearer to 0 than the smallest effect of interest, {smallest}."
    return [Figure(caption, file, {"": Markup(interactive.forest_plot(found))})]


def saturation_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """Saturation of the first layer over steps; none where no run has logged it."""
    found = saturation_curves(comparison)
    if not found:
        return []
    file = f"figures/saturation_{comparison.slug}"
    figures.plot_saturation(found, out / file)
    caption = (
        "Saturation of the first layer over steps: mean over seeds, the band from the smallest to "
        "the largest."
    )
    caption += _not_drawn(next(iter(found.values())).left_out)
    plots = {label: Markup(interactive.curve_plot(curves)) for label, curves in found.items()}
    return [Figure(caption, file, plots)]


def tuning_figure(found: Tuning, out: Path) -> Figure:
    """Every arm's response to the learning rate."""
    file = f"figures/{found.slug}"
    drawn = curves_of_tuning(found)
    figures.plot_curves(drawn, out / file)
    caption = "Response to the learning rate: mean over the tuning seeds, and their range."
    caption += _not_drawn(drawn.left_out)
    return Figure(caption, file, {"": Markup(interactive.curve_plot(drawn))})


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
    caption += _not_drawn(found.left_out)
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
    "The figure of effects": forest_figure,
    "The figure of dead scorers": health_figure,
    "The figure of saturation": saturation_figure,
    "The figure over depth": depth_figure,
    "The score surface (figure 1)": surface_figure,
}
