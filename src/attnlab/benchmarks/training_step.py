"""Whole training steps of the arms of a comparison, beside those of the dot product."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from attnlab.benchmarks.timing import environment, paired
from attnlab.config.schema import Config
from attnlab.models.transformer import build_model
from attnlab.training.optim import build_optimizer
from attnlab.training.update import precision, training_loss

CLASSES = 100  # of the images: those of CIFAR-100


def whole_steps(arms: dict[str, Config], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each arm: a training step (forward, backward, update) beside dot_product's, which
    must be the first arm.
    """
    base = None
    for name, cfg in arms.items():
        run, _ = training_step(cfg, device, published_shape(cfg))
        base = base or run
        timing = paired(run, base)
        yield {"arm": name, "body": cfg.arch.body, **timing, **environment(device)}


def published_shape(cfg: Config) -> dict[str, int]:
    """That of a model (see `Transformer`) for data of cfg's kind, without reading it."""
    if cfg.arch.body == "lm":
        vocabulary = cfg.data.vocab_size
        return {"inputs": vocabulary, "outputs": vocabulary, "tokens": cfg.data.sequence_length}
    patch, patches = cfg.arch.patch_size, (cfg.data.image_size // cfg.arch.patch_size) ** 2
    return {"inputs": 3 * patch**2, "outputs": CLASSES, "tokens": 1 + patches}


def training_step(
    cfg: Config, device: torch.device, shape: dict[str, int]
) -> tuple[Callable[[], None], nn.Module]:
    """A step of cfg's batch size on random tokens or images, and the model of this shape that it
    trains.
    """
    torch.manual_seed(0)
    micro = cfg.trainer.micro
    model = build_model(cfg.arch, cfg.model, cfg.seed, **shape)
    if cfg.arch.body == "lm":
        x, y = torch.randint(shape["outputs"], (2, micro, shape["tokens"]), device=device)
    else:
        size = cfg.data.image_size
        x = torch.randn(micro, 3, size, size, device=device)
        y = torch.randint(shape["outputs"], (micro,), device=device)
    model.to(device).train()
    optimizer = build_optimizer(model, cfg.trainer)
    autocast = precision(cfg.trainer, device)
    per_step = cfg.trainer.batch_size // micro

    def once() -> None:
        for _ in range(per_step):
            with autocast():
                loss = training_loss(model(x), y) / per_step
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return once, model
