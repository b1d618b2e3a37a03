"""A table of texts, for the page and for Markdown alike, and the tables of a report: results, cost
and the runs themselves.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal
from urllib.parse import quote

from attnlab.report import statistics
from attnlab.report.collect import Run
from attnlab.report.compare import Arm, Comparison
from attnlab.report.naming import reference
from attnlab.report.statistics import Effect
from attnlab.report.verdicts import Verdict, verdict

DASH = "—"  # a value that is not known
DIRTY = " + changes"  # behind a commit: of runs with uncommitted changes


@dataclass(frozen=True)
class Link:
    """A cell that leads somewhere; href is relative to the report."""

    text: str
    href: str


Cell = str | Link
Kind = Literal["text", "number"]


@dataclass(frozen=True)
class Table:
    """columns: heading -> what stands below it; rows: a cell for every column."""

    columns: dict[str, Kind]
    rows: list[list[Cell]]

    def markdown(self) -> str:
        """The table in Markdown, its columns aligned."""
        lines = [[_escape(name) for name in self.columns]]
        lines += [[_markdown(cell) for cell in row] for row in self.rows]
        kinds = list(self.columns.values())
        widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(kinds))]
        rule = [
            "-" * (width - 1) + ":" if kind == "number" else "-" * width
            for kind, width in zip(kinds, widths, strict=True)
        ]
        padded = [
            [
                cell.rjust(width) if kind == "number" else cell.ljust(width)
                for cell, kind, width in zip(line, kinds, widths, strict=True)
            ]
            for line in lines
        ]
        return "\n".join("| " + " | ".join(line) + " |" for line in (padded[0], rule, *padded[1:]))


def _markdown(cell: Cell) -> str:
    if isinstance(cell, Link):
        return f"[{_escape(cell.text)}]({cell.href})"
    return _escape(cell)


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def results(comparison: Comparison) -> Table:
    """Ours, the published effect, our effect, its p, the verdict and n; a row for each arm."""
    shown = {k: e for k, e in comparison.effects.items() if k not in comparison.registered}
    columns = {
        "model": "text",
        f"test {comparison.measure.name}": "number",
        "published effect": "number",
        f"effect over dot product{level_text(shown)}": "number",
        "p (Holm)": "number",
        "verdict": "text",
    }
    if second := comparison.effects_over_uniform:
        columns[f"effect over uniform{level_text(second)}"] = "number"
    columns["n"] = "number"
    return Table(columns, [_result(comparison, arm) for arm in comparison.arms])


def level_text(effects: dict[str, Effect]) -> str:
    """As part of a heading: the level of their intervals; empty without intervals."""
    tested = [effect for effect in effects.values() if effect.sd is not None]
    return f" ({100 * tested[0].level:.4g} % interval)" if tested else ""


def _result(comparison: Comparison, arm: Arm) -> list[Cell]:
    n = len(arm.counted)
    effect, second = comparison.effects.get(arm.label), comparison.effects_over_uniform
    paired = "" if effect is None or effect.n == n else f" ({effect.n} paired)"
    cells = [arm.label, _ours(comparison, arm), *_judged(comparison, arm, effect)]
    if second:
        cells.append(effect_text(second[arm.label]) if arm.label in second else "")
    return [*cells, f"{n}{paired}"]


def _judged(comparison: Comparison, arm: Arm, effect: Effect | None) -> list[str]:
    """Published effect, ours, p and verdict."""
    if arm is comparison.baseline:
        return ["", "baseline", "", ""]
    if effect:
        p = DASH if effect.p_holm is None else _p(effect.p_holm)
        if asked := comparison.registered.get(arm.label):  # whose interval may be another one
            return [_published(arm), _mean_text(effect), "", f"see question {asked}"]
        return [_published(arm), effect_text(effect), p, judge(arm, effect).word]
    if comparison.ablation and not arm.ablation:
        return [_published(arm), _mean_effect(comparison, arm), "", "see above"]
    return [_published(arm), DASH, DASH, DASH if arm.counted else "no finished run"]


def _mean_effect(comparison: Comparison, arm: Arm) -> str:
    base = comparison.baseline
    if base is None or not base.values.keys() & arm.values.keys():
        return DASH
    return _mean_text(statistics.paired_effect(arm.values, base.values, comparison.measure))


def judge(arm: Arm, effect: Effect) -> Verdict:
    """Against the published effect where data, sizes, budget and arm are the published ones;
    else against no effect at all.
    """
    known = reference(arm.config)
    return verdict(effect, known.effect if known and known.exact else None)


def _ours(comparison: Comparison, arm: Arm) -> str:
    if not arm.values:
        return DASH
    measure = comparison.measure
    values = [measure.factor * value for value in arm.values.values()]
    s = statistics.summarize(values, within=measure.within)
    interval = "" if s.sd is None else f" [{s.low:,.2f}, {s.high:,.2f}]"
    return f"{s.mean:,.2f}{interval}{measure.suffix}"


def _published(arm: Arm) -> str:
    known = reference(arm.config)
    if known is None:
        return DASH
    text = f"{known.effect:+.2f} {arm.runs[0].measure.unit}"
    return f"{text} (table {known.table})" if known.exact else f"({text}, orientation)"


def effect_text(effect: Effect) -> str:
    """Mean, unit and, over several seeds, the interval."""
    interval = "" if effect.sd is None else f" [{effect.low:+.2f}, {effect.high:+.2f}]"
    return f"{_mean_text(effect)}{interval}"


def _mean_text(effect: Effect) -> str:
    return f"{effect.mean:+.2f} {effect.unit}"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def cost(comparison: Comparison) -> Table:
    """Parameters, memory and speed in training and in inference, as the paper's tables 6 to 8 have
    them: medians of the finished runs, without columns that no run fills.
    """
    text = comparison.config["arch.body"] != "vit"
    what, unit = ("tokens", "tokens/s") if text else ("samples", "images/s")
    arms = [arm for arm in comparison.arms if arm.counted]
    columns: dict[str, list[str]] = {
        "parameters": _column(arms, "params"),
        "of which attention": _column(arms, "params_attention"),
        unit: _column(arms, f"{what}_per_s"),
        "step, ms": _column(arms, "step_ms_median", ",.1f"),
        "time / dot product": _ratios(comparison, arms, "step_ms_median"),
        "FLOPs a step": _column(arms, "flops_per_step", ".3g"),
        "MFU": _column(arms, "mfu", ".1%"),
        f"inference, {unit}": _column(arms, f"eval_{what}_per_s"),
        "peak MiB": _column(arms, "peak_memory_mib"),
        "memory / dot product": _ratios(comparison, arms, "peak_memory_mib"),
        "MiB between steps": _column(arms, "steady_memory_mib"),
        "n": [str(len(arm.counted)) for arm in arms],
    }
    filled = {name: column for name, column in columns.items() if set(column) != {DASH}}
    labels = [arm.label for arm in arms]
    rows = [list(row) for row in zip(labels, *filled.values(), strict=True)]
    return Table({"model": "text", **dict.fromkeys(filled, "number")}, rows)


def _column(arms: list[Arm], key: str, form: str = ",.0f") -> list[str]:
    medians = [_median(arm, key) for arm in arms]
    return [DASH if median is None else f"{median:{form}}" for median in medians]


def _ratios(comparison: Comparison, arms: list[Arm], key: str) -> list[str]:
    """Medians by that of the baseline."""
    base = comparison.baseline and _median(comparison.baseline, key)
    medians = [_median(arm, key) for arm in arms]
    return [f"{median / base:.2f}" if median and base else DASH for median in medians]


def _median(arm: Arm, key: str) -> float | None:
    values = [run.result.get(key) for run in arm.counted.values()]
    known = [value for value in values if value is not None]
    return median(known) if known else None


def unfinished(runs: list[Run], out: Path) -> Table:
    """Runs without a result, and why."""
    rows = [[_link(run, out), *_identity(run), run.status, run.cause] for run in runs if run.cause]
    return Table({"run": "text", **IDENTITY, "status": "text", "cause": "text"}, rows)


def listing(runs: list[Run], out: Path) -> Table:
    """Every run with its result, its commit and its machine."""
    columns = {
        "run": "text",
        **IDENTITY,
        "test": "number",
        "commit": "text",
        "device": "text",
        "threads": "number",
        "torch": "text",
        "Python": "text",
    }
    return Table(columns, [[_link(run, out), *_identity(run), *_made(run)] for run in runs])


IDENTITY = {"data": "text", "model": "text", "seed": "number"}


def _identity(run: Run) -> list[str]:
    return [str(run.config.get(key, DASH)) for key in ("data.name", "model.name", "seed")]


def _made(run: Run) -> list[str]:
    value = run.status if run.value is None else run.measure.shown(run.value)
    return [value, commit(run.env), *(_known(run.env, k) for k in MACHINE)]


MACHINE = ("device_name", "threads", "torch", "python")


def commit(env: dict[str, Any]) -> str:
    """The first ten digits, and whether there were changes on top."""
    if not env.get("git_commit"):
        return DASH
    return str(env["git_commit"])[:10] + (DIRTY if env.get("git_dirty") else "")


def _known(values: dict[str, Any], key: str) -> str:
    return DASH if values.get(key) is None else str(values[key])


def _link(run: Run, out: Path) -> Link:
    return Link(run.folder.resolve().name, quote(os.path.relpath(run.place, out)))
