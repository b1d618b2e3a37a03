"""Pictures of attention maps (`inspection.attention_maps`); needs the `report` extra.

A picture is rows of panels: a row for every layer of a text, two for every layer of an image (what
the class token attends to, and the mean over all queries); in a row stand the heads, run beside
run, with one range of colours for all of them. Lengths are in inches.
"""

import io
import textwrap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import FuncNorm
from matplotlib.figure import Figure

from attnlab.errors import BadInput
from attnlab.inspection.attention_maps import View
from attnlab.report.pictures import ABOUT
from attnlab.runs.files import write_atomic

MOST_LABELS = 40  # tokens; more cannot be read, and are numbered instead
PITCH = 0.1  # from one label to the next
LETTER = 0.058  # of a label
GAP, RUN_GAP, TITLE = 0.08, 0.6, 0.2
PICTURE = 1.2  # side of the image itself
LINE = 0.15  # of the text on top
OVERLAY = 0.75  # opacity of a map over the image
DPI, MOST_PIXELS = 150, 6000  # the latter of a side: a picture of very many panels is coarser
HIDDEN = "0.88"  # the colour of keys that a query does not see


@dataclass
class PanelRow:
    """The panels of one run in a row: maps (H, a, b), and a title for each."""

    label: str
    maps: np.ndarray
    titles: list[str]


@dataclass
class Layout:
    """Where panels stand: x, y of their upper left corners from the top left of the figure."""

    side: float
    left: float
    below: float  # of every row, for labels
    above: list[float]  # of each row, for titles
    heads: list[int]  # of each run
    top: float = 0

    @property
    def width(self) -> float:
        """Of the figure, with the colour bars."""
        return max(4.5, self.x(len(self.heads), 0) + 0.35)

    @property
    def height(self) -> float:
        """Of the figure."""
        return self.y(len(self.above) - 1) + self.side + self.below + 0.1

    def x(self, run: int, head: int) -> float:
        """The left edge of a head's panel."""
        before = sum(self.heads[:run]) + head
        return self.left + before * (self.side + GAP) + run * RUN_GAP

    def y(self, row: int) -> float:
        """The upper edge of a row's panels."""
        return self.top + row * (self.side + self.below) + sum(self.above[: row + 1])


def draw(views: list[View], file: Path) -> None:
    """Write the picture of one or two runs, whole or not at all. Errors: `BadInput` if it cannot
    be written.
    """
    figure = plot(views)
    about = f"Attention of {', beside '.join(view.name for view in views)}: {views[0].subject}"
    dpi = min(DPI, MOST_PIXELS / max(figure.get_size_inches()))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={ABOUT: about})
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, buffer.getvalue())
    except OSError as error:
        raise BadInput(f"out={file}: cannot be written: {error}") from None


def plot(views: list[View]) -> Figure:
    """The figure itself."""
    first = views[0]
    tables = [_rows(view) for view in views]
    keys = sorted({key for table in tables for key in table})
    rows, columns = first.tokens, first.source or first.tokens
    most = max(len(rows), len(columns))
    labels = (rows, columns) if most <= MOST_LABELS else ([], [])
    length = LETTER * max(map(len, (*labels[0], *labels[1])), default=4)
    image = first.image is not None
    layout = Layout(
        side=1.0 if image else max(1.3, PITCH * most) if labels[0] else 2.2,
        left=0.6 if image else 0.5 + length,
        below=0.0 if image else length + 0.1,
        above=[GAP if part else TITLE for _, part in keys],
        heads=[view.weights.shape[1] for view in views],
    )
    lines = _header(first, layout.width)
    layout.top = max(LINE * len(lines), PICTURE if image else 0) + 0.25 + TITLE
    figure = Figure(figsize=(layout.width, layout.height))
    if image:
        axis = _axes(figure, 0.1, 0.1, PICTURE, PICTURE)
        axis.imshow(first.image.numpy())
        axis.set(xticks=[], yticks=[])
    _text(figure, 0.25 + PICTURE if image else 0.1, 0.1, "\n".join(lines))
    for run, view in enumerate(views):
        _text(figure, layout.x(run, 0), layout.top - TITLE, view.name, weight="bold")
    for place, key in enumerate(keys):
        found = {run: table[key] for run, table in enumerate(tables) if key in table}
        colours = _colours([row.maps for row in found.values()])
        for run, row in found.items():
            for head, (values, title) in enumerate(zip(row.maps, row.titles, strict=True)):
                box = (layout.x(run, head), layout.y(place), layout.side, layout.side)
                axis = _axes(figure, *box)
                _panel(axis, values, first.image, colours)
                axis.set_title(title, fontsize=7, pad=3)
                if head == 0:
                    axis.set_ylabel(row.label, fontsize=8)
                    if run == 0 and not image:
                        _ticks(axis, labels, values.shape)
        box = (layout.x(len(views), 0) - RUN_GAP, layout.y(place), 0.1, layout.side)
        _bar(_axes(figure, *box), colours, OVERLAY if image else None)
    return figure


def _rows(view: View) -> dict[tuple[int, int], PanelRow]:
    """By layer and, for an image, which of its two rows."""
    rows = {}
    for layer, weights in zip(view.layers, view.weights.numpy(), strict=True):
        name = f"layer {layer}\n{view.mechanism(layer)}"
        heads = [f"head {head}" for head in range(len(weights))]
        if view.image is None:
            if not view.source:
                weights = np.where(np.tri(weights.shape[-1], dtype=bool), weights, np.nan)
            rows[layer, 0] = PanelRow(name, weights, heads)
            continue
        side = view.cfg.data.image_size // view.cfg.arch.patch_size
        own = [f"{head}, self {w:.3f}" for head, w in zip(heads, weights[:, 0, 0], strict=True)]
        mean = weights.mean(1)
        parts = (("class token", weights[:, 0], own), ("all tokens", mean, [""] * len(heads)))
        for part, (query, to, titles) in enumerate(parts):
            maps = to[:, 1:].reshape(-1, side, side)
            rows[layer, part] = PanelRow(f"{name}\n{query}", maps, titles)
    return rows


def _colours(maps: list[np.ndarray]) -> ScalarMappable:
    """Of 0 to the largest weight; of both signs where there are negative ones.

    They go by the square root: most weights are far smaller than the first query's, which is 1.
    """
    low = min(float(np.nanmin(m)) for m in maps)
    top = max(float(np.nanmax(np.abs(m))) for m in maps) or 1.0
    norm = FuncNorm(
        (lambda w: np.sign(w) * np.sqrt(np.abs(w)), lambda c: np.sign(c) * np.square(c)),
        vmin=-top if low < 0 else 0,
        vmax=top,
    )
    return ScalarMappable(norm, "RdBu_r" if low < 0 else "YlOrRd")


def _axes(figure: Figure, x: float, y: float, width: float, height: float):
    """Axes at x, y from the top left."""
    w, h = figure.get_size_inches()
    return figure.add_axes((x / w, 1 - (y + height) / h, width / w, height / h))


def _panel(axis, values: np.ndarray, image, colours: ScalarMappable) -> None:
    rows, columns = values.shape
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    alpha = None
    if image is None:
        axis.set_facecolor(HIDDEN)
    else:
        axis.imshow(image.mean(-1).numpy(), cmap="gray", vmin=-2, vmax=1, extent=extent)  # pale
        alpha = OVERLAY
    style = {"alpha": alpha, "aspect": "auto"}  # fills its square, whatever its numbers of tokens
    axis.imshow(values, cmap=colours.cmap, norm=colours.norm, extent=extent, **style)
    axis.set(xticks=[], yticks=[])


def _ticks(axis, labels: tuple[list[str], list[str]], shape: tuple[int, int]) -> None:
    """Of rows and columns the tokens themselves, or a few of their numbers."""
    rows, columns = labels
    if rows:
        axis.set_xticks(range(len(columns)), columns, rotation=90)
        axis.set_yticks(range(len(rows)), rows)
        for text in (*axis.get_xticklabels(), *axis.get_yticklabels()):
            text.set(fontsize=6, parse_math=False)
    else:
        for ticks, count in zip((axis.set_yticks, axis.set_xticks), shape, strict=True):
            ticks(sorted({0, count // 2, count - 1}))
    axis.tick_params(labelsize=6, length=2, pad=1)


def _bar(axis, colours: ScalarMappable, alpha: float | None) -> None:
    low, top = colours.norm.vmin, colours.norm.vmax
    ticks = [0, top / 4, top] if low == 0 else [-top, -top / 4, 0, top / 4, top]
    axis.figure.colorbar(colours, cax=axis, ticks=ticks, alpha=alpha)
    names = axis.set_yticklabels([f"{tick:.2g}" for tick in ticks])
    names[0].set_va("bottom")  # or they run into those of the rows around
    names[-1].set_va("top")
    axis.tick_params(labelsize=6, length=2, pad=1)
    axis.minorticks_off()


def _text(figure: Figure, x: float, y: float, text: str, **style) -> None:
    """Lines below y from the top left."""
    w, h = figure.get_size_inches()
    figure.text(x / w, 1 - y / h, text, va="top", fontsize=9, parse_math=False, **style)


def _header(view: View, width: float) -> list[str]:
    """What is shown and how to read it, in lines that fit."""
    if view.image is None:
        notes = "Rows are queries, columns the keys they attend to; grey: not seen."
        if view.source:
            notes = (
                "Cross-attention: rows are the tokens of the translation as they are written, "
                "columns those of the text."
            )
    else:
        width -= PICTURE
        notes = (
            "Attention to each patch: by the class token (self: its weight on itself), and the "
            "mean over all tokens."
        )
    letters = int((width - 0.4) / 0.07)
    notes += " Colours go by the square root of the weight."
    return [*textwrap.wrap(view.subject, letters), *textwrap.wrap(notes, letters)]
