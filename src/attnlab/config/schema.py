"""Schema of the whole configuration: types, ranges and the checks across keys.

Nothing here imports torch, so that a typing error is answered at once. `messages.validate` turns
what Hydra composed into a `Config`, or raises `BadInput` with one line per problem.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from attnlab.config.datasets import Data, Image
from attnlab.config.mechanisms import Model
from attnlab.config.types import (
    MAX_SIZE,
    Count,
    Name,
    PathName,
    Positive,
    PositiveInt,
    Section,
    lies_in,
)

# Sections that may differ from one start of a run to the next: how it is watched, and where and
# how it executes. Of these, device, threads and compile change rounding or dropout masks; env.json
# records them, and a start says so.
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
    "trainer.label_smoothing": 0.0,
    "trainer.patch_decay": True,
    "trainer.drop_groups": "all",
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
        "symbols": {"data.test_ladder": None},
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
    """What the transformers share (configs/arch)."""

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

    def contradictions(self) -> Iterator[str]:
        if self.width % self.heads:
            yield f"arch.width={self.width}: must be a multiple of arch.heads={self.heads}"
        if self.width % 2 and self.positions.startswith("sinusoidal"):
            yield f"arch.width={self.width}: must be even for arch.positions={self.positions}"
        if self.head_width % 2 and self.positions == "rotary":
            yield (
                f"arch.width={self.width}: the head width arch.width / arch.heads must be even "
                "for arch.positions=rotary"
            )
        if self.positions == "alibi" and self.body != "lm":
            yield "arch.positions=alibi: is defined for causal attention (data of arch.body=lm)"


class Seq2SeqBody(Body):
    body: Literal["seq2seq"]
    attentions: Annotated[list[Literal["encoder", "decoder", "cross"]], Field(min_length=1)]
    tied_embeddings: bool

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if len(set(self.attentions)) < len(self.attentions):
            yield f"arch.attentions={self.attentions}: an attention is named twice"


class LM(Body):
    body: Literal["lm"]


class ViT(Body):
    body: Literal["vit"]
    patch_size: PositiveInt

    def contradictions(self) -> Iterator[str]:
        yield from super().contradictions()
        if self.embedding_init != "normal":
            yield (
                f"arch.embedding_init={self.embedding_init}: a vit embeds patches by a linear "
                "layer, which has no such choice; it must be 'normal'"
            )


class Trainer(Section):
    batch_size: PositiveInt
    micro_batch_size: PositiveInt | None
    max_steps: PositiveInt | None
    epochs: PositiveInt | None
    lr: Positive
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    schedule: Literal["constant", "step", "cosine", "inverse_sqrt"]
    warmup_steps: Count
    drop_epochs: list[PositiveInt]
    drop_factor: Annotated[float, Field(gt=0, le=1)]
    drop_groups: Literal["all", "decayed"]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: Annotated[float, Field(ge=0)]
    patch_decay: bool
    grad_clip: Positive | None
    precision: Literal["fp32", "tf32", "bf16", "fp16"]
    log_every: PositiveInt
    eval_every: PositiveInt | None
    save_every: PositiveInt
    diagnostics: bool
    on_nonfinite: Literal["stop", "skip"]
    select_on: Literal["validation", "test"]

    def contradictions(self) -> Iterator[str]:
        if self.batch_size % (self.micro_batch_size or 1):
            yield (
                f"trainer.batch_size={self.batch_size}: must be a multiple of "
                f"trainer.micro_batch_size={self.micro_batch_size}"
            )
        if self.max_steps is None and self.epochs is None:
            yield "trainer.max_steps=null: set it or trainer.epochs"
        if self.schedule == "inverse_sqrt" and not self.warmup_steps:
            yield "trainer.warmup_steps=0: trainer.schedule=inverse_sqrt needs at least one"
        if (self.schedule == "step") != bool(self.drop_epochs):
            yield (
                f"trainer.drop_epochs={self.drop_epochs}: trainer.schedule=step needs some, "
                f"other schedules take none; it is {self.schedule}"
            )
        if self.max_steps and self.warmup_steps > self.max_steps:
            yield (
                f"trainer.warmup_steps={self.warmup_steps}: must be at most "
                f"trainer.max_steps={self.max_steps}"
            )


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
    keep_checkpoints: Annotated[int, Field(ge=2, le=MAX_SIZE)]
    output_root: PathName
    cache: PathName


Arch = Annotated[LM | ViT | Seq2SeqBody, Field(discriminator="body")]


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
        """Eight hex digits over everything that defines the result: all but logger and runtime
        (UNHASHED) and data.path, because a run is bound to the content that it found there.
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


READS = {"lm": {"text", "symbols"}, "vit": {"image"}, "seq2seq": {"translation"}}


def _contradictions(cfg: Config) -> Iterator[str]:
    """One message for every combination of keys that is not allowed."""
    arch, model, data, trainer = cfg.arch, cfg.model, cfg.data, cfg.trainer
    for key in ("output_root", "cache"):
        written = getattr(cfg.runtime, key)
        if lies_in(written, getattr(data, "path", None)):
            yield (
                f"runtime.{key}={written}: lies in data.path={data.path}, so that what runs write "
                "would be read as data; choose another folder"
            )
    if data.kind not in READS[arch.body]:
        yield (
            f"arch.body={arch.body}: data={data.name} is {data.kind}; "
            "lm reads text and symbols, vit images, seq2seq translation"
        )
    elif arch.body != "vit" and not trainer.patch_decay:
        yield f"trainer.patch_decay=false: arch.body={arch.body} embeds no patches"
    yield from arch.contradictions()
    yield from model.contradictions_with(arch)
    if (
        isinstance(arch, Seq2SeqBody)
        and "cross" in arch.attentions
        and model.mechanism == "identity"
    ):
        yield (
            f"arch.attentions={arch.attentions}: a query of cross-attention has no key of its "
            "own, so model=identity takes encoder and decoder only"
        )
    yield from data.contradictions()
    yield from trainer.contradictions()
    if data.kind == "translation" and trainer.micro_batch_size != 1:
        yield (
            f"trainer.micro_batch_size={trainer.micro_batch_size}: must be 1 for translation, "
            "whose samples are groups of sentence pairs; data.group_tokens says how large they are"
        )
    if isinstance(arch, ViT) and isinstance(data, Image) and data.image_size % arch.patch_size:
        yield (
            f"data.image_size={data.image_size}: must be a multiple of "
            f"arch.patch_size={arch.patch_size}"
        )
    if isinstance(data, Image) and data.validation_size == 0 and trainer.select_on == "validation":
        yield "data.validation_size=0: trainer.select_on=validation needs held-out images"
