"""Building blocks of the configuration's schema."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

MAX_SIZE = 2**31 - 1  # of any size or count: further on, integers overflow in torch


def valid_path(path: str) -> str:
    """The path, ~ being the home folder. Errors: `ValueError` if no file can have it as a name."""
    try:
        if path.startswith("~"):
            path = str(Path(path).expanduser())
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        pass  # said where the file is needed
    except OSError as error:
        raise ValueError(error.strerror) from None
    except RuntimeError as error:  # ~user
        raise ValueError(error) from None
    return path


def lies_in(written: str | Path, data: str | None) -> bool:
    """Whether a path is inside the folder of data, if there is one."""
    return bool(data) and Path(os.path.realpath(written)).is_relative_to(os.path.realpath(data))


PositiveInt = Annotated[int, Field(ge=1, le=MAX_SIZE)]
Count = Annotated[int, Field(ge=0, le=MAX_SIZE)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]  # of numpy, too
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}$")]
PathName = Annotated[str, Field(min_length=1), AfterValidator(valid_path)]


class Section(BaseModel):
    """A section of the configuration: only known keys, only their own types, no nan or inf."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def contradictions(self) -> Iterator[str]:
        """One message for every combination of the section's keys that is not allowed."""
        yield from ()
