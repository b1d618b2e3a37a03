"""Absolute position encodings, added to the embedding of each token."""

import math

import torch
from torch import Tensor, nn


def sinusoid(tokens: int, width: int) -> Tensor:
    """Textbook table (arXiv 1706.03762, section 3.5): (tokens, width), sin and cos of one
    frequency side by side.
    """
    position = torch.arange(tokens, dtype=torch.float64)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * -math.log(1e4) / width)
    angles = position * frequency
    return torch.stack((angles.sin(), angles.cos()), dim=-1).reshape(tokens, width).float()


def sinusoid_released(tokens: int, width: int) -> Tensor:
    """The released code's table: even entry i has sin at exponent 2i/width, odd i has cos at (2i
    + 1)/width.

    i counts entries where the textbook counts pairs, so frequencies fall twice as fast and sin
    and cos are no pairs.
    """
    position = torch.arange(tokens, dtype=torch.float64)[:, None]
    even = torch.arange(0, width, 2, dtype=torch.float64)
    sin = torch.sin(position / 1e4 ** (2 * even / width))
    cos = torch.cos(position / 1e4 ** ((2 * even + 1) / width))
    return torch.stack((sin, cos), dim=-1).reshape(tokens, width).float()


class Positions(nn.Module):
    """x -> residual * x + dropout(scale * x + P), x (B, N, width).

    kind: sinusoidal, sinusoidal_released, learned or none; scale: sqrt(width) or 1
    (arch.embedding_scale); residual: arch.embedding_residual, 0 in the textbook; the released
    code adds x once or twice more.
    """

    def __init__(self, arch, tokens: int):
        super().__init__()
        self.scale = math.sqrt(arch.width) if arch.embedding_scale else 1.0
        self.residual = arch.embedding_residual
        self.dropout = nn.Dropout(arch.dropout)
        self.learned = nn.Embedding(tokens, arch.width) if arch.positions == "learned" else None
        table = {"sinusoidal": sinusoid, "sinusoidal_released": sinusoid_released}
        fixed = table[arch.positions](tokens, arch.width) if arch.positions in table else None
        self.register_buffer("table", fixed, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, width) -> (B, N, width); N at most `tokens`."""
        y = self.scale * x
        table = self.table if self.learned is None else self.learned.weight
        if table is not None:
            y = y + table[: x.shape[1]]
        y = self.dropout(y)
        return self.residual * x + y if self.residual else y
