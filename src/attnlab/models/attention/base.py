"""What every attention mechanism is: per-head queries, keys and values in, mixed values out.

Shapes here and in the mechanisms: B batch, H heads, N queries, M keys (N = M in self-attention
without a cache), D head width, P = d' projected width.
"""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from attnlab.functional import (
    at_least_float32,
    check_bias,
    masked_softmax,
    visible_keys,
    without_autocast,
)


class Attention(nn.Module, ABC):
    """The part in which the arms of a comparison differ; projections to Q, K, V and back belong
    to the block.

    heads: H; head_width: D; a subclass names its options. fixed: whether the weights are the same
    whatever queries and keys are. takes_bias: whether there are scores to add a bias to; then
    `weights` has an argument for it.
    """

    fixed = False
    takes_bias = False

    def __init__(self, heads: int, head_width: int):
        super().__init__()

    @abstractmethod
    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """The matrix that mixes the values, in the form of the paper's equation.

        q (B, H, N, D), k (B, H, M, D); visible: boolean, True where a query sees a key,
        broadcasts to (B, H, N, M), None for all. Returns (B, H, N, M) in float32 or better, 0
        where a key is not seen.
        """

    def mixing(
        self,
        q: Tensor,
        k: Tensor,
        *,
        causal: bool,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """`weights` where, if causal, query i sees key j <= i + M - N, and else every key.

        mask: boolean, True where a key may be seen, broadcasts to (B, H, N, M); key padding is
        (B, 1, 1, M). A key is seen if both allow it. bias: what is added to the scores before the
        softmax, a part of them that positions make; broadcasts to (B, H, N, M).

        In float32 or better, under autocast too: scores in 16 bits overflow, and near scores of
        size 10 their rounding is worth a tenth of a weight.

        Errors: `ValueError` for a mask or bias of wrong dtype or shape, or a bias without scores.
        """
        visible, extra = visible_keys(q, k, causal, mask), {}
        if bias is not None:
            if not self.takes_bias:
                raise ValueError(f"{type(self).__name__} has no scores that take a bias")
            check_bias(bias, (*q.shape[:-1], k.shape[-2]))
            extra["bias"] = bias
        with without_autocast(q):
            return self.weights(at_least_float32(q), at_least_float32(k), visible, **extra)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        causal: bool,
        mask: Tensor | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        """Mix values by attention weights; a subclass may do so by a faster way.

        q (B, H, N, D), k (B, H, M, D), v (B, H, M, any width). causal, mask, bias, errors: as
        `mixing`. Returns (B, H, N, width of v) in the dtype of v, 0 for a query without keys.
        """
        mixing = self.mixing(q, k, causal=causal, mask=mask, bias=bias)
        with without_autocast(q):
            return mixing.to(v.dtype) @ v


class SoftmaxAttention(Attention):
    """Attention whose weights are the softmax of one score for each pair."""

    takes_bias = True

    @abstractmethod
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """What the softmax is taken of: q (B, H, N, D), k (B, H, M, D) -> (B, H, N, M)."""

    def weights(
        self, q: Tensor, k: Tensor, visible: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """See `Attention.weights` and, for bias, `Attention.mixing`."""
        return masked_softmax(self.scores(q, k), visible, bias)


class HeadLinear(nn.Module):
    """A linear layer applied per head: one for all heads (groups = 1) or one each (groups = H).

    weight (groups, outputs, inputs), bias (groups, 1, outputs); initialised as torch's nn.Linear.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(groups, 1, outputs)) if bias else None
        self.reset_parameters()

    def extra_repr(self) -> str:
        """Its sizes, for print."""
        groups, outputs, inputs = self.weight.shape
        return f"groups={groups}, inputs={inputs}, outputs={outputs}, bias={self.bias is not None}"

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(inputs), as nn.Linear."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, N, inputs) -> (B, H, N, outputs)."""
        return head_linear(x, self.weight, self.bias)


def head_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + b for weight (groups, outputs, inputs), bias (groups, 1, outputs). Where x is wider
    than they are, as in a score network of a model cast to 16 bits, they are widened.
    """
    dtype = torch.promote_types(weight.dtype, x.dtype)
    weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
    if len(weight) == 1:  # one matrix product for all heads
        return nn.functional.linear(x, weight[0], None if bias is None else bias[0, 0])
    y = x @ weight.mT
    return y if bias is None else y + bias
