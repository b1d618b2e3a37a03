"""What a reader must know to read the numbers of a comparison rightly, in sentences."""

from collections.abc import Iterable

from attnlab.config.measures import PERPLEXITY
from attnlab.report.compare import Arm, Comparison
from attnlab.report.naming import ORIENTATION, arm_deviations, deviations, source
from attnlab.report.run_notes import (
    DIFFERENT,
    code_changes,
    differences,
    failures,
    repeats,
    selection,
)
from attnlab.report.statistics import MAX_SEEDS
from attnlab.report.tables import DIRTY, commit, judge

MEMORY = (
    "The paper's own figures for memory and speed (tables 6 to 8) are not comparable with these: "
    "its memory was adjusted by hand afterwards for gradient accumulation, and the inference time "
    "its code prints ignores the batch size."
)
DEAD = (
    "A row is one query of one head; it is dead if its score is the same for every key it sees, "
    "so that it attends uniformly. A run is dead in a layer where all rows are: its score network "
    "gets no gradient any more. Failed and unfinished runs count with what they logged."
)
SATURATED = (
    "A row is saturated if more than 0.99 of its weight is on one key, so that the others hardly "
    "have a gradient. Entropy is that of a row divided by that of uniform attention to the keys "
    "that it sees. The standard deviation of scores is that before the softmax. Means over runs, "
    "of up to 64 queries in each of 4 sequences."
)
DEPTH = (
    "The last evaluation, of the first samples of its split; layers count from 0. Rank-one "
    "residual: how far what a block puts out is from all tokens being equal, relative to its norm "
    "(0: all tokens are equal). Mean and, over several seeds, its 95 % t-interval; of gradient "
    "norms both are those of the logarithm."
)
OPEN = ("undecided", "no difference shown")


def verdicts(comparison: Comparison) -> list[tuple[str, str]]:
    """For each compared arm, the verdict's word and the sentence around it."""
    said = []
    for arm in comparison.judged:
        if asked := comparison.registered.get(arm.label):
            said.append(("registered", f"{arm.label}: see question {asked}"))
        elif effect := comparison.effects.get(arm.label):
            found = judge(arm, effect)
            more = ""
            if found.needed:
                more = f"; about {found.needed} fresh seeds would decide, if mean and spread stay"
            elif effect.sd is not None and found.word in OPEN:
                more = f"; {MAX_SEEDS:,} fresh seeds would not decide"
            said.append((found.word, f"{arm.label}: {found.reason}{_left(arm)}{more}"))
        elif comparison.effects:
            why = "no seed in common with dot_product" if arm.values else "no run has a result"
            said.append(("no verdict", f"{arm.label}: {why}"))
    if not said:
        said.append(("no verdict", _why_none(comparison)))
    return said


def _left(arm: Arm) -> str:
    """How many of its seeds have a result, where some have none: which ones may depend on it."""
    seeds = {run.config["seed"] for run in arm.runs}
    lost = len(seeds) > len(arm.values)
    return f"; {len(arm.values)} of its {len(seeds)} seeds have a result" if lost else ""


def _why_none(comparison: Comparison) -> str:
    if comparison.baseline is None:
        return "no dot_product run to compare with"
    if not comparison.baseline.values:
        return "no dot_product run has finished"
    if len(comparison.fingerprints) > 1:
        return DIFFERENT
    return "no other arm has finished a seed of dot_product"


def results(comparison: Comparison) -> list[str]:
    """Notes on the table of results."""
    return [note for part in PARTS for note in part(comparison)]


def _size(comparison: Comparison) -> Iterable[str]:
    config = comparison.config
    far = deviations(config)
    if config["scale"] != "paper":
        yield (
            f"This is a miniature (scale={config['scale']}), not the paper's experiment. "
            "Its verdicts say whether an arm differs from the dot product here; a published "
            "effect stands beside them for orientation only."
        )
    elif far:
        yield (
            "Not the published setting, so published effects are for orientation only: "
            f"{'; '.join(far)}."
        )


def _data(comparison: Comparison) -> Iterable[str]:
    data, name = comparison.config["data.name"], source(comparison.config)
    if name is None:
        yield f"The paper has no experiment on {data}: nothing published to compare with."
    elif comparison.config["data.config"] in ORIENTATION:
        yield (
            f"The paper has no experiment on {data}; what stands as published is {name}'s, for "
            "orientation."
        )


def _arms(comparison: Comparison) -> Iterable[str]:
    yield from differences({arm.label: arm.own for arm in comparison.arms})
    for arm in comparison.arms:
        changed = arm_deviations(arm.config)
        if changed and not comparison.ablation:  # whose labels say it
            name = arm.own["model.name"]
            yield f"{arm.label} is not {name} as shipped: {'; '.join(changed)}."


def _selection(comparison: Comparison) -> Iterable[str]:
    yield from selection(comparison.config)


def _runs(comparison: Comparison) -> Iterable[str]:
    arms = comparison.arms
    most = max(len(arm.counted) for arm in arms)
    if most == 1:
        yield "Every number is a single run of one seed: it has no spread, and decides nothing."
    elif most > 1:
        yield _intervals(comparison)
    yield from failures([run for arm in arms for run in arm.failed])
    yield from repeats([run for arm in arms for run in arm.repeated])
    if len(comparison.fingerprints) > 1:
        said = ", ".join(sorted(comparison.fingerprints))
        yield f"WARNING: {DIFFERENT} (fingerprints {said})."
    counted = [run for arm in arms for run in arm.counted.values()]
    environments = [start for run in counted for start in run.starts]
    yield from code_changes(counted)
    if len({env.get("compile", False) for env in environments}) > 1:
        yield (
            "WARNING: some of these runs were compiled (runtime.compile) and others were not. They"
            " draw different dropout masks from the same seed, so seeds pair less of the noise."
        )
    commits = set(map(commit, environments))
    if len({name.removesuffix(DIRTY) for name in commits}) > 1:
        yield "The runs were made with different commits (listed below)."
    elif len(commits) > 1:
        yield "Some of the runs were made with uncommitted changes (listed below)."


def _intervals(comparison: Comparison) -> str:
    effects = [effect for effect in comparison.effects.values() if effect.sd is not None]
    text = "A test metric is the mean over seeds with its 95 % t-interval."
    if effects:
        text += " Effects are paired by seed; positive is better than the dot product."
    if any(effect.floor for effect in effects):
        text += (
            " Their standard error is at least one seed's for drawing the test samples, which all "
            "seeds share."
        )
    if len(effects) > 1 and comparison.effects.keys() - comparison.registered.keys():
        text += (
            " Within a column of effects the intervals are simultaneous 95 % intervals "
            "(Bonferroni), and p is corrected by Holm's method; the verdict follows the interval."
        )
    return text


def _tokens(comparison: Comparison) -> Iterable[str]:
    if comparison.measure is not PERPLEXITY:
        return
    config = comparison.config
    tokenizer = config.get("data.tokenizer", "train")  # translation has no other
    text = f"Perplexity is per token of the tokenizer {tokenizer}"
    if tokenizer == "train":
        text = f"Perplexity is per token of a vocabulary of {config['data.vocab_size']:,}"
    unigram = {
        round(run.result["test/unigram_perplexity"], 2)
        for arm in comparison.arms
        for run in arm.counted.values()
        if "test/unigram_perplexity" in run.result
    }
    if unigram:
        text += f"; token frequencies alone reach {min(unigram):,.2f}"
    yield text + "."


PARTS = (_size, _data, _arms, _selection, _runs, _tokens)


def cost(comparison: Comparison) -> list[str]:
    """Notes on the table of costs."""
    keys = ("device", "device_name", "threads", "torch")
    machines = sorted({tuple(str(run.env.get(key)) for key in keys) for run in comparison.counted})
    said = [f"{name}, {threads} threads, torch {torch}" for _, name, threads, torch in machines]
    notes = []
    if len(said) == 1:
        notes.append(f"Medians of the finished runs, measured on {said[0]}.")
    elif said:
        notes.append(
            "WARNING: measured on different machines, so the ratios compare more than the arms: "
            + "; ".join(said[:4])
            + ("; ..." if len(said) > 4 else "")
            + "."
        )
    if any(device == "cpu" for device, *_ in machines):
        notes.append("Peak MiB on a CPU is the resident memory of the whole process.")
    if any(key.startswith("eval_") for run in comparison.counted for key in run.result):
        notes.append("Inference is that of the evaluations during training, with their loading.")
    if any("flops_per_step" in run.result for run in comparison.counted):
        notes.append(
            "FLOPs are those of matrix products alone; what a mechanism does elementwise for each "
            "pair does not count."
        )
    return [*notes, MEMORY]


def setting(comparison: Comparison) -> str:
    """Sizes and budget in one line."""
    config = comparison.config
    size = {
        "{} layers": "arch.layers",
        "{} heads": "arch.heads",
        "width {}": "arch.width",
        "sequences of {} tokens": "data.sequence_length",
        "images of {} pixels a side": "data.image_size",
        "patches of {}": "arch.patch_size",
        "batch {}": "trainer.batch_size",
        "at most {} steps": "trainer.max_steps",
        "at most {} epochs": "trainer.epochs",
        "learning rate {}": "trainer.lr",
        "schedule {}": "trainer.schedule",
        "{}": "trainer.precision",
    }
    known = {text: config.get(key) for text, key in size.items()}
    return ", ".join(
        text.format(f"{value:,}" if isinstance(value, int) else value)
        for text, value in known.items()
        if value is not None
    )


def tag(comparison: Comparison) -> str:
    """What every mention of a comparison that is not the published one carries."""
    if comparison.config["scale"] != "paper":
        return "miniature"
    return "not the published setting" if deviations(comparison.config) else ""
