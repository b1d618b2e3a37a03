"""A report on a folder of runs: one page, the same in Markdown, and figures."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jinja2
import plotly.offline
from markupsafe import Markup

from attnlab.config.measures import BLEU
from attnlab.config.schema import CODE_VERSION
from attnlab.errors import BadInput
from attnlab.report import (
    answer_text,
    depth,
    health,
    ladder,
    notes,
    tables,
    translation,
    tuning,
    tuning_text,
)
from attnlab.report.collect import STATUSES, Run, collect
from attnlab.report.compare import Comparison, comparisons
from attnlab.report.drawing import (
    FIGURES,
    Figure,
    answer_figure,
    ladder_figure,
    surface_figure,
    tuning_figure,
)
from attnlab.report.ladder import Ladder
from attnlab.report.pictures import Album, Picture
from attnlab.report.questions import Answer, answers
from attnlab.report.surface import has_surface
from attnlab.report.tables import Table
from attnlab.report.tuning import Tuning
from attnlab.runs.files import write_atomic

MOST_DRAWN = 16  # comparisons with figures: each costs half a second, and its share of the page
MOST_SURFACES = 4  # of these with figure 1: a browser shows about 16 interactive surfaces at once


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
    saturation: Table
    depth: Table
    translation: Table
    translation_notes: list[str]
    samples: Table
    figures: list[Figure]
    pictures: list[Picture]
    missing: list[str]  # figures that could not be drawn, and why


@dataclass
class QuestionSection:
    """What page.html and page.md say of a registered question."""

    title: str
    tag: str
    slug: str
    quotation: list[tuple[str, str]]
    verdicts: list[tuple[str, str]]
    table: Table
    notes: list[str]
    figures: list[Figure]


@dataclass
class TuningSection:
    """What page.html and page.md say of arms at their own learning rates."""

    title: str
    slug: str
    table: Table
    notes: list[str]
    figures: list[Figure]


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
    for run in runs:
        _check(run)
    tuned, compared = tuning.tunings(runs)
    found = comparisons(compared)
    try:
        (out / "figures").mkdir(parents=True, exist_ok=True)
        failed: list[str] = []
        asked = _try("What was asked", failed, answers, compared, tuned)
        for comparison in found:
            comparison.registered = answer_text.registered(comparison, asked, comparison.measure)
            comparison.registered_bleu = answer_text.registered(comparison, asked, BLEU)
        for each in tuned:
            each.registered = answer_text.registered_at_own_rates(each, asked)

        def parts(of: list, section: Callable) -> list:
            return [made for each in of for made in _try(each.title, failed, section, each, out)]

        content = {
            "name": root.resolve().name,
            "counts": _counts(runs),
            "versions": _versions(runs),
            "ladders": parts(ladder.ladders(found), _ladder_section),
            "questions": parts(asked, _question_section),
            "tunings": parts(tuned, _tuning_section),
            "sections": _sections(found, asked, out, failed),
            "failed": failed,
            "unfinished": tables.unfinished(runs, out),
            "runs": tables.listing(runs, out),
            "dead": notes.DEAD,
            "saturated": notes.SATURATED,
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


def _check(run: Run) -> None:
    """Whether the run alone can be reported; if not, it is listed with the cause."""
    try:
        alone = comparisons([run])
        tuning.tunings([run])
        for comparison in alone:
            _section(comparison, [], [], [], [])
        ladder.ladders(alone)
    except Exception as error:  # of odd content, which can be anything
        run.mark_unreadable(error)


def _counts(runs: list[Run]) -> str:
    """`4 runs: 3 finished, 1 failed`."""
    number = {status: sum(run.status == status for run in runs) for status in STATUSES}
    said = ", ".join(f"{n} {status}" for status, n in number.items() if n)
    return f"{len(runs):,} {'run' if len(runs) == 1 else 'runs'}: {said}"


def _versions(runs: list[Run]) -> str:
    """Which versions of the code made the runs, where it was not this one; empty if it was."""
    made = sorted({run.config["code_version"] for run in runs if "code_version" in run.config})
    if not set(made) - {CODE_VERSION}:
        return ""
    said = " and ".join(map(str, made))
    return (
        f"These runs were made by code version {said}; this report is written by version "
        f"{CODE_VERSION}. Runs of different versions are never compared with each other."
    )


def _sections(
    found: list[Comparison], asked: list[Answer], out: Path, failed: list[str]
) -> list[Section]:
    """One for each comparison, the first ones with figures; what cannot be shown is `failed`."""
    with_surface = [c for c in found if not c.ablation and has_surface(c)][:MOST_SURFACES]
    sections, album = [], Album(out)
    for place, comparison in enumerate(found):
        drawn, missing = [], []
        for what, draw in FIGURES.items() if place < MOST_DRAWN else ():
            if draw is not surface_figure or comparison in with_surface:
                drawn += _try(what, missing, draw, comparison, out)
        taken, gone = album.take(comparison)
        rest = (drawn, taken, missing + gone)
        sections += _try(comparison.title, failed, _section, comparison, asked, *rest)
    return sections


def _try(what: str, missing: list[str], make: Callable[..., list], *args) -> list:
    """One part of the report: what is wrong with it costs this part only, and is said."""
    try:
        return make(*args)
    except OSError:  # of the report's own folder
        raise
    except Exception as error:  # of odd content, which can be anything
        kind = "" if isinstance(error, BadInput) else f"{type(error).__name__}: "
        missing.append(f"{what} is missing: {kind}{error}.")
        return []


def _section(
    comparison: Comparison,
    asked: list[Answer],
    drawn: list[Figure],
    taken: list[Picture],
    missing: list[str],
) -> list[Section]:
    section = Section(
        title=comparison.title,
        tag=", ".join(filter(None, (notes.tag(comparison), answer_text.marks(comparison, asked)))),
        slug=comparison.slug,
        setting=notes.setting(comparison),
        verdicts=notes.verdicts(comparison),
        results=tables.results(comparison),
        notes=notes.results(comparison),
        cost=tables.cost(comparison),
        cost_notes=notes.cost(comparison),
        health=health.table(health.health(comparison)),
        saturation=health.saturation_table(comparison),
        depth=depth.table(comparison),
        translation=translation.table(comparison),
        translation_notes=translation.notes(comparison),
        samples=translation.samples(comparison),
        figures=drawn,
        pictures=taken,
        missing=missing,
    )
    return [section]


def _question_section(answer: Answer, out: Path) -> list[QuestionSection]:
    section = QuestionSection(
        title=answer.title,
        tag=answer_text.tag(answer),
        slug=answer.slug,
        quotation=answer_text.quotation(answer),
        verdicts=answer_text.verdicts(answer),
        table=answer_text.table(answer),
        notes=answer_text.notes(answer),
        figures=answer_figure(answer, answer.slug, out),
    )
    return [section]


def _tuning_section(found: Tuning, out: Path) -> list[TuningSection]:
    drawn = [tuning_figure(found, out)]
    table, said = tuning_text.table(found), tuning_text.notes(found)
    return [TuningSection(found.title, found.slug, table, said, drawn)]


def _ladder_section(found: Ladder, out: Path) -> list[LadderSection]:
    drawn = [ladder_figure(found, out)]
    return [LadderSection(found.title, found.slug, ladder.table(found), ladder.note(found), drawn)]
