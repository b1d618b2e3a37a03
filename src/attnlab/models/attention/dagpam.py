"""daGPAM, dual-attention generalized probabilistic attention (Heo & Choi, arXiv 2410.15578).

    P+ = softmax(Q K^T / sqrt(D)),  P- = softmax(Q- K^T / sqrt(D)),  Q- = ReLU(Q) W^T
    P  = (1 + lambda+) P+ - lambda- P-

Weights may be negative; each row sums to 1 + lambda+ - lambda-. That scores may be negative while
their sum is fixed is in the paper's text; the form above is second-hand (reviews and a
third party's code), as are fixed or trainable lambdas. Their starting value is ours.
"""

import math

import torch
from torch import Tensor, nn

from attnlab.functional import at_least_float32, masked_softmax
from attnlab.models.attention.base import Attention, HeadLinear
from attnlab.models.attention.dot import dot_product


class Lambdas(nn.Module):
    """lambda+ and lambda-: value (2, groups, 1, 1), one pair for all heads or one each."""

    def __init__(self, start: tuple[float, float], groups: int, trainable: bool):
        super().__init__()
        self.start = start
        self.value = nn.Parameter(torch.empty(2, groups, 1, 1), requires_grad=trainable)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The configured values."""
        with torch.no_grad():
            self.value.copy_(self.value.new_tensor(self.start).view(2, 1, 1, 1))


class DualAttention(Attention):
    """daGPAM: P V. All heads of a layer share one W (D x D, no bias). lambda_plus, lambda_minus:
    values at the start, trainable or fixed; per_head: a pair for each head. With both lambdas 0
    its output is that of dot-product attention, bit for bit. A bias of positions is added to the
    scores of both softmaxes.
    """

    takes_bias = True

    def __init__(
        self,
        heads: int,
        head_width: int,
        *,
        lambda_plus: float = 1.0,
        lambda_minus: float = 1.0,
        trainable: bool = True,
        per_head: bool = False,
    ):
        super().__init__(heads, head_width)
        self.negative_query = HeadLinear(1, head_width, head_width, bias=False)
        start = (lambda_plus, lambda_minus)
        self.lambdas = Lambdas(start, heads if per_head else 1, trainable)

    def weights(
        self, q: Tensor, k: Tensor, visible: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """See `Attention.weights` and, for bias, `Attention.mixing`."""
        plus, minus = (
            masked_softmax(x @ k.mT / math.sqrt(q.shape[-1]), visible, bias)
            for x in (q, self.negative_query(q.relu()))
        )
        gain, loss = at_least_float32(self.lambdas.value)  # 1 + gain may be 1 in 16 bits
        return (1 + gain) * plus - loss * minus

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
        """See `Attention.forward`; P V = (1 + lambda+) P+ V - lambda- P- V, each product by
        torch's fused kernels.
        """
        plus, minus = (
            dot_product(x.to(v.dtype), k.to(v.dtype), v, causal, mask, bias)
            for x in (q, self.negative_query(q.relu()))
        )
        gain, loss = at_least_float32(self.lambdas.value)
        return ((1 + gain) * plus - loss * minus).to(v.dtype)
