"""The model card of an exported model: what it is, how it was trained, how good it is."""

import json
from pathlib import Path
from typing import Any

from attnlab import __version__
from attnlab.config.schema import Config
from attnlab.data.embedded import PREFIX
from attnlab.errors import BadInput
from attnlab.report.collect import Run, read
from attnlab.report.compare import Arm, Comparison, comparisons
from attnlab.report.statistics import summarize
from attnlab.report.tuning import tunings

# Licences as far as the publishers of the data state one, and where they do.
WIKITEXT = "CC BY-SA 3.0 and GFDL, as its page on the Hugging Face hub states"
CIFAR = "not stated by its authors (https://www.cs.toronto.edu/~kriz/cifar.html)"
LICENCES = {  # by data.path: a folder may hold anything, whatever data.name says
    "Salesforce/wikitext": WIKITEXT,
    "uoft-cs/cifar10": CIFAR,
    "uoft-cs/cifar100": CIFAR,
    "embedded:digits": "CC BY 4.0 (UCI Machine Learning Repository); in scikit-learn (BSD)",
    "embedded:pydocs": "PSF License Version 2 (the documentation inside CPython)",
}
UNKNOWN = "not known to attnlab; its publisher may state one"
PROTOCOLS = {
    "paper": "what the text of arXiv 2502.17206 says",
    "released": "what the code released with arXiv 2502.17206 does",
}


def card(cfg: Config, run: Path, result: dict[str, Any], auto: str) -> str:
    """README.md of the export of a finished run. auto: the Auto class that loads it."""
    own, comparison = _place(run)
    env = json.loads((run / "env.json").read_text()) if (run / "env.json").is_file() else {}
    lines = [
        *_head(cfg),
        f"# {cfg.model.name} on {cfg.data.name}, seed {cfg.seed}",
        "",
        f"A {_kind(cfg)} with the attention mechanism `{cfg.model.mechanism}`, trained and "
        f"exported by attnlab {__version__}. It is the best checkpoint of one run of an "
        f"experiment, selected on the {cfg.trainer.select_on} split, and is meant for research on "
        "attention.",
        "",
        "| | |",
        "|---|---|",
        f"| data | {cfg.data.name} ({_source(cfg)}), fingerprint {result['data_fingerprint']} |",
        f"| licence of the data | {_licence(cfg)} |",
        f"| arm | `{cfg.model.name}`: {_options(cfg)} |",
        f"| body | {cfg.arch.layers} layers, {cfg.arch.heads} heads, width {cfg.arch.width}; "
        f"{result['params']:,} parameters, of which the mechanism has "
        f"{result['params_attention']:,} |",
        f"| seed | {cfg.seed} |",
        f"| budget | {result['steps']:,} steps, {result['samples_seen']:,} samples; scale "
        f"`{cfg.scale}`; {cfg.trainer.precision} |",
        f"| protocol | `{cfg.protocol}`: {PROTOCOLS[cfg.protocol]} |",
        f"| configuration | hash {cfg.hash}, code version {cfg.code_version}, commit "
        f"{env.get('git_commit') or 'not recorded'} |",
        "",
        "## Results",
        "",
        *_results(result, own, comparison),
        "",
        "## Use",
        "",
        *_use(cfg, auto),
        "",
        "`SHA256SUMS` names all files. `attnlab.load` refuses a folder in which one has changed "
        "and executes nothing in it. `trust_remote_code=True` executes `modeling_attnlab.py`, "
        "which reads the weights by `attnlab.load`. Weights are in safetensors; nothing is "
        "unpickled.",
        "",
        "Licence of the weights: to be stated by who publishes them.",
    ]
    return "\n".join(lines) + "\n"


def _head(cfg: Config) -> list[str]:
    """Metadata for the hub."""
    task = {"text": "text-generation", "image": "image-classification"}.get(cfg.data.kind)
    hub = hub_id(cfg)
    return [
        "---",
        "library_name: transformers",
        *([f"pipeline_tag: {task}"] if task else []),
        *(["datasets:", f"- {hub}"] if hub else []),
        "tags:",
        "- attnlab",
        f"- {cfg.model.mechanism}",
        "---",
        "",
    ]


def hub_id(cfg: Config) -> str | None:
    """Where the data lies on the hub; None for a local copy, embedded data and symbols."""
    path = getattr(cfg.data, "path", None) or "/"
    local = path.startswith((".", "/", "~", PREFIX)) or Path(path).exists()
    return None if local else path


def _source(cfg: Config) -> str:
    if cfg.data.kind == "symbols":
        return "generated"
    return hub_id(cfg) or ("embedded" if cfg.data.path.startswith(PREFIX) else "a local copy")


def _licence(cfg: Config) -> str:
    if cfg.data.kind == "symbols":
        return "none needed: the sequences are generated"
    return LICENCES.get(cfg.data.path, UNKNOWN)


def _kind(cfg: Config) -> str:
    return "causal language model" if cfg.arch.body == "lm" else "vision transformer"


def _options(cfg: Config) -> str:
    values = cfg.model.model_dump(exclude={"name", "mechanism"})
    said = ", ".join(f"{key}={json.dumps(value)}" for key, value in values.items())
    return said or "no options"


def _place(run: Path) -> tuple[Arm, Comparison]:
    """The arm that a run belongs to, with its other seeds, and the comparison that it stands in:
    of the runs beside it, and of those of other models beside its folder.
    """
    own = read(run)
    if own.status == "unreadable":
        raise BadInput(f"run={run}: {own.cause}")
    beside = {*run.absolute().parent.glob("*/config.yaml")}
    beside |= {*run.absolute().parent.parent.glob("*/*/config.yaml")}
    others = [read(file.parent) for file in sorted(beside) if file.parent != run.absolute()]
    fingerprint = own.result["data_fingerprint"]
    runs = [own, *(r for r in others if r.result.get("data_fingerprint") == fingerprint)]
    tuned, evidence = tunings(runs)  # without trials
    at_own_rates = (run for tuning in tuned for run in tuning.at_own_rates)
    each = {run.folder: run for run in (own, *evidence, *at_own_rates)}
    compared = comparisons(each.values())
    found = [(arm, c) for c in compared for arm in c.arms if own in arm.runs]
    return found[-1]


def _results(result: dict[str, Any], own: Arm, comparison: Comparison) -> list[str]:
    """This run's test metrics, the mean over seeds, and the effect over the dot product."""
    lines = ["| metric | this run |", "|---|---|"]
    tested = {k: v for k, v in result.items() if k.startswith("test/") and v is not None}
    lines += [f"| {k} | {v:.6g} |" for k, v in tested.items()]
    run: Run = own.runs[0]
    if len(own.values) < 2:  # none if it is not a number
        return [*lines, "", "This is a single run: no other seed of it was beside it."]
    values = list(own.values.values())
    mean = summarize(values, within=(run.measure.low, run.measure.high))
    lines += [
        "",
        f"Over {mean.n} seeds ({', '.join(map(str, own.values))}) of the same configuration, "
        f"test/{run.measure.name} is {mean.mean:.6g}, 95 % interval [{mean.low:.6g}, "
        f"{mean.high:.6g}] (t-interval of the mean).",
    ]
    effect = comparison.effects.get(own.label)
    if effect is not None:
        what = run.measure.effect
        if effect.low is None:
            interval = "no interval is known"
        else:
            level = f"{100 * effect.level:.3g} % interval"
            interval = f"{level} [{effect.low:.3g}, {effect.high:.3g}]"
        lines += [
            "",
            f"Its effect over the dot product, paired by seed (n = {effect.n}; a positive effect "
            f"is an improvement), is {effect.mean:.3g} {what}, {interval}.",
        ]
    return lines


def _use(cfg: Config, auto: str) -> list[str]:
    """Code that loads the model and computes logits."""
    lines = ["```python", "import attnlab, torch", "", 'folder = "<this folder or hub id>"']
    if cfg.data.kind == "text":
        lines += [
            f"from transformers import {auto}, PreTrainedTokenizerFast  # attnlab[hf]",
            "",
            "tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)",
            'inputs = tokenizer("The statement", return_tensors="pt")["input_ids"]',
        ]
    elif cfg.data.kind == "image":
        size = cfg.data.image_size
        lines += [
            f"from transformers import {auto}  # attnlab[hf]",
            "",
            f"inputs = torch.zeros(1, 3, {size}, {size})  # RGB, resized (bilinear, antialiased), "
            "value / 127.5 - 1",
        ]
    else:
        lines += [
            f"from transformers import {auto}  # attnlab[hf]",
            "",
            "inputs = torch.tensor([[2, 0, 1]])  # symbols of the task",
        ]
    lines += [
        "model = attnlab.load(folder)",
        "logits = model(inputs)",
        f"same = {auto}.from_pretrained(folder, trust_remote_code=True)",
        "assert torch.equal(same(inputs).logits, logits)",
        "```",
    ]
    if cfg.data.kind == "text":
        lines += [
            "",
            "Where the tokenizer has both tokens, a line end of the training text is `[SEP]`, and "
            "`<unk>` is `[UNK]`.",
        ]
    return lines
