"""The question that an experiment's YAML registers before its runs.

It belongs to the experiment and to no run: it is checked and taken out before a run's
configuration is made, and no hash depends on it.
"""

import functools
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.errors import HydraException
from pydantic import Field, model_validator

from attnlab.config.compose import CONFIGS, split_overrides
from attnlab.config.measures import MEASURES, OF_KIND, Measure
from attnlab.config.messages import checked
from attnlab.config.types import Name, Positive, Section, Seed
from attnlab.errors import BadInput


class Question(Section):
    """What is asked, and what will decide it.

    arms: names of models. controls: those of them that every other arm is compared with, the first
    one first. data: names of data sets, if it is asked of each of them and not of the experiment's
    own alone. settings: overrides in one line each; the first names a value for every key that the
    others change. seeds: only these count as registered. tuning_seeds: chose something, a learning
    rate for example, and are never evidence. learning_rate: one for all arms, or what trials
    (tune=lr) chose for each. smallest_effect: percent of perplexity, points of
    accuracy, or BLEU; arms whose difference is shown to be smaller are equivalent.
    """

    id: Name
    text: Annotated[str, Field(min_length=1)]
    arms: Annotated[list[Name], Field(min_length=2)]
    controls: Annotated[list[Name], Field(min_length=1)]
    data: list[Name] = Field(default_factory=list)
    settings: list[str] = Field(default_factory=list)
    seeds: Annotated[list[Seed], Field(min_length=2)]
    tuning_seeds: list[Seed]
    learning_rate: Literal["common", "own"] = "common"
    primary: Literal["test/perplexity", "test/accuracy", "test/bleu"]
    smallest_effect: Positive
    rule: Annotated[str, Field(min_length=1)]

    @model_validator(mode="after")
    def _across(self) -> "Question":
        if problems := list(_contradictions(self)):
            raise ValueError("\n".join(problems))
        return self

    @property
    def measure(self) -> Measure:
        """Of `primary`."""
        return MEASURES[self.primary.removeprefix("test/")]

    @property
    def treated(self) -> list[str]:
        """The arms that are compared with the controls."""
        return [arm for arm in self.arms if arm not in self.controls]

    @functools.cached_property
    def values(self) -> list[dict[str, Any]]:
        """For each setting the values of all keys that settings change; one empty dict without
        settings.
        """
        parsed = [_parsed(line) for line in self.settings] or [{}]
        return [parsed[0] | setting for setting in parsed]


def _contradictions(question: Question) -> Iterator[str]:
    if unknown := [arm for arm in question.controls if arm not in question.arms]:
        yield f"question.controls={unknown}: must be among question.arms={question.arms}"
    elif not question.treated:
        yield f"question.controls={question.controls}: must leave an arm to compare with them"
    known = sorted(file.stem for file in (CONFIGS / "data").glob("*.yaml"))
    if unknown := [name for name in question.data if name not in known]:
        yield f"question.data={unknown}: must be among {', '.join(known)}"
    for key in ("arms", "controls", "data", "settings", "seeds"):
        listed = getattr(question, key)
        if len(set(listed)) < len(listed):
            yield f"question.{key}={listed}: must name each one once"
    if both := sorted(set(question.seeds) & set(question.tuning_seeds)):
        yield f"question.tuning_seeds={both}: must not be among question.seeds"
    for line in question.settings:
        try:
            _parsed(line)
        except (ValueError, HydraException):
            yield f"question.settings={line}: must be key=value, separated by spaces"
            return
    if question.settings:
        first = _parsed(question.settings[0])
        for line in question.settings[1:]:
            if new := sorted(_parsed(line).keys() - first.keys()):
                yield f"question.settings={line}: the first setting has no value for {new[0]}"


def _parsed(line: str) -> dict[str, Any]:
    """The values of overrides, read as the command line reads them. Errors: HydraException,
    ValueError for what sets no key.
    """
    parsed = OverridesParser.create().parse_overrides(split_overrides(line))
    if any(override.type is not OverrideType.CHANGE for override in parsed):
        raise ValueError(line)
    return {override.key_or_group: override.value() for override in parsed}


def check_question(composed: dict[str, Any], overrides: list[str]) -> None:
    """Check the question of a composed configuration, where it has one.

    Errors: `BadInput` with one line a problem; also for an override: a question is registered in
    its file, and a typed one would be nowhere.
    """
    typed = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] == "question"]
    if typed:
        rule = "a question stands in its experiment's file and cannot be typed"
        raise BadInput("\n".join(f"{override}: {rule}" for override in typed))
    if "question" in composed:
        question = checked(Question, composed["question"], "question")
        known = OF_KIND.get(composed.get("data", {}).get("kind"), ())
        own_data = any(override.startswith("data=") for override in overrides)
        if absent := [key for key in question.values[0] if not _has(composed, key)]:
            raise BadInput(f"question.settings: {absent[0]}: unknown key")
        if known and question.measure not in known and not own_data:
            allowed = " or ".join(f"test/{measure.name}" for measure in known)
            raise BadInput(f"question.primary={question.primary}: must be {allowed} for this data")


def _has(composed: dict[str, Any], key: str) -> bool:
    section: Any = composed
    for part in key.split("."):
        if not isinstance(section, dict) or part not in section:
            return False
        section = section[part]
    return True


def questions() -> dict[str, Question]:
    """Experiment -> its question, for every one that has it. Errors: `BadInput`."""
    found = {}
    for file in sorted((CONFIGS / "experiment").glob("*.yaml")):
        if question := question_in(file.read_text()):
            found[file.stem] = question
    return found


def question_in(text: str) -> Question | None:
    """The question in the text of an experiment's file. Errors: `BadInput`."""
    section = yaml.safe_load(text).get("question")
    return section and checked(Question, section, "question")
