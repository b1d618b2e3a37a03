"""Schema of the whole configuration: types, ranges and the checks across keys.

Nothing here imports torch, so that a typing error is answered at once. `messages.validate` turns
what Hydra composed into a `Config`, or raises `BadInput` with one line per problem.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from attnlab.config.mechanisms import Model
from attnlab.config.symbols import Symbols, Task
from attnlab.config.types import (
    LARGEST,
    Count,
    Name,
    PathName,
    Positive,
    PositiveInt,
    Section,
    Share,
)

# Sections that cannot change a result; they may differ from one start of a run to the next.
UNHASHED = {"logger", "runtime"}

# Where data is stored. It may be moved: its fingerprint shows whether it is still the same.
PLACE = "data.path"

# What the released protocol sets per arm although it is not part of attention (configs/protocol).
PER_ARM = {"arch.embedding_residual"}

# Keys that were added to the schema later, each with the value that describes earlier runs. A run
# folder that lacks the key keeps its hash, and is resumed and compared as if it had this value.
ADDED = {
    "trainer.diagnostics": False,
    "trainer.on_nonfinite": "stop",
    "runtime.keep_checkpoints": 2,
    "runtime.tuning": False,
    "logger.tensorboard": False,
    "arch.qk_norm": "none",
    "arch.embedding_init": "normal",
    "arch.embedding_norm": False,
}
# The same for keys that only exist where another key has a certain value.
ADDED_TO: dict[str, dict[str, dict[str, Any]]] = {
    "model.mechanism": {
        "expressive": {"model.temperature": 1.0, "model.learn_temperature": False},
        "dot_product_wide": {"model.ffn_layers": [0]},
    },
    "data.kind": {
        "text": {
            "data.text_column": "text",
            "data.validation_size": None,
            "data.test_size": None,
            "data.alphabet_size": None,
        },
        "image": {"data.test_size": None},
    },
}


def added_keys(get: Callable[[str], Any]) -> dict[str, Any]:
    """Those keys, with their values, in the configuration whose values by dotted key are `get`."""
    found = dict(ADDED)
    for key, by_value in ADDED_TO.items():
        found |= by_value.get(str(get(key)), {})
    return found


# Raised whenever a change of the code changes results; a run of another version is not resumed.
CODE_VERSION = 3


class Body(Section):
    """What both transformers share (configs/arch)."""

    layers: PositiveInt
    heads: PositiveInt
    width: PositiveInt
    ffn_width: PositiveInt
    activation: Literal["relu", "gelu"]
    norm: Literal["post", "pre"]
    dropout: Annotated[float, Field(ge=0, lt=1)]
    positions: Literal["sinusoidal", "sinusoidal_released", "learned", "rotary", "alibi", "none"]
    embedding_scale: bool
    embedding_residual: Annotated[int, Field(ge=0, le=2)]
    embedding_init: Literal["normal", "textbook"]
    embedding_norm: bool
    qk_norm: Literal["none", "rms", "rms_gain"]

    @property
    def head_width(self) -> int:
        return self.width // self.heads


class LM(Body):
    body: Literal["lm"]


class ViT(Body):
    body: Literal["vit"]
    patch_size: PositiveInt


def _rows(size: float) -> float | int:
    """A number of rows as an integer, a share of them as it is. Errors: `ValueError`."""
    if size >= 1 and size != int(size):
        raise ValueError("must be a whole number, or a share below 1")
    return size if 0 < size < 1 else int(size)


PartOf = Annotated[float, Field(le=LARGEST), AfterValidator(_rows)]


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


class Text(Stored):
    kind: Literal["text"]
    text_column: Annotated[str, Field(min_length=1)]
    validation_size: Annotated[float, Field(gt=0, lt=1)] | None
    test_size: Annotated[float, Field(gt=0, lt=1)] | None
    tokenizer: PathName
    vocab_size: Annotated[int, Field(ge=16, le=LARGEST)]
    alphabet_size: PositiveInt | None
    sequence_length: PositiveInt
    eval_stride: PositiveInt


class Augment(Section):
    crop_scale: Annotated[
        list[Annotated[float, Field(gt=0, le=1)]], Field(min_length=2, max_length=2)
    ]
    flip: Share
    jitter: Annotated[list[Share], Field(min_length=4, max_length=4)]
    rotation: Annotated[float, Field(ge=0, le=180)]


class Image(Stored):
    kind: Literal["image"]
    image_column: Annotated[str, Field(min_length=1)]
    label_column: Annotated[str, Field(min_length=1)]
    image_size: PositiveInt
    validation_size: Annotated[PartOf, Field(ge=0)] | None
    test_size: Annotated[PartOf, Field(gt=0)] | None
    augment: Augment


class Trainer(Section):
    batch_size: PositiveInt
    micro_batch_size: PositiveInt | None
    max_steps: PositiveInt | None
    epochs: PositiveInt | None
    lr: Positive
    schedule: Literal["constant", "step", "cosine"]
    warmup_steps: Count
    drop_epochs: list[PositiveInt]
    drop_factor: Positive
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: Annotated[float, Field(ge=0)]
    grad_clip: Positive | None
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    log_every: PositiveInt
    eval_every: PositiveInt | None
    save_every: PositiveInt
    diagnostics: bool
    on_nonfinite: Literal["stop", "skip"]
    select_on: Literal["validation", "test"]

    @property
    def micro(self) -> int:
        return self.micro_batch_size or self.batch_size


class Logger(Section):
    mode: Literal["auto", "online", "offline", "disabled"]
    project: Name
    tensorboard: bool


class Runtime(Section):
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(ge=1, le=1024)] | None
    workers: Annotated[int, Field(ge=0, le=64)]
    compile: bool
    progress: bool
    tuning: bool
    keep_checkpoints: Annotated[int, Field(ge=2, le=LARGEST)]
    output_root: PathName
    cache: PathName


Arch = Annotated[LM | ViT, Field(discriminator="body")]
Data = Annotated[Text | Image | Task, Field(discriminator="kind")]


class Config(Section):
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    scale: Literal["paper", "mini", "smoke"]
    protocol: Literal["paper", "released"]
    code_version: Literal[CODE_VERSION] = CODE_VERSION
    arch: Arch
    model: Model
    data: Data
    trainer: Trainer
    logger: Logger
    runtime: Runtime

    @model_validator(mode="after")
    def _across(self) -> "Config":
        if problems := list(_contradictions(self)):
            raise ValueError("\n".join(problems))
        return self.model_copy(update={"model": self.model.resolved(self.arch, self.protocol)})

    @property
    def hash(self) -> str:
        """Eight hex digits over everything that can change the result. Logger and runtime cannot,
        and data.path is left out because a run is bound to the content that it found there.
        """
        kept = self.model_dump(exclude=UNHASHED | {"code_version"})
        kept["data"].pop("path", None)
        chosen = {"model.mechanism": self.model.mechanism, "data.kind": self.data.kind}
        for key, before in added_keys(chosen.get).items():
            section, name = key.split(".")
            if kept.get(section, {}).get(name) == before:
                del kept[section][name]
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def folder(self) -> str:
        """The default run folder: the same configuration always has the same folder."""
        run = f"seed{self.seed}_{self.hash}"
        return f"{self.runtime.output_root}/{self.data.name}/{self.model.name}/{run}"


def can_change_result(key: str) -> bool:
    """Whether a dotted key matters when two configurations are compared."""
    return key != PLACE and key.split(".")[0] not in UNHASHED


def _contradictions(cfg: Config) -> Iterator[str]:
    """One message for every combination of keys that is not allowed."""
    arch, model, data, trainer = cfg.arch, cfg.model, cfg.data, cfg.trainer
    if (arch.body == "vit") != (data.kind == "image"):
        yield (
            f"arch.body={arch.body}: data={data.name} is {data.kind}; "
            "lm reads text and symbols, vit images"
        )
    if arch.width % arch.heads:
        yield f"arch.width={arch.width}: must be a multiple of arch.heads={arch.heads}"
    if arch.width % 2 and arch.positions.startswith("sinusoidal"):
        yield f"arch.width={arch.width}: must be even for arch.positions={arch.positions}"
    if arch.head_width % 2 and arch.positions == "rotary":
        yield (
            f"arch.width={arch.width}: the head width arch.width / arch.heads must be even for "
            "arch.positions=rotary"
        )
    if arch.positions == "alibi" and arch.body != "lm":
        yield "arch.positions=alibi: is defined for causal attention (data of arch.body=lm)"
    if arch.body == "vit" and arch.embedding_init != "normal":
        yield (
            f"arch.embedding_init={arch.embedding_init}: a vit embeds patches by a linear layer, "
            "which has no such choice; it must be 'normal'"
        )
    yield from model.contradictions(arch)
    if isinstance(data, Text) and data.eval_stride > data.sequence_length:
        yield (
            f"data.eval_stride={data.eval_stride}: must be at most "
            f"data.sequence_length={data.sequence_length}, or tokens would go unscored"
        )
    if isinstance(data, Image):
        if isinstance(arch, ViT) and data.image_size % arch.patch_size:
            yield (
                f"data.image_size={data.image_size}: must be a multiple of "
                f"arch.patch_size={arch.patch_size}"
            )
        if data.validation_size == 0 and trainer.select_on == "validation":
            yield "data.validation_size=0: trainer.select_on=validation needs held-out images"
        if data.augment.crop_scale[0] > data.augment.crop_scale[1]:
            yield f"data.augment.crop_scale={data.augment.crop_scale}: must be [smaller, larger]"
        if data.augment.jitter[3] > 0.5:
            yield f"data.augment.jitter={data.augment.jitter}: the last (hue) must be at most 0.5"
    if isinstance(data, Symbols):
        yield from data.contradictions()
    elif data.path is None:
        yield f"data.path=null: {data.kind} data needs a hub id or a local folder"
    if trainer.batch_size % trainer.micro:
        yield (
            f"trainer.batch_size={trainer.batch_size}: must be a multiple of "
            f"trainer.micro_batch_size={trainer.micro_batch_size}"
        )
    if trainer.max_steps is None and trainer.epochs is None:
        yield "trainer.max_steps=null: set it or trainer.epochs"
    if (trainer.schedule == "step") != bool(trainer.drop_epochs):
        yield (
            f"trainer.drop_epochs={trainer.drop_epochs}: trainer.schedule=step needs some, "
            f"other schedules take none; it is {trainer.schedule}"
        )
    for key in ("warmup_steps", "eval_every"):
        value = getattr(trainer, key)
        if trainer.max_steps and value and value > trainer.max_steps:
            yield f"trainer.{key}={value}: must be at most trainer.max_steps={trainer.max_steps}"
