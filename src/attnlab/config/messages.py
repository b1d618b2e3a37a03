"""From a composed configuration to a `Config`, or to one clear line per problem."""

import contextlib
import difflib
import json
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from attnlab.config.measures import OF_KIND
from attnlab.config.mechanisms import MECHANISMS, PLAIN
from attnlab.config.schema import READS, Config
from attnlab.config.symbols import LEVELS
from attnlab.errors import BadInput

TAGS = {*READS, *OF_KIND, *LEVELS, *MECHANISMS}  # how pydantic names a section's variants

WORDING = {  # of pydantic's types of errors
    "string_pattern_mismatch": "must be up to 64 letters, digits, _, - and ., the first no .",
    "string_too_short": "must not be empty",
}
MEANT = {"gpu": "cuda"}  # what no similarity of letters finds
SECTION = "a section in src/attnlab/config/mechanisms.py, named in WithSection"

SomeSection = TypeVar("SomeSection", bound=BaseModel)


def validate(composed: dict[str, Any]) -> Config:
    """Check a composed configuration (a plain dict).

    Errors: `BadInput` with one line per problem: key, value, what is allowed, and the nearest
    valid name.
    """
    return checked(Config, composed)


def checked(section: type[SomeSection], values: Any, name: str = "") -> SomeSection:
    """`values` as a section, whose keys stand behind its `name`. Errors: as `validate`."""
    try:
        return section.model_validate(values)
    except ValidationError as error:
        lines: dict[str, list[str]] = {}
        for problem in error.errors():
            what, message = _message(problem)
            if name and problem["type"] == "extra_forbidden":
                near = nearest(str(problem["loc"][-1]), list(section.model_fields))
                message = f"unknown key{near}"
            if name and problem["loc"]:
                what = f"{name}.{what}"
            lines.setdefault(what, []).append(message)
        # a key that may have several types has one message for each
        raise BadInput("\n".join(w + ", or ".join(m) for w, m in lines.items())) from None


def _message(error: dict[str, Any]) -> tuple[str, str]:
    """The wrong key=value, and what is allowed."""
    # pydantic puts the chosen variant's tags behind the section: data.symbols.nt.tau is data.tau
    tags = {1: TAGS, 2: LEVELS if error["loc"][1:2] == ("symbols",) else ()}
    loc = [str(p) for i, p in enumerate(error["loc"]) if p not in tags.get(i, ())]
    key = ".".join(p for p in loc if "[" not in p)
    if error["type"] == "value_error" and not loc:
        return "", str(error["ctx"]["error"])
    tag = error["loc"][1:2]  # the mechanism, where the key is one of section model
    if error["type"] == "extra_forbidden" and loc[0] == "model" and set(tag) & set(PLAIN):
        return f"{key}: ", (
            f"mechanism={tag[0]} has no option but model.layers; options of its own need {SECTION}"
        )
    if error["type"] == "extra_forbidden":
        return f"{key}: ", unknown_key(key).removeprefix(f"{key}: ")
    if error["type"] == "missing":
        return f"{key}: ", "missing"
    if error["type"] == "union_tag_not_found":
        return f"{key}.{error['ctx']['discriminator'][1:-1]}: ", "missing"
    if error["type"] == "union_tag_invalid":  # names the key that chooses among the variants
        kind, allowed = (error["ctx"][k].strip("'") for k in ("discriminator", "expected_tags"))
        near = nearest(error["ctx"]["tag"], allowed.split("', '"))
        if kind == "mechanism":
            near += f"; one with options needs {SECTION}"
        return f"{key}.{kind}={error['ctx']['tag']}: ", f"must be '{allowed}'{near}"
    message = error["msg"].replace("Input should be ", "must be ").removeprefix("Value error, ")
    message = message.replace("a valid boolean", "true or false")
    message = message.replace("List should have", "must have").partition(" after validation")[0]
    message = WORDING.get(error["type"], message)
    allowed = error.get("ctx", {}).get("expected", "")
    if isinstance(error["input"], str) and "'" in allowed:
        message += nearest(MEANT.get(error["input"], error["input"]), allowed.split("'")[1::2])
    return f"{key}={_typed(error['input'])}: ", message


def _typed(value: Any) -> Any:
    """A value as one types it: null, true, and '1' for a text that would else be a number."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            float(value)
            return f"'{value}'"
    return value


def nearest(word: str, allowed: Sequence[str]) -> str:
    """`; did you mean X?`, or nothing if no allowed name is similar."""
    close = difflib.get_close_matches(word, allowed, n=1)
    return f"; did you mean {close[0]}?" if close else ""


def unknown_key(key: str, there: Sequence[str] = ()) -> str:
    """The message for a key that the schema, or the chosen variant of its section, lacks. there:
    the keys that this variant has, where they are known.
    """
    known = sorted(known_keys())
    if key in known:
        group, _, leaf = key.partition(".")
        names = [k.partition(".")[2] for k in there]
        near = nearest(leaf, names).replace("mean ", f"mean {group}.")
        has = f"; it has {', '.join(names)}" if names else ""
        return (
            f"{key}: unknown key for this choice of {group}{near}{has}; a sweep over several "
            "needs one command for those that have it and one for the others"
        )
    leaf = key.split(".")[-1]
    home = [k for k in known if k.split(".")[-1] == leaf]  # the right name, without its section
    others = [k for k in known if not key.startswith(f"{k}.")]  # not the section that it is in
    near = f"; did you mean {home[0]}?" if home else nearest(key, others)
    return f"{key}: unknown key{near}"


def known_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key of the schema."""
    for name, field in section.model_fields.items():
        if not field.is_required():
            continue  # users do not set it
        yield prefix + name
        for variant in _variants(field.annotation):
            yield from known_keys(variant, f"{prefix}{name}.")


def _variants(annotation: Any) -> Iterator[type[BaseModel]]:
    """The sections in an annotation, which may be a union of unions."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _variants(part)
