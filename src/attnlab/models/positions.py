"""Position encodings: absolute ones, added to the embedding of each token; rotary ones; ALiBi."""

import math

import torch
from torch import Tensor, nn

from attnlab.functional import at_least_float32


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

    P by arch.positions: sinusoidal, sinusoidal_released, learned; the others add none.
    scale: sqrt(width) or 1 (arch.embedding_scale); residual: arch.embedding_residual, 0 in the
    textbook; the released code adds x once or twice more.
    """

    def __init__(self, arch, tokens: int):
        super().__init__()
        self.longest = math.inf if arch.positions in ("none", "alibi") else tokens
        self.scale = math.sqrt(arch.width) if arch.embedding_scale else 1.0
        self.residual = arch.embedding_residual
        self.dropout = nn.Dropout(arch.dropout)
        self.learned = nn.Embedding(tokens, arch.width) if arch.positions == "learned" else None
        table = {"sinusoidal": sinusoid, "sinusoidal_released": sinusoid_released}
        fixed = table[arch.positions](tokens, arch.width) if arch.positions in table else None
        self.register_buffer("table", fixed, persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, N, width) -> (B, N, width); start: the position of the first token, start + N at
        most `tokens` but for positions none and alibi. Errors: `ValueError`.
        """
        if start + x.shape[1] > self.longest:
            raise ValueError(
                f"{start + x.shape[1]} tokens: the model has {self.longest} positions"
            )
        y = self.scale * x
        table = self.table if self.learned is None else self.learned.weight
        if table is not None:
            y = y + table[start : start + x.shape[1]]
        y = self.dropout(y)
        return self.residual * x + y if self.residual else y


class Float32Tables(nn.Module):
    """A module whose buffers are float32 also where the model around it is cast to 16 bits: the
    angles of neighbouring tokens may be closer than 16 bits tell apart.
    """

    def _apply(self, fn, recurse: bool = True):
        before = dict(self.named_buffers(recurse=False))
        super()._apply(fn, recurse)
        for name, table in self.named_buffers(recurse=False):
            if table.dtype.itemsize < before[name].dtype.itemsize:
                setattr(self, name, before[name].to(table.device))
        return self


class Rotary(Float32Tables):
    """Rotary positions (Su et al., arXiv 2104.09864, eq 34): entries 2i and 2i + 1 of the query or
    key of token t are turned by the angle t * 10000^(-2i/D), so that q . k depends on the distance
    of two tokens only. In vision t counts the class token and then patches row by row.
    """

    def __init__(self, tokens: int, head_width: int):
        super().__init__()
        position = torch.arange(tokens, dtype=torch.float64)[:, None]
        exponent = torch.arange(0, head_width, 2, dtype=torch.float64) / head_width
        angle = position / 1e4**exponent
        self.register_buffer("cos", angle.cos().float(), persistent=False)  # (tokens, D / 2)
        self.register_buffer("sin", angle.sin().float(), persistent=False)

    def forward(self, x: Tensor, start: int = 0) -> Tensor:
        """(B, H, N, D) -> (B, H, N, D); start: as in `Positions.forward`. 16-bit x is
        rotated in float32.
        """
        here = slice(start, start + x.shape[-2])
        cos, sin = self.cos[here], self.sin[here]
        even, odd = (
            part.to(torch.promote_types(x.dtype, cos.dtype))
            for part in (x[..., 0::2], x[..., 1::2])
        )
        turned = torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1)
        return turned.flatten(-2).to(x.dtype)


class Alibi(Float32Tables):
    """Attention with linear biases (Press et al., arXiv 2108.12409): a score gets -m_h times the
    distance of key and query, for causal attention. Head h = 1, ..., H has m_h = 2^(-8h/H); where
    H is no power of two, heads up to the power K below it have those of K, and the others the
    1st, 3rd, ... of 2K, as in the released code.
    """

    def __init__(self, heads: int):
        super().__init__()
        power = 2 ** int(math.log2(heads))
        slopes = [2 ** (-8 * h / power) for h in range(1, power + 1)]
        slopes += [2 ** (-4 * h / power) for h in range(1, 2 * (heads - power), 2)]
        slopes = torch.tensor(slopes).view(-1, 1, 1)
        self.register_buffer("slopes", slopes, persistent=False)  # (H, 1, 1)

    def forward(self, queries: int, keys: int) -> Tensor:
        """(H, N, M): the bias of N queries, the last of which is the last of M keys."""
        places = torch.arange(keys, device=self.slopes.device)
        return at_least_float32(self.slopes) * (places - places[keys - queries :, None])
