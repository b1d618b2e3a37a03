"""BLEU and chrF of each arm of a translation, and sample translations."""

from statistics import fmean

from attnlab.config.measures import BLEU
from attnlab.report import published, statistics
from attnlab.report.compare import Arm, Comparison
from attnlab.report.tables import DASH, Cell, Table, effect_text, level_text

SCORES = {"BLEU": "test/bleu", "chrF": "test/chrf", "validation BLEU": "best/val/bleu"}
SHOWN = 3  # sample sentences


def table(comparison: Comparison) -> Table:
    """Means over seeds with their range, the paired effect on test BLEU over the dot product, and
    the published BLEU; no rows without a translation.
    """
    columns = {"model": "text", **dict.fromkeys(SCORES, "number")}
    asked = comparison.registered_bleu  # effects whose interval is another one, in its answer
    arms = [arm for arm in comparison.arms if _values(arm, SCORES["BLEU"])]
    effects = {k: e for k, e in _effects(comparison).items() if k not in asked}
    columns |= {
        f"BLEU over dot product{level_text(effects)}": "number",
        "published BLEU": "number",
        "n": "number",
    }
    return Table(columns, [_row(comparison, arm, effects.get(arm.label)) for arm in arms])


def _effects(comparison: Comparison) -> dict[str, statistics.Effect]:
    """On test BLEU, of the arms that are judged, by label; none where runs had other data or
    measured otherwise.
    """
    if not len(comparison.fingerprints) == len(_signatures(comparison)) == 1:
        return {}
    bleu = {arm.label: _values(arm, SCORES["BLEU"]) for arm in comparison.judged}
    base = comparison.baseline
    return statistics.compare(bleu, _values(base, SCORES["BLEU"]), BLEU) if base else {}


def _row(comparison: Comparison, arm: Arm, effect: statistics.Effect | None) -> list[Cell]:
    cells = [_mean(list(_values(arm, key).values())) for key in SCORES.values()]
    over = "baseline" if arm is comparison.baseline else DASH
    if asked := comparison.registered_bleu.get(arm.label):
        over = f"see question {asked}"
    elif effect:
        over = effect_text(effect)
    known = published.BLEU.get(arm.config["data.name"], {}).get(arm.label)
    theirs = DASH if known is None else f"({known:.2f}, orientation)"
    return [arm.label, *cells, over, theirs, str(len(arm.counted))]


def _values(arm: Arm, key: str) -> dict[int, float]:
    """seed -> value, of the finished runs that have one."""
    found = {seed: run.result.get(key) for seed, run in arm.counted.items()}
    return {seed: value for seed, value in found.items() if value is not None}


def _mean(values: list[float]) -> str:
    if not values:
        return DASH
    spread = f" ({min(values):.2f} to {max(values):.2f})" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def _signatures(comparison: Comparison) -> set[tuple[str, str]]:
    keys = ("bleu_signature", "chrf_signature")
    return {tuple(str(run.result.get(key)) for key in keys) for run in comparison.counted}


def notes(comparison: Comparison) -> list[str]:
    """How the scores were measured; empty without a translation."""
    if not any(_values(arm, SCORES["BLEU"]) for arm in comparison.arms):
        return []
    config = comparison.config
    said = [f"BLEU `{bleu}`; chrF `{chrf}`." for bleu, chrf in sorted(_signatures(comparison))]
    said.append(
        "sacrebleu, on whole sentences as written, from 0 to 100; in brackets the lowest and the "
        f"highest seed. Beam search of width {config['data.beam_width']}, length penalty "
        f"{config['data.length_penalty']}, by the best checkpoint."
    )
    layers = config["arch.layers"]
    said.append(
        f"Below, layers 0 to {layers - 1} are the self-attention of the encoder, {layers} to "
        f"{2 * layers - 1} that of the decoder, and {2 * layers} to {3 * layers - 1} its "
        "cross-attention."
    )
    if config["data.name"] in published.BLEU:
        said.append(
            "The published values are second-hand, for a model with LayerNorm in front of each "
            "part (arch.norm=pre), by another way of measuring BLEU: for orientation only."
        )
    return said


def samples(comparison: Comparison) -> Table:
    """Test sentences with their reference and the translation of each arm's first seed."""
    first = {arm.label: next(iter(arm.counted.values())) for arm in comparison.arms if arm.counted}
    lists = {label: run.result.get("samples") or [] for label, run in first.items()}
    rows: list[list[Cell]] = []
    if len(comparison.fingerprints) == 1 and comparison.config["data.kind"] == "translation":
        for number in range(min([SHOWN, *map(len, lists.values())])):
            one = next(iter(lists.values()))[number]
            rows += [["source", one["source"]], ["reference", one["reference"]]]
            rows += [[label, found[number]["translation"]] for label, found in lists.items()]
    return Table({"who": "text", "sentence": "text"}, rows)
