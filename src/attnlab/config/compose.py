"""From overrides, or from a run folder, to a configuration."""

import copy
import functools
import re
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from attnlab.config.messages import validate
from attnlab.config.schema import Config, added_keys
from attnlab.config.types import valid_path
from attnlab.errors import BadInput

PACKAGE = Path(__file__).resolve().parents[1]
# The root of a checkout; None where a wheel is installed, which has the configurations inside.
CHECKOUT = None if (PACKAGE / "configs").is_dir() else PACKAGE.parents[1]
CONFIGS = (CHECKOUT or PACKAGE) / "configs"


def compose_config(overrides: list[str], configs: Path = CONFIGS) -> DictConfig:
    """The configuration that Hydra composes, including its own settings."""
    return _compose(tuple(overrides), configs)


@functools.lru_cache(maxsize=512)  # of 0.1 to 0.3 s and 0.3 MB: a sweep asks twice for each job
def _compose(overrides: tuple[str, ...], configs: Path) -> DictConfig:
    with initialize_config_dir(str(configs), "train", version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


def split_overrides(line: str) -> list[str]:
    """The overrides in a line, split at blanks outside of quotes and of lists."""
    return re.findall(r"""(?:'[^']*'|"[^"]*"|\[[^]]*\]|\S)+""", line)


# Sections that are no part of a run's configuration: Hydra's own, the switches of a protocol, to
# which other keys have referred, an experiment's question, and how a sweep tunes its arms.
NO_PART_OF_A_RUN = ("hydra", "switches", "question", "tune")


def plain(composed) -> dict:
    """The composed configuration of a run as a plain dict, interpolations resolved."""
    return sections(composed, [key for key in composed if key not in NO_PART_OF_A_RUN])


def sections(composed, names: list[str]) -> dict:
    """Those of these sections that are there as a plain dict, interpolations resolved."""
    ours = OmegaConf.masked_copy(composed, [n for n in (*names, "switches") if n in composed])
    resolved = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)
    return {name: resolved[name] for name in names if name in resolved}


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def completed(stored: DictConfig) -> dict:
    """`plain` of a configuration that an earlier version wrote or composed: keys that were added
    later have the value that describes it.
    """
    stored = copy.deepcopy(stored)
    for key, before in added_keys(functools.partial(OmegaConf.select, stored)).items():
        if OmegaConf.select(stored, key) is None:
            OmegaConf.update(stored, key, before, force_add=True)
    return plain(stored)


def run_path(cfg: Config, chosen: str) -> Path:
    """The run folder: Hydra's run.dir if the user set it, else the configuration's default."""
    if Path(chosen) == Path():
        return Path(cfg.folder)
    try:
        if chosen.startswith("~"):
            raise ValueError("write the whole path: Hydra makes a folder of this name")
        return Path(valid_path(chosen))
    except ValueError as error:
        raise BadInput(f"hydra.run.dir={chosen}: {error}") from None


def load(folder: Path, name: str = "run") -> Config:
    """The configuration that a run folder was made with; `name` is its key on the command line."""
    file = folder / "config.yaml"
    if folder.is_file():
        raise BadInput(f"{name}={folder}: is a file; name its folder")
    if not file.is_file():
        raise BadInput(f"{name}={folder}: no run folder there (it has no config.yaml)")
    try:
        stored = OmegaConf.load(file)
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        why = " ".join(str(error).split())
        raise BadInput(f"{name}={folder}: its config.yaml cannot be read: {why}") from None
    if not OmegaConf.is_dict(stored):
        raise BadInput(f"{name}={folder}: its config.yaml cannot be read: it holds no mapping")
    try:
        return validate(completed(stored))
    except (BadInput, OmegaConfBaseException) as error:
        lines = (f"{name}={folder}: its config.yaml: {line}" for line in str(error).splitlines())
        raise BadInput("\n".join(lines)) from None
