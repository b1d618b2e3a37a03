"""Arms and comparisons: what sets each apart from the others, in its name and from the paper's
experiment, and which published effect is shown with it.
"""

import functools
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from attnlab.config.compose import CONFIGS, compose_config, plain
from attnlab.config.mechanisms import Mechanism, Model
from attnlab.config.schema import PER_ARM, PLACE, Arch, Body
from attnlab.report import published

# Section 4 of the paper, by body: what its numbers were measured with.
PUBLISHED: dict[str, dict[str, Any]] = {
    "lm": {
        "arch.layers": 8,
        "arch.heads": 8,
        "arch.width": 512,
        "data.sequence_length": 1024,
        "trainer.batch_size": 16,
        "trainer.max_steps": 1_000_000,
    },
    "vit": {
        "arch.layers": 12,
        "arch.heads": 8,
        "arch.width": 768,
        "arch.patch_size": 8,
        "data.image_size": 224,
        "trainer.batch_size": 32,
        "trainer.epochs": 350,
        "trainer.max_steps": None,
    },
}
SECTIONS = ((Arch, "arch"), (Model, "model"))  # what makes an arm
MOST_KEYS = 4  # named in a title
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
    return [_title(config, keys[kind(config)]) for config in configs]


def _title(config: dict[str, Any], keys: list[str]) -> str:
    said = [f"{key}={typed(config[key])}" for key in keys if key in config]
    if len(said) > MOST_KEYS:
        said = [*said[:MOST_KEYS], f"and {len(said) - MOST_KEYS} more keys"]
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
    """Where a run's data, sizes and budget are not the published ones: `key=ours instead of
    theirs`.

    The number of words in the paper's data is not known to us. So published data is what comes
    from the hub: a local copy may be the same, but nothing shows it.
    """
    name = source(config)
    data = published.EXPERIMENTS[name].data if name else {}
    return _differences(config, {**data, **PUBLISHED[config["arch.body"]]})


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
    data = {"lm": "wikitext103", "vit": "cifar10"}[body]
    composed = _composed(f"model={name}", f"data={data}", f"protocol={protocol}")
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
    """A published effect beside ours. exact: the same data (see `deviations`), sizes, budget and
    arm as published, so that a verdict may rest on it; otherwise it stands there for orientation.
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
