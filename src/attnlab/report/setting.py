"""How close a run is to the paper's experiment, and which published effect is shown with it."""

import functools
import json
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import yaml
from pydantic import TypeAdapter

from attnlab.config.compose import CONFIGS
from attnlab.config.mechanisms import Model
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
D_PRIME = {"neural_full": None, "neural_d16": 16, "neural_d2": 2}
ORIENTATION = {"wikitext2": "wikitext103"}  # the same test text, a fiftieth of the training text


def source(data: str) -> str | None:
    """The published data set whose numbers stand beside those on `data`, or None."""
    name = ORIENTATION.get(data, data)
    return name if name in published.EXPERIMENTS else None


def deviations(config: dict[str, Any]) -> list[str]:
    """Where a run's data, sizes and budget are not the published ones: `key=ours instead of
    theirs`.

    The name of a data set says nothing of its content, and the number of words in the paper's is
    not known to us. So published data is what the shipped configuration takes from the hub: a
    local copy may be the same, but nothing shows it.
    """
    return _differences(config, _hub_data(config["data.name"]) | PUBLISHED[config["arch.body"]])


def _hub_data(name: str) -> dict[str, Any]:
    """Where the shipped configuration of a data set has it from; empty without a published one."""
    if source(name) is None:
        return {}
    data = yaml.safe_load((CONFIGS / "data" / f"{name}.yaml").read_text())["data"]
    return {f"data.{key}": data[key] for key in ("path", "config") if key in data}


def arm_changes(config: dict[str, Any]) -> dict[str, Any]:
    """Keys in which a run's arm is not what is shipped under its name, with the shipped values:
    of configs/model, as the protocol changes it. Empty for a name that is not shipped.
    """
    expected = _shipped(config)
    if "model.hidden" in expected and default_hidden(config):
        del expected["model.hidden"]  # it only follows model.d_prime
    return {k: v for k, v in expected.items() if k in config and config[k] != v}


def arm_deviations(config: dict[str, Any]) -> list[str]:
    """`arm_changes` as text: `key=ours instead of theirs`."""
    return _differences(config, arm_changes(config))


def is_shipped(name: str) -> bool:
    """Whether configs/model has an arm of this name."""
    return (CONFIGS / "model" / f"{name}.yaml").is_file()


def _shipped(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that make the arm of the run's name, with the values that a run of it gets."""
    name, released = config["model.name"], config["protocol"] == "released"
    if not is_shipped(name):
        return {}
    text, neural = config["arch.body"] == "lm", name in D_PRIME
    model = _model(name)
    if released and neural:  # configs/protocol_arm
        d2_vision = not text and name == "neural_d2"
        model["d_prime"] = 3 if d2_vision else D_PRIME[name]  # the code's rule: head width // 32
        bias = model["d_prime"] is not None
        model |= {"score_scale": False, "projection_bias": bias}
    section = TypeAdapter(Model).validate_python(model)
    head_width = config["arch.width"] // config["arch.heads"]
    arch = SimpleNamespace(layers=config["arch.layers"], head_width=head_width)
    section = section.resolved(arch, config["protocol"])
    expected = {f"model.{k}": v for k, v in section.model_dump(exclude={"backend"}).items()}
    if released:
        expected["arch.embedding_residual"] = 2 if text and neural else 1
    return expected


@functools.cache
def _model_file(name: str) -> dict[str, Any]:
    return yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text())


def _model(name: str) -> dict[str, Any]:
    """A shipped model section, with what it takes over from another one."""
    own = _model_file(name)
    bases = [_model(base) for base in own.get("defaults", []) if base != "_self_"]
    merged = {key: value for part in (*bases, own) for key, value in part.items()}
    return {key: value for key, value in merged.items() if key != "defaults"}


def typed(value: Any) -> str:
    """A value as one types it on the command line."""
    return json.dumps(value, default=str).strip('"')


def default_hidden(config: dict[str, Any]) -> bool:
    """Whether the score network has the widths that the protocol gives it at this d'; additive
    attention: the head width.
    """
    head_width = config["arch.width"] // config["arch.heads"]
    if "model.d_prime" not in config:
        return config["model.hidden"] == head_width
    d_prime = config["model.d_prime"] or head_width
    released = [d_prime, max(1, d_prime // 2)]
    return config["model.hidden"] == (
        released if config["protocol"] == "released" else [2 * d_prime]
    )


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
    data = config["data.name"]
    name = source(data)
    if name is None or arm_deviations(config):
        return None
    effect = published.effect(name, config["model.name"])
    if effect is None:
        return None
    exact = data == name and config["scale"] == "paper" and not deviations(config)
    return Reference(effect, published.EXPERIMENTS[name].effect_table, exact)
