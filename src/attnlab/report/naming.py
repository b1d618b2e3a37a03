"""Arms and comparisons: what sets each apart from the others, in its name and from the paper's
experiment, and which published effect is shown with it.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from attnlab.config.compose import CONFIGS, compose_config, flatten, plain
from attnlab.config.mechanisms import Mechanism, Model
from attnlab.config.messages import validate
from attnlab.config.schema import PER_ARM, PLACE, Arch, Body
from attnlab.report import published
from attnlab.runs.files import slug

# Body -> data on which the paper, or that of daGPAM, reports it.
REPORTED = {"lm": "wikitext103", "vit": "cifar10", "seq2seq": "iwslt14"}
# What no published number depends on, or what the paper does not state and no YAML claims for it.
FREE = {
    *("data.name", PLACE, "trainer.micro_batch_size", "trainer.log_every", "trainer.eval_every"),
    *("trainer.save_every", "trainer.diagnostics", "trainer.on_nonfinite", "trainer.precision"),
}
# By WikiText, which has its splits, and the paper's tokenizer, which has its vocabulary.
UNUSED = {"data.validation_size", "data.test_size", "data.alphabet_size", "data.vocab_size"}
SECTIONS = ((Arch, "arch"), (Model, "model"))  # what makes an arm
MOST_KEYS = 4  # named in a title, unless two would be the same
# By data.config. WikiText-2 has the same test text, a fiftieth of the training text.
ORIENTATION = {"wikitext-2-v1": "wikitext-103-v1"}


def frozen(values: dict[str, Any]) -> str:
    """Equal for equal values; can be a key."""
    return json.dumps(values, sort_keys=True, default=str)


def differing(configs: Sequence[dict[str, Any]]) -> list[str]:
    """Keys, in the order of the file, that do not have one value in all of `configs`."""
    keys = dict.fromkeys(key for config in configs for key in config)
    return [k for k in keys if len({frozen({k: c.get(k, "absent")}) for c in configs}) > 1]


def label(own: dict[str, Any], keys: Iterable[str]) -> str:
    """An arm's name with the values of `keys`."""
    known = [key for key in dict.fromkeys(keys) if key in own]
    said = ", ".join(f"{key.removeprefix('model.')}={typed(own[key])}" for key in known)
    return own["model.name"] + (f" ({said})" if said else "")


def kind(config: dict[str, Any]) -> str:
    """What every title begins with."""
    return f"{config['data.name']}, scale {config['scale']}, protocol {config['protocol']}"


def titles(configs: list[dict[str, Any]]) -> list[str]:
    """Data, scale and protocol, and the keys in which comparisons of one such kind differ."""
    kinds: dict[str, list[dict[str, Any]]] = {}
    for config in configs:
        kinds.setdefault(kind(config), []).append(config)
    keys = {name: differing(members) for name, members in kinds.items()}
    short = [_title(config, keys[kind(config)], MOST_KEYS) for config in configs]
    alike = Counter(short)
    return [
        title if alike[title] == 1 else _title(config, keys[kind(config)], len(config))
        for title, config in zip(short, configs, strict=True)
    ]


def slugs(names: Iterable[str]) -> list[str]:
    """Names as parts of file names and addresses; of equal ones, those behind the first get a
    number.
    """
    seen: Counter[str] = Counter()
    found = []
    for short in map(slug, names):
        seen[short] += 1
        found.append(short if seen[short] == 1 else f"{short}_{seen[short]}")
    return found


def _title(config: dict[str, Any], keys: list[str], most: int) -> str:
    said = [f"{key}={typed(config[key])}" for key in keys if key in config]
    if more := len(said[most:]):
        said = [*said[:most], f"and {more} more key{'s' * (more > 1)}"]
    return kind(config) + (f" ({', '.join(said)})" if said else "")


def typed(value: Any) -> str:
    """A value as one types it on the command line."""
    return json.dumps(value, default=str).strip('"')


def natural(text: str) -> list:
    """A sort key under which d_prime=4 comes before d_prime=16."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def source(config: dict[str, Any]) -> str | None:
    """The published data set whose numbers stand beside those of a run, or None. Keys of the data
    decide, not the name that a YAML gives it; where the data is stored may differ.
    """
    name = config.get("data.config")
    config = config | {"data.config": ORIENTATION.get(name, name)}
    for published_name, experiment in published.EXPERIMENTS.items():
        if all(config.get(k) == v for k, v in experiment.data.items() if k != PLACE):
            return published_name
    return None


def deviations(config: dict[str, Any]) -> list[str]:
    """Where a run's data, body and training are not those of the published setting, which the
    YAMLs describe at scale=paper: `key=ours instead of theirs`.

    The number of words in the paper's data is not known to us. So published data is what comes
    from the hub: a local copy may be the same, but nothing shows it.
    """
    name = source(config)
    expected = dict(_setting(name or REPORTED[config["arch.body"]], config["protocol"]))
    if name:
        expected |= published.EXPERIMENTS[name].data
    else:  # the paper has no experiment on it, which is said elsewhere
        expected = {k: v for k, v in expected.items() if not k.startswith("data.")}
    return _differences(config, expected)


@functools.cache
def _setting(data: str, protocol: str) -> dict[str, Any]:
    """Dotted keys of the published setting, without attention."""
    composed = _composed(f"data={data}", f"protocol={protocol}", "scale=paper")
    dotted = flatten(validate(composed).model_dump())
    own = ("arch.", "data.", "trainer.")
    free = FREE | PER_ARM | (UNUSED if dotted["arch.body"] == "lm" else set())
    return {k: v for k, v in dotted.items() if k.startswith(own) and k not in free}


def arm_changes(config: dict[str, Any]) -> dict[str, Any]:
    """Keys in which a run's arm is not what is shipped under its name, with the shipped values: of
    configs/model, as the protocol changes it. Empty for a name that is not shipped.
    """
    if not is_shipped(config["model.name"]):
        return {}
    arch, model = _shipped(config["model.name"], config["arch.body"], config["protocol"])
    sizes = {name: config[f"arch.{name}"] for name in ("layers", "heads", "width")}
    arch = arch.model_copy(update=sizes)
    expected = _values(model.resolved(arch, config["protocol"]))
    if config["protocol"] == "released":
        expected |= {key: getattr(arch, key.removeprefix("arch.")) for key in PER_ARM}
    if "model.hidden" in expected:  # null there: it follows from other keys, as the run has them
        followed = {"d_prime": config["model.d_prime"]} if "model.d_prime" in config else {}
        follows = model.model_copy(update=followed).resolved(arch, config["protocol"])
        expected["model.hidden"] = follows.hidden
    return {k: v for k, v in expected.items() if k in config and config[k] != v}


def arm_deviations(config: dict[str, Any]) -> list[str]:
    """`arm_changes` as text: `key=ours instead of theirs`."""
    return _differences(config, arm_changes(config))


def is_shipped(name: str) -> bool:
    """Whether configs/model has an arm of this name."""
    return (CONFIGS / "model" / f"{name}.yaml").is_file()


@functools.cache
def _shipped(name: str, body: str, protocol: str) -> tuple[Body, Mechanism]:
    """The sections arch and model that a run of this arm gets, before defaults are put in."""
    composed = _composed(f"model={name}", f"data={REPORTED[body]}", f"protocol={protocol}")
    arch, model = (TypeAdapter(kind).validate_python(composed[key]) for kind, key in SECTIONS)
    return arch, model


def _composed(*overrides: str) -> dict[str, Any]:
    return plain(compose_config(list(overrides)))


def _values(model: Mechanism) -> dict[str, Any]:
    """Dotted keys of what can change a result."""
    return {f"model.{k}": v for k, v in model.model_dump(exclude={"backend"}).items()}


def _differences(config: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    return [
        f"{key}={typed(config.get(key))} instead of {typed(value)}"
        for key, value in expected.items()
        if config.get(key) != value
    ]


@dataclass(frozen=True)
class Reference:
    """A published effect beside ours. exact: the same data, body and training (see `deviations`)
    and arm as published, so that a verdict may rest on it; otherwise it is for orientation.
    """

    effect: float
    table: int
    exact: bool


def reference(config: dict[str, Any]) -> Reference | None:
    """The published effect of a run's arm; None where none is known."""
    name = source(config)
    if name is None or arm_deviations(config):
        return None
    effect = published.effect(name, config["model.name"])
    if effect is None:
        return None
    exact = config["scale"] == "paper" and not deviations(config)
    return Reference(effect, published.EXPERIMENTS[name].effect_table, exact)
