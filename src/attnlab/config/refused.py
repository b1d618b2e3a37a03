"""Why Hydra refuses an override, in one line that names the override and what is allowed.

Hydra's, OmegaConf's and YAML's errors share no base class, and some name no override.
"""

import contextlib

from hydra.errors import ConfigCompositionException, MissingConfigException

from attnlab.config.compose import CONFIGS, compose_config, flatten, plain
from attnlab.config.messages import known_keys, nearest, unknown_key
from attnlab.errors import first_line

# Groups of which one option is chosen; Hydra would merge a list of them.
ONE_OPTION = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"logger", "setting"}


def refused(override: str, error: Exception, others: list[str]) -> str:
    """Why Hydra refuses an override, in one line, and what is allowed beside the others."""
    key, _, value = override.lstrip("+~").partition("=")
    choices = (p.stem for p in CONFIGS.glob("*/*.yaml") if p.parent.name == key)
    options = sorted(getattr(error, "options", None) or choices)
    if override.startswith("~") and (options or key in known_keys()):
        allowed = f"; allowed: {', '.join(options)}" if options else ""
        return f"{override}: cannot be left out{allowed}"
    file = CONFIGS / key / f"{value}.yaml"
    if file.is_file() and (why := _fault(override)):
        return f"{override}: {file} cannot be composed: {why}"
    if options and type(error) is not ConfigCompositionException:
        near = nearest(value, options)
        return f"{override}: unknown {key}{near}; allowed: {', '.join(options)}"
    if str(error).startswith("Could not override") or "does not exist" in str(error):
        key = getattr(error.__cause__, "full_key", None) or key
        return unknown_key(key, _keys_beside(key, others))
    return reason(override, error)


def culprit(overrides: list[str], error: Exception) -> str | None:
    """The override that Hydra's error is about: the one that it names, or else the one whose
    removal removes the error, or at least changes it.
    """
    for override in overrides:
        if _blamed(override, error):
            return override
    changes = None
    for override in reversed(overrides):  # what was typed last is most likely wrong
        try:
            plain(compose_config([o for o in overrides if o != override]))
            return override
        except Exception as other:
            if str(other) != str(error):
                changes = changes or override
    return changes


def reason(what: str, error: Exception) -> str:
    """What was typed, and the first line of why Hydra refuses it."""
    if str(error).startswith("Error merging override") and error.__cause__:
        error = error.__cause__  # says why
    line = first_line(error)
    if line.startswith("Ambiguous value"):
        line = "several values; add -m for a sweep"
        if what.lstrip("+").partition("=")[0] not in ONE_OPTION:
            line += ", or write [a,b] for a list"
    return f"{what}: {line}"


def _keys_beside(key: str, overrides: list[str]) -> list[str]:
    """All keys of its section in the configuration that the overrides compose, if they do."""
    group = key.partition(".")[0]
    with contextlib.suppress(Exception):
        return [k for k in flatten(plain(compose_config(overrides))) if k.startswith(f"{group}.")]
    return []


def _fault(override: str) -> str | None:
    """Why an override alone cannot be composed, or None: then its YAML file is at fault."""
    try:
        plain(compose_config([override]))
    except Exception as error:
        return " ".join(str(error).partition("Config search path")[0].split())[:300]
    return None


def _blamed(override: str, error: Exception) -> bool:
    key, _, value = override.lstrip("+~").partition("=")
    if isinstance(error, MissingConfigException):
        return error.missing_cfg_file == f"{key}/{value}"
    named = f"'{key}'", f"'{override}'", f"override {key}=", f"full_key: {key}\n"
    return any(name in f"{error}\n".replace("Override", "override") for name in named)
