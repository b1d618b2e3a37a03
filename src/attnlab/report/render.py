"""A report on a folder of runs: one page, the same in Markdown, and figures."""

from dataclasses import dataclass
from pathlib import Path

import jinja2
import plotly.offline
from markupsafe import Markup

from attnlab.errors import BadInput
from attnlab.folder import write_atomic
from attnlab.report import (
    depth,
    figures,
    health,
    interactive,
    ladder,
    notes,
    published,
    setting,
    tables,
)
from attnlab.report.collect import Run, collect
from attnlab.report.compare import Comparison, comparisons
from attnlab.report.curves import curves
from attnlab.report.ladder import Ladder
from attnlab.report.pictures import Album, Picture
from attnlab.report.surface import has_surface, surface
from attnlab.report.table import Table

MOST_DRAWN = 16  # comparisons with figures: each costs half a second, and its share of the page
MOST_SURFACES = 4  # of these with figure 1: a browser shows about 16 interactive surfaces at once


@dataclass
class Figure:
    """file: relative to the report, without its kind. plots: what is drawn in the page, one beside
    the other: headings (may be empty) and JSON.
    """

    caption: str
    file: str
    plots: dict[str, Markup]


@dataclass
class Section:
    """What page.html and page.md say of one comparison."""

    title: str
    tag: str
    slug: str
    setting: str
    verdicts: list[tuple[str, str]]
    results: Table
    notes: list[str]
    cost: Table
    cost_notes: list[str]
    health: Table
    depth: Table
    figures: list[Figure]
    pictures: list[Picture]
    missing: list[str]  # figures that could not be drawn, and why


@dataclass
class LadderSection:
    """What page.html and page.md say of the levels of a task that the arms solve."""

    title: str
    slug: str
    table: Table
    note: str
    figures: list[Figure]


def report(root: Path, out: Path) -> None:
    """Write index.html, report.md and figures/ into `out`, and say so.

    Errors: `BadInput` if there is no run below `root`, or `out` cannot be written.
    """
    runs = collect(root)
    found = comparisons(runs)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        content = {
            "name": root.resolve().name,
            "counts": _counts(runs),
            "ladders": [_ladder_section(each, out) for each in ladder.ladders(found)],
            "sections": _sections(found, out),
            "unfinished": tables.unfinished(runs, out),
            "runs": tables.listing(runs, out),
            "dead": notes.DEAD,
            "depth": notes.DEPTH,
            "drawn": MOST_DRAWN,
        }
        templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).parent),
            autoescape=jinja2.select_autoescape(["html"]),
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.StrictUndefined,
        )
        plotly_js = Markup(plotly.offline.get_plotlyjs())
        page = templates.get_template("page.html").render(content, plotly_js=plotly_js)
        write_atomic(out / "report.md", templates.get_template("page.md").render(content))
        write_atomic(out / "index.html", page)
    except OSError as error:
        raise BadInput(f"out={out}: cannot be written: {error}") from None
    print(f"report: {out / 'index.html'}")


def _counts(runs: list[Run]) -> str:
    """`4 runs: 3 finished, 1 failed`."""
    order = ("finished", "unfinished", "interrupted", "failed", "unreadable")
    number = {status: sum(run.status == status for run in runs) for status in order}
    said = ", ".join(f"{n} {status}" for status, n in number.items() if n)
    return f"{len(runs):,} {'run' if len(runs) == 1 else 'runs'}: {said}"


def _sections(found: list[Comparison], out: Path) -> list[Section]:
    """One for each comparison; the first ones with figures."""
    with_surface = [c for c in found if not c.ablation and has_surface(c)][:MOST_SURFACES]
    sections, album = [], Album(out)
    for place, comparison in enumerate(found):
        drawn, missing = [], []
        if place < MOST_DRAWN:
            drawn += _curve_figure(comparison, out) + _health_figure(comparison, out)
            drawn += _depth_figure(comparison, out)
            if comparison in with_surface:
                try:
                    drawn.append(_surface_figure(comparison, out))
                except BadInput as error:  # a checkpoint that is gone costs one figure
                    missing.append(f"The score surface (figure 1) is missing: {error}.")
        taken, gone = album.take(comparison)
        sections.append(_section(comparison, drawn, taken, missing + gone))
    return sections


def _section(
    comparison: Comparison, drawn: list[Figure], taken: list[Picture], missing: list[str]
) -> Section:
    return Section(
        title=comparison.title,
        tag=notes.tag(comparison),
        slug=comparison.slug,
        setting=notes.setting(comparison),
        verdicts=notes.verdicts(comparison),
        results=tables.results(comparison),
        notes=notes.results(comparison),
        cost=tables.cost(comparison),
        cost_notes=notes.cost(comparison),
        health=health.table(health.health(comparison)),
        depth=depth.table(comparison),
        figures=drawn,
        pictures=taken,
        missing=missing,
    )


def _ladder_section(found: Ladder, out: Path) -> LadderSection:
    file = f"figures/{found.slug}"
    figures.plot_ladder(found, out / file)
    caption = (
        "Accuracy of the lowest seed over tau; the line at the top is where a level is solved."
    )
    plots = {n: Markup(plot) for n, plot in interactive.ladder_plots(found).items()}
    drawn = [Figure(caption, file, plots)]
    return LadderSection(found.title, found.slug, ladder.table(found), ladder.note(found), drawn)


def _curve_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """None without an evaluation."""
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


def _health_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """None for few runs."""
    found = health.health(comparison)
    if max((len(h.begin) for h in found), default=0) < health.MANY:
        return []
    file = f"figures/dead_{comparison.slug}"
    shares = health.shares(found)
    figures.plot_health(shares, comparison.title, out / file)
    caption = "Share of runs whose score network is dead, every row having one constant score."
    return [Figure(caption, file, {"": Markup(interactive.health_plot(shares))})]


def _depth_figure(comparison: Comparison, out: Path) -> list[Figure]:
    """None without diagnostics."""
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


def _surface_figure(comparison: Comparison, out: Path) -> Figure:
    found = surface(comparison)
    file = f"figures/figure1_{comparison.slug}"
    figures.plot_surface(found, comparison.title, out / file)
    headings = ("Dot product", f"Neural Attention: {found.label}")
    plots = map(Markup, interactive.surface_plots(found))
    caption = (
        "Score of a query with itself over the plane, q' = k' = (x, y), in the form of the "
        f"paper's figure 1: the dot product, and the trained score network of {found.label} "
        f"({found.folder.name}), unscaled."
    )
    return Figure(caption, file, dict(zip(headings, plots, strict=True)))
