"""AdamW with weight decay where the released code has it, and the learning rate as a function of
step.
"""

import math

import torch
from torch import nn

from attnlab.config.schema import Trainer
from attnlab.models.attention.base import HeadLinear


def build_optimizer(model: nn.Module, options: Trainer) -> torch.optim.AdamW:
    """AdamW of two groups: weights of linear layers with weight decay, and all else without (as in
    the released code, whose patch embedding is a convolution).
    """
    spared = set() if options.patch_decay else {model.embedding}
    linear = (m for m in model.modules() if isinstance(m, nn.Linear | HeadLinear))
    decayed = [m.weight for m in linear if m not in spared]
    chosen = {id(p) for p in decayed}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    groups = [
        {"params": decayed, "weight_decay": options.weight_decay},
        {"params": rest, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=options.lr, betas=tuple(options.betas), fused=True)


def set_learning_rate(
    optimizer: torch.optim.Optimizer, step: int, total: int, epoch: float, options: Trainer
) -> float:
    """Set the `learning_rate` of the groups of `build_optimizer`; that of the decayed one."""
    decayed, rest = optimizer.param_groups
    decayed["lr"] = learning_rate(step, total, epoch, options)
    # at epoch 0 no rate has dropped
    dropping = epoch if options.drop_groups == "all" else 0.0
    rest["lr"] = learning_rate(step, total, dropping, options)
    return decayed["lr"]


def learning_rate(step: int, total: int, epoch: float, options: Trainer) -> float:
    """The learning rate of update `step` (0 is the first) of `total`, `epoch` epochs into
    training.

    Linear warm-up to trainer.lr, then constant, dropped by a factor at given epochs, a cosine to
    0, or falling as one over the square root of the step (arXiv 1706.03762, eq 3).
    """
    if step < options.warmup_steps:
        return options.lr * (step + 1) / options.warmup_steps
    if options.schedule == "step":
        drops = sum(epoch >= drop for drop in options.drop_epochs)
        return options.lr * options.drop_factor**drops
    if options.schedule == "inverse_sqrt":
        return options.lr * math.sqrt(options.warmup_steps / (step + 1))
    if options.schedule == "cosine":
        progress = (step - options.warmup_steps) / max(1, total - options.warmup_steps)
        return options.lr * (1 + math.cos(math.pi * progress)) / 2
    return options.lr
