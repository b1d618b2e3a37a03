"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq 1)."""

import math

import torch.nn.functional as F
from torch import Tensor

from attnlab.masking import causal_mask, masked_softmax
from attnlab.models.attention.base import Attention


class DotProductAttention(Attention):
    """softmax(Q K^T / sqrt(D)) V. No parameters."""

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """See `Attention.weights`."""
        return masked_softmax(q @ k.mT / math.sqrt(q.shape[-1]), visible)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """See `Attention.forward`; by torch's own fused kernels."""
        return dot_product(q, k, v, causal)


def dot_product(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """softmax(Q K^T / sqrt(D)) V by torch's fused kernels; shapes as in `Attention.forward`."""
    n, m = q.shape[-2], k.shape[-2]
    mask = causal_mask(n, m, q.device) if causal and n != m else None  # torch aligns it top left
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal and n == m)
