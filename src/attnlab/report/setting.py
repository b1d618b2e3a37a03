"""How near runs are to what the paper did: which published effect stands beside them, and how."""

import json
from dataclasses import dataclass
from typing import Any

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
    """Where a run's sizes and budget are not the published ones: `key=ours instead of theirs`."""
    return _differences(config, PUBLISHED[config["arch.body"]])


def arm_deviations(config: dict[str, Any]) -> list[str]:
    """Where a run's arm is not what the protocol has under its name, including what the released
    code sets per arm; empty for an arm that the paper does not have.
    """
    name, released = config["model.name"], config["protocol"] == "released"
    text = config["arch.body"] == "lm"
    expected: dict[str, Any] = {}
    if released:
        expected["arch.embedding_residual"] = 2 if text and name in D_PRIME else 1
    if name in D_PRIME:
        vision_d2 = released and not text and name == "neural_d2"
        d_prime = 3 if vision_d2 else D_PRIME[name]  # the code's rule is head width // 32
        expected |= {
            "model.neural_layers": [0],
            "model.d_prime": d_prime,
            "model.activation": "relu",
            "model.per_head": False,
            "model.score_scale": not released,
            "model.projection_bias": released and d_prime is not None,
        }
    found = _differences(config, expected)
    if "model.hidden" in config and not default_hidden(config):
        found.append(f"model.hidden={config['model.hidden']}")
    return found


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
    """A published effect beside ours. exact: the same data, sizes, budget and arm as published,
    so that a verdict may rest on it; otherwise it stands there for orientation.
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
