"""Scaled dot-product attention (Vaswani et al., arXiv 1706.03762, eq 1)."""

import torch.nn.functional as F
from torch import Tensor

from attnlab.models.attention.base import Attention


class DotProductAttention(Attention):
    """softmax(Q K^T / sqrt(D)) V, by torch's own fused kernels. No parameters."""

    def __init__(self, options, arch):
        super().__init__()

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """See `Attention.forward`."""
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
