"""The page's interactive figures as JSON, drawn by the plotly.js inside the page itself."""

from itertools import chain

import plotly.graph_objects as go

from attnlab.report.curves import Curve, Curves
from attnlab.report.depth import PLACES, Depth, Panel
from attnlab.report.figures import legend
from attnlab.report.forest import Forest
from attnlab.report.health import Share
from attnlab.report.ladder import Ladder
from attnlab.report.surface import Surface

FONT = {"family": "system-ui, sans-serif", "size": 13, "color": "#1c1e21"}
GRID = {"gridcolor": "#e6e6e6", "zeroline": False, "linecolor": "#999999", "ticks": "outside"}


def curve_plot(curves: Curves) -> str:
    """Means, bands and single runs of all arms."""
    figure = go.Figure(list(chain.from_iterable(map(_traces, curves.curves))))
    _lay_out(figure, curves.x_label, curves.y_label)
    if curves.x_log:
        x = sorted({value for curve in curves.curves for value in curve.x})
        figure.update_xaxes(type="log", tickvals=x, ticktext=[f"{value:g}" for value in x])
    if curves.log:
        figure.update_yaxes(type="log", tickformat=",~r", minor_showgrid=False, nticks=8)
    return _json(figure)


def health_plot(shares: list[Share]) -> str:
    """Percent of dead runs for each arm, with intervals."""
    figure = go.Figure()
    for share in shares:
        bars = {"type": "data", "array": share.above, "arrayminus": share.below}
        point = {"mode": "markers", "marker": {"size": 9}, "name": f"at {share.time}"}
        figure.add_scatter(x=share.names, y=share.percent, error_y=bars, **point)
    _lay_out(figure, "", "dead runs, %, with 95 % interval")
    figure.update_layout(scattermode="group")
    return _json(figure)


def forest_plot(forest: Forest) -> str:
    """Effects with intervals, one below the other."""
    labels = [row.label for row in forest.rows]
    effects = [row.effect for row in forest.rows]
    bars = {
        "type": "data",
        "array": [effect.high - effect.mean for effect in effects],
        "arrayminus": [effect.mean - effect.low for effect in effects],
    }
    figure = go.Figure()
    means = [effect.mean for effect in effects]
    look = {"mode": "markers", "marker": {"symbol": "square", "size": 8, "color": "#0072B2"}}
    figure.add_scatter(x=means, y=labels, error_x=bars, name="", **look)
    band = {"fillcolor": "#999999", "opacity": 0.2, "line": {"width": 0}}
    for place, row in enumerate(forest.rows):
        if row.smallest:
            ends = {"x0": -row.smallest, "x1": row.smallest}
            figure.add_shape(**ends, y0=place - 0.5, y1=place + 0.5, **band)
    figure.add_vline(0, line={"color": "#666666", "width": 1})
    _lay_out(figure, forest.x_label, "")
    figure.update_yaxes(type="category", autorange="reversed", automargin=True)
    figure.update_layout(showlegend=False, height=120 + 32 * len(labels))
    return _json(figure)


def ladder_plot(ladder: Ladder) -> str:
    """Accuracy of the lowest seed as a heat map: a row for each level, a column for each arm."""
    arms, levels = list(ladder.accuracy), ladder.levels
    z = [[ladder.lowest(arm, level) for arm in arms] for level in levels]
    figure = go.Figure(
        go.Heatmap(
            x=arms,
            y=ladder.names,
            z=z,
            zmin=0,
            zmax=100,
            colorscale="Viridis",
            texttemplate="%{z:.1f}",
            xgap=2,
            ygap=2,
            showscale=False,
            hovertemplate="%{x}, %{y}: %{z:.2f} %<extra></extra>",
        )
    )
    _lay_out(figure, "", "")
    figure.update_layout(height=140 + 34 * len(levels))
    figure.update_yaxes(autorange="reversed", automargin=True, showgrid=False)
    figure.update_xaxes(type="category", showgrid=False)
    return _json(figure)


def depth_plots(depth: Depth) -> dict[str, str]:
    """A quantity's name -> its means and bands over layers, and its means at step 0."""
    return {panel.label: _json(_depth_plot(panel, depth.ticks)) for panel in depth.panels}


def _depth_plot(panel: Panel, ticks: dict[int, str]) -> go.Figure:
    figure = go.Figure(list(chain.from_iterable(map(_traces, panel.curves))))
    for line, curve in zip(panel.begin, panel.curves, strict=True):
        style = {"color": curve.color, "width": 0.9, "dash": "dash"}
        quiet = {"showlegend": False, "legendgroup": curve.label, "opacity": 0.7}
        figure.add_scatter(x=line.x, y=line.y, name=line.name, mode="lines", line=style, **quiet)
    _lay_out(figure, PLACES, "")
    figure.update_xaxes(tickvals=list(ticks), ticktext=list(ticks.values()))
    if panel.log:
        figure.update_yaxes(type="log", exponentformat="power", minor_showgrid=False)
    figure.update_layout(height=340)
    return figure


def _lay_out(figure: go.Figure, x_label: str, y_label: str) -> None:
    figure.update_layout(
        template="none",
        font=FONT,
        height=440,
        margin={"l": 64, "r": 16, "t": 16, "b": 56},
        hovermode="closest",
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
        xaxis={"title": {"text": x_label}, "automargin": True, **GRID},
        yaxis={"title": {"text": y_label}, **GRID},
    )


def _traces(curve: Curve) -> list[go.Scatter]:
    """A band, thin lines of single runs, and the mean, hidden and shown together."""
    quiet = {"showlegend": False, "legendgroup": curve.label}
    traces = []
    if curve.n > 1:
        around = {"x": curve.x + curve.x[::-1], "y": curve.high + curve.low[::-1]}
        fill = {"fill": "toself", "fillcolor": _faint(curve.color), "line": {"width": 0}}
        traces.append(go.Scatter(**around, **fill, mode="lines", hoverinfo="skip", **quiet))
    for line in curve.lines:
        if not line.whole or curve.n > 1:
            style = {"color": curve.color, "width": 0.8, "dash": "solid" if line.whole else "dot"}
            look = {"name": line.name, "mode": "lines", "line": style, "opacity": 0.5}
            traces.append(go.Scatter(x=line.x, y=line.y, **look, **quiet))
    mean = go.Scatter(
        x=curve.x,
        y=curve.mean,
        name=legend(curve),
        mode="lines+markers" if len(curve.x) <= 30 else "lines",
        line={"color": curve.color, "width": 2.2, "dash": curve.dash},
        marker={"size": 5},
        legendgroup=curve.label,
    )
    return [*traces, mean]


def _faint(color: str) -> str:
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.12)"


def surface_plots(surface: Surface) -> list[str]:
    """The dot product, and the score network."""
    return [_surface(surface.axis, scores) for scores in (surface.dot, surface.neural)]


def _surface(axis: list[float], scores: list[list[float]]) -> str:
    rounded = [[float(f"{score:.5g}") for score in row] for row in scores]
    figure = go.Figure(
        go.Surface(x=axis, y=axis, z=rounded, colorscale="Viridis", showscale=False)
    )
    figure.update_layout(
        template="none",
        font={**FONT, "size": 11},
        height=380,
        margin={"l": 0, "r": 0, "t": 0, "b": 0},
        scene={
            "zaxis": {"title": {"text": "score"}},
            "aspectmode": "cube",
            "camera": {"eye": {"x": -1.2, "y": -1.7, "z": 0.9}, "center": {"z": -0.1}},
        },
    )
    return _json(figure)


def _json(figure: go.Figure) -> str:
    """Without `<`, so that it can stand inside a script element whatever a label says."""
    return figure.to_json().replace("<", "\\u003c")
