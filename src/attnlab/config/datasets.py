"""The data section: one class for each kind of data that is read; tasks are in `symbols`."""

import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from attnlab.config.symbols import Task
from attnlab.config.types import MAX_SIZE, Count, Name, PathName, PositiveInt, Section, Share


def _rows(size: float) -> float | int:
    """A number of rows as an integer, a share of them as it is. Errors: `ValueError`."""
    if size >= 1 and size != int(size):
        raise ValueError("must be a whole number, or a share below 1")
    return size if 0 < size < 1 else int(size)


PartOf = Annotated[float, Field(le=MAX_SIZE), AfterValidator(_rows)]


class Stored(Section):
    """Data that is read, or comes with a library: what all kinds of it share.

    path: hub id, local folder, or `embedded:<name>`. name: that of run folders and in reports;
    None becomes one that is made of path and config.
    """

    name: Name | None
    path: PathName | None
    config: str | None

    @model_validator(mode="after")
    def _named(self) -> Self:
        if self.name is not None or self.path is None:
            return self
        last = Path(self.path).expanduser().absolute().name.removeprefix("embedded:")
        words = "-".join(filter(None, (last, self.config)))
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", words).strip(".-")[:64]
        return self.model_copy(update={"name": name or self.kind})

    def contradictions(self) -> Iterator[str]:
        if self.path is None:
            yield f"data.path=null: {self.kind} data needs a hub id or a local folder"


class Text(Stored):
    kind: Literal["text"]
    text_column: Annotated[str, Field(min_length=1)]
    validation_size: Annotated[float, Field(gt=0, lt=1)] | None
    test_size: Annotated[float, Field(gt=0, lt=1)] | None
    tokenizer: PathName
    vocab_size: Annotated[int, Field(ge=16, le=MAX_SIZE)]
    alphabet_size: PositiveInt | None
    sequence_length: PositiveInt
    eval_stride: PositiveInt

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.eval_stride > self.sequence_length:
            yield (
                f"data.eval_stride={self.eval_stride}: must be at most "
                f"data.sequence_length={self.sequence_length}, or tokens would go unscored"
            )


class Augment(Section):
    crop_scale: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)
    ]
    flip: Share
    jitter: Annotated[list[Share], Field(min_length=4, max_length=4)]
    rotation: Annotated[float, Field(ge=0, le=180)]

    def contradictions(self) -> Iterator[str]:
        if self.crop_scale[0] > self.crop_scale[1]:
            yield f"data.augment.crop_scale={self.crop_scale}: must be [smaller, larger]"
        if self.jitter[3] > 0.5:
            yield f"data.augment.jitter={self.jitter}: the last (hue) must be at most 0.5"


class Image(Stored):
    kind: Literal["image"]
    image_column: Annotated[str, Field(min_length=1)]
    label_column: Annotated[str, Field(min_length=1)]
    image_size: PositiveInt
    validation_size: Annotated[PartOf, Field(ge=0)] | None
    test_size: Annotated[PartOf, Field(gt=0)] | None
    augment: Augment

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        yield from self.augment.contradictions()


# Languages whose words sacrebleu finds by a package of its own.
WORDS_NEED = {"ja": "MeCab", "ko": "mecab_ko"}


class Translation(Stored):
    kind: Literal["translation"]
    source: Name
    target: Name
    vocab_size: Annotated[int, Field(ge=264, le=MAX_SIZE)]  # 256 bytes and the special tokens
    sequence_length: PositiveInt
    group_tokens: PositiveInt
    beam_width: Annotated[int, Field(ge=1, le=1024)]
    length_penalty: Annotated[float, Field(ge=0, le=10)]
    extra_tokens: Count

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.source == self.target:
            yield f"data.target={self.target}: must be another language than data.source"
        needed = WORDS_NEED.get(self.target)
        if needed and find_spec(needed) is None:
            yield (
                f"data.target={self.target}: BLEU of this language is measured with a package "
                f"that is not installed; pip install 'sacrebleu[{self.target}]'"
            )
        if self.sequence_length > self.group_tokens:
            yield (
                f"data.sequence_length={self.sequence_length}: must be at most "
                f"data.group_tokens={self.group_tokens}, or a sentence may fit in no batch"
            )


Data = Annotated[Text | Image | Task | Translation, Field(discriminator="kind")]
