"""How a sweep tunes its arms (configs/tune): a section of the sweep, and of no run."""

from typing import Annotated, Any

from pydantic import Field, model_validator

from attnlab.config.compose import compose_config, sections
from attnlab.config.messages import checked
from attnlab.config.types import Positive, Section, Seed
from attnlab.errors import BadInput

MAX_FACTOR = 10


class Tuning(Section):
    """seeds: of trials, used for nothing else. factors: of the configured learning rate. extend:
    the factor between the best rate of an arm, where that is at the edge of its grid, and the
    next one that is tried; None ends the trials with the grid.
    """

    seeds: Annotated[list[Seed], Field(min_length=1)]
    factors: Annotated[list[Positive], Field(min_length=2)]
    extend: Annotated[float, Field(gt=1, le=MAX_FACTOR)] | None = None

    @model_validator(mode="after")
    def _once(self) -> "Tuning":
        for key in ("seeds", "factors"):
            listed = getattr(self, key)
            if len(set(listed)) < len(listed):
                raise ValueError(f"tune.{key}={listed}: must name each one once")
        return self


def check_tuning(composed: dict[str, Any], overrides: list[str]) -> None:
    """Check the section of a composed configuration, where it has one. Errors: `BadInput`."""
    if "tune" in composed:
        checked(Tuning, composed["tune"], "tune")


def tuning_of(overrides: list[str]) -> Tuning | None:
    """The section of a sweep's job; None without one. Errors: `BadInput`."""
    section = sections(compose_config(overrides), ["tune"])
    return checked(Tuning, section["tune"], "tune") if section else None


def refuse_tuning(composed) -> None:
    """Errors: `BadInput` for a run that was started with `tune`: a launcher that does not know it
    would run the sweep untuned.
    """
    if "tune" in composed:
        raise BadInput("tune: this launcher does not tune; leave hydra/launcher out")


def is_tuning(override: str) -> bool:
    """Whether an override is about tuning, which a sweep takes from its jobs."""
    return override.lstrip("+~").partition("=")[0].split(".")[0] == "tune"
