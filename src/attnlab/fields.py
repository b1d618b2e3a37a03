"""Building blocks of the configuration's schema."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

PositiveInt = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class Section(BaseModel):
    """A section of the configuration: only known keys, only their own types, no nan or inf."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
