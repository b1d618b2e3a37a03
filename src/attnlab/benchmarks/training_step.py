"""Whole training steps of the arms of a comparison, beside those of the dot product."""

from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn

from attnlab.benchmarks.timing import HOST, measured_on, paired
from attnlab.config.schema import Config
from attnlab.data.pairs import Pairs
from attnlab.models.transformer import build_model
from attnlab.runtime.distributed import micro_batch
from attnlab.training.optim import build_optimizer
from attnlab.training.prefetch import Prefetch
from attnlab.training.update import Update

SENTENCE = 32  # tokens in a sentence of translation, on each side
CLASSES = 100  # of the images: those of CIFAR-100


def whole_steps(arms: dict[str, Config], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each arm: a training step (forward, backward, update) beside dot_product's, which
    must be the first arm.
    """
    base = None
    for name, cfg in arms.items():
        run, _ = training_step(cfg, device, published_shape(cfg))
        base = base or run
        timing = paired(run, base, HOST)
        yield {"arm": name, "body": cfg.arch.body, **timing, **measured_on(device)}


def published_shape(cfg: Config) -> dict[str, int]:
    """That of a model (see `Transformer`) for data of cfg's kind, without reading it."""
    if cfg.arch.body != "vit":
        vocabulary = cfg.data.vocab_size
        return {"inputs": vocabulary, "outputs": vocabulary, "tokens": cfg.data.sequence_length}
    patch, patches = cfg.arch.patch_size, (cfg.data.image_size // cfg.arch.patch_size) ** 2
    return {"inputs": 3 * patch**2, "outputs": CLASSES, "tokens": 1 + patches}


def random_batch(cfg: Config, shape: dict[str, int]) -> tuple[Tensor | Pairs, Tensor]:
    """Inputs and targets of a micro-batch of tokens or images."""
    micro = micro_batch(cfg.trainer)
    if cfg.arch.body == "seq2seq":
        length = min(SENTENCE, shape["tokens"])
        count = micro * cfg.data.group_tokens // length
        ids = torch.randint(1, shape["outputs"], (3, count, length))  # 0 is padding
        return Pairs(ids[0], ids[1]), ids[2]
    if cfg.arch.body == "lm":
        return torch.randint(shape["outputs"], (2, micro, shape["tokens"])).unbind()
    size = (micro, 3, cfg.data.image_size, cfg.data.image_size)
    return torch.randn(size), torch.randint(shape["outputs"], (micro,))


def training_step(
    cfg: Config, device: torch.device, shape: dict[str, int]
) -> tuple[Callable[[], None], nn.Module]:
    """A step of cfg's batch size, as training takes it, on random tokens or images; and the model
    of this shape that it trains. Translation: all sentences have one length.
    """
    torch.manual_seed(0)
    options = cfg.trainer
    model = build_model(cfg.arch, cfg.model, cfg.seed, **shape)
    x, y = random_batch(cfg, shape)
    if device.type == "cuda":
        x, y = x.pin_memory(), y.pin_memory()
    model.to(device).train()
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    compiled = torch.compile(model) if cfg.runtime.compile else model
    update = Update(compiled, build_optimizer(model, options), scaler, options, cfg.seed)
    batches = Prefetch(repeat((x, y)), options.batch_size // micro_batch(options), device)

    def once() -> None:
        update(0, batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return once, model
