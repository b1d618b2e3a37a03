"""Names of arms and comparisons: what sets each apart from the others, and nothing more."""

import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

from attnlab.report.setting import typed

MOST_KEYS = 4  # named in a title


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


def natural(text: str) -> list:
    """A sort key under which d_prime=4 comes before d_prime=16."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]
