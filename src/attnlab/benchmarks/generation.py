"""Generation with cached keys and values beside generation that computes all tokens each step."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from attnlab.benchmarks.timing import HOST, measured_on, paired
from attnlab.benchmarks.training_step import published_shape
from attnlab.config.schema import Config
from attnlab.inspection.generate import continued
from attnlab.models.transformer import build_model


def generation(
    arms: dict[str, Config], tokens: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each arm: `tokens` likeliest tokens by an untrained model, from a prompt of one;
    same_tokens: whether both ways give the same.
    """
    for name, cfg in arms.items():
        model = build_model(cfg.arch, cfg.model, cfg.seed, **published_shape(cfg))
        model.to(device).eval()
        found: dict[bool, list[int]] = {}

        def generate(cached: bool, model=model, block=cfg.data.sequence_length, found=found):
            found[cached] = continued(model, [0], tokens, block, likeliest, cached)

        timing = paired(lambda: generate(True), lambda: generate(False), HOST)
        timing["ratio_to_uncached"] = timing.pop("ratio_to_sdpa")
        same = found[True] == found[False]
        yield {"arm": name, "tokens": tokens, **timing, "same_tokens": same, **measured_on(device)}


def likeliest(logits: Tensor) -> int:
    """The token of the largest logit."""
    return int(logits.argmax())
