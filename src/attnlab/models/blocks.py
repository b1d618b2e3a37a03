"""What the transformers are made of: embedding, cached keys and values, attention of a sequence to
itself, and the block.

Shapes: B batch, N tokens, H heads, D head width, W width.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from attnlab.config.mechanisms import DotProduct, Mechanism
from attnlab.config.schema import Body
from attnlab.models.attention import build_attention
from attnlab.models.positions import Alibi, Rotary

FFN_ACTIVATION = {"relu": nn.ReLU, "gelu": nn.GELU}


class TextbookEmbedding(nn.Embedding):
    """Token embedding that starts with variance 1/W, so that sqrt(W) times it has variance 1."""

    def reset_parameters(self) -> None:
        """The values of nn.Embedding, N(0, 1), divided by sqrt(W)."""
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)


DOT_PRODUCT = DotProduct(name="dot_product", mechanism="dot_product")
EMBEDDING = {"normal": nn.Embedding, "textbook": TextbookEmbedding}


class KeyValueCache:
    """Keys and values (B, H, M, D) of the tokens that one layer has seen; none at first."""

    def __init__(self):
        self.tokens: int = 0
        self.keys_values: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all tokens, with these behind the others; kept for the next call."""
        if self.keys_values is not None:
            k, v = (torch.cat(x, dim=-2) for x in zip(self.keys_values, (k, v), strict=True))
        self.tokens, self.keys_values = k.shape[-2], (k, v)
        return k, v

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch, which may occur more than once."""
        if self.keys_values is not None:
            self.keys_values = tuple(x[rows] for x in self.keys_values)


class SelfAttention(nn.Module):
    """Projections to queries, keys, values (no bias), the mechanism, and the projection back.

    tokens: the longest sequence, which rotary positions need to know.
    """

    def __init__(self, arch: Body, mechanism: nn.Module, causal: bool, tokens: int):
        super().__init__()
        self.heads, self.causal = arch.heads, causal
        self.qkv = nn.Linear(arch.width, 3 * arch.width, bias=False)
        self.mechanism = mechanism
        self.out = nn.Linear(arch.width, arch.width, bias=False)
        rotary = arch.positions == "rotary"
        self.rotary = Rotary(tokens, arch.head_width) if rotary else None
        self.alibi = Alibi(arch.heads) if arch.positions == "alibi" else None

    def split(self, x: Tensor, start: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """(B, N, W) -> queries, keys and values, each (B, H, N, D); start: the position of the
        first token.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return (
            (q, k, v) if self.rotary is None else (self.rotary(q, start), self.rotary(k, start), v)
        )

    def bias(self, queries: int, keys: int) -> Tensor | None:
        """(H, N, M): what positions add to the scores of the last N of M tokens, if anything."""
        return self.alibi(queries, keys) if self.alibi else None

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, W) -> (B, N, W). With a cache x holds the tokens behind those in it. mask: see
        `Attention.mixing`.
        """
        q, k, v = self.split(x, cache.tokens if cache else 0)
        if cache:
            k, v = cache.extended(k, v)
        bias = self.bias(q.shape[-2], k.shape[-2])
        mixed = self.mechanism(q, k, v, causal=self.causal, mask=mask, bias=bias)
        return self.out(mixed.transpose(1, 2).flatten(2))


class ExtraUnits(nn.Sequential):
    """More hidden units for an FFN, with 2W + 1 parameters each. They are a module of their own,
    so that the weights of the FFN are those of every other arm, and start as they would inside
    it. They have no dropout, so that the random numbers of the other units do not change either.
    """

    def __init__(self, arch: Body, units: int):
        into, out = nn.Linear(arch.width, units), ExtraColumns(units, arch.width, arch.ffn_width)
        super().__init__(into, FFN_ACTIVATION[arch.activation](), out)


class ExtraColumns(nn.Linear):
    """`units` more columns for a linear layer of so many `inputs`; the bias is that layer's."""

    def __init__(self, units: int, outputs: int, inputs: int):
        self.bound = (units + inputs) ** -0.5
        super().__init__(units, outputs, bias=False)

    def reset_parameters(self) -> None:
        """As nn.Linear for all inputs together."""
        nn.init.uniform_(self.weight, -self.bound, self.bound)


class Block(nn.Module):
    """Attention and feed-forward network, each with residual, dropout and LayerNorm (arch.norm:
    post or pre). ffn_extra: hidden units beyond arch.ffn_width.
    """

    def __init__(
        self, arch: Body, mechanism: nn.Module, causal: bool, tokens: int, ffn_extra: int = 0
    ):
        super().__init__()
        self.post = arch.norm == "post"
        self.attention = SelfAttention(arch, mechanism, causal, tokens)
        self.norm1 = nn.LayerNorm(arch.width)
        self.ffn = nn.Sequential(
            nn.Linear(arch.width, arch.ffn_width),
            FFN_ACTIVATION[arch.activation](),
            nn.Dropout(arch.dropout),
            nn.Linear(arch.ffn_width, arch.width),
            nn.Dropout(arch.dropout),
        )
        self.ffn_extra = ExtraUnits(arch, ffn_extra) if ffn_extra else None
        self.norm2 = nn.LayerNorm(arch.width)
        self.dropout = nn.Dropout(arch.dropout)

    def forward(
        self, x: Tensor, cache: KeyValueCache | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N, W) -> (B, N, W); cache, mask: see `SelfAttention.forward`."""
        x = self.add(x, self.norm1, lambda y: self.dropout(self.attention(y, cache, mask)))
        return self.add(x, self.norm2, self.feed_forward)

    def add(self, x: Tensor, norm: nn.Module, part: Callable[[Tensor], Tensor]) -> Tensor:
        """x and what a part of the block makes of it, normalised behind or in front of it."""
        return norm(x + part(x)) if self.post else x + part(norm(x))

    def feed_forward(self, x: Tensor) -> Tensor:
        """(B, N, W) -> (B, N, W)."""
        y = self.ffn(x)
        return y if self.ffn_extra is None else y + self.ffn_extra(x)


def build_mechanism(arch: Body, model: Mechanism, layer: int) -> nn.Module:
    """The mechanism of one layer: the configured one where it applies, dot-product elsewhere."""
    own = layer in model.applies(arch.layers)
    return build_attention(model if own else DOT_PRODUCT, arch)
