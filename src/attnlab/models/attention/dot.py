"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq 1), with or without
normalised queries and keys.

    softmax(Q K^T / sqrt(D)) V

With qk_norm a query q enters as g_q * q / rms(q), rms(q) = sqrt(mean of q^2 over the head
width), and a key likewise with g_k (as in query-key normalisation, Henry et al., arXiv 2010.04245,
with RMSNorm, arXiv 1910.07467, in the place of L2 norm and learned scale). Without gain (g = 1) a
score is sqrt(D) cos(q, k), so at most sqrt(D).
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.functional import check_bias, visible_keys
from attnlab.models.attention.base import SoftmaxAttention

EPSILON = 1e-6  # added to the mean square, so that a query of zeros stays one


class DotProductAttention(SoftmaxAttention):
    """softmax(Q K^T / sqrt(D)) V; qk_norm: none, rms, or rms_gain with g_q and g_k (D each)
    that are learned, start at 1 and are shared by the heads. No other parameters.
    """

    def __init__(self, heads: int, head_width: int, *, qk_norm: str = "none"):
        super().__init__(heads, head_width)
        self.norm_q = self.norm_k = None
        if qk_norm != "none":
            gain = qk_norm == "rms_gain"
            self.norm_q, self.norm_k = (
                nn.RMSNorm(head_width, EPSILON, elementwise_affine=gain) for _ in range(2)
            )

    def normalized(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys as they enter the product, in float32 or better if they have a norm."""
        if self.norm_q is None:
            return q, k
        dtype = torch.promote_types(q.dtype, torch.float32)
        return self.norm_q(q.to(dtype)), self.norm_k(k.to(dtype))

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """See `SoftmaxAttention.scores`."""
        q, k = self.normalized(q, k)
        return q @ k.mT / math.sqrt(q.shape[-1])

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
        """See `Attention.forward`; by torch's own fused kernels."""
        q, k = self.normalized(q, k)
        return dot_product(q.to(v.dtype), k.to(v.dtype), v, causal, mask, bias)


def dot_product(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    causal: bool,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(Q K^T / sqrt(D) + bias) V by torch's fused kernels; shapes as in
    `Attention.forward`.
    """
    n, m = q.shape[-2], k.shape[-2]
    if bias is None and mask is None and n == m:  # torch aligns its own causal mask top left
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    else:
        seen = visible_keys(q, k, causal, mask)
        if bias is not None:
            check_bias(bias, (*q.shape[:-1], m))
            bias = bias if seen is None else bias.masked_fill(~seen, -math.inf)
            seen = bias.to(q.dtype).expand(*q.shape[:-1], m)
        out = F.scaled_dot_product_attention(q, k, v, seen)
    return out.to(v.dtype)  # autocast makes it one of 16 bits
