"""Uniform attention: every visible key has the same weight. A control without parameters.

    a_ij = 1 / (number of keys that query i sees)

With ALiBi the scores are its bias alone, so near keys weigh more.

What another mechanism gains over it is due to scores; what it gains itself over the dot product is
not.
"""

import torch
from torch import Tensor

from attnlab.models.attention.base import SoftmaxAttention


class UniformAttention(SoftmaxAttention):
    """The mean of the visible values: the softmax of scores that are all 0."""

    fixed = True

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """See `SoftmaxAttention.scores`."""
        return q.new_zeros(*q.shape[:-1], k.shape[-2])

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
        """See `Attention.forward`; by a running mean, so that nothing N x M exists."""
        keys = k.shape[-2]
        blind = keys == 0 or (causal and keys < q.shape[-2])  # the first queries see no key
        if mask is not None or bias is not None or blind:
            out = super().forward(q, k, v, causal=causal, mask=mask, bias=bias)
        else:
            out = self._mean(q, k, v, causal)
        # Weights that make queries only, as in cross-attention, get a gradient, of 0: several
        # processes wait for one of every parameter. The sum of no queries is 0, whatever they are.
        return out + q[..., :0, :].sum().to(out.dtype)

    def _mean(self, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
        n, m = q.shape[-2], k.shape[-2]
        values = v.to(torch.promote_types(v.dtype, torch.float32))  # a sum of many terms
        if not causal:
            return values.mean(-2, keepdim=True).to(v.dtype).expand(*v.shape[:-2], n, -1)
        seen = torch.arange(1 + m - n, 1 + m, device=v.device).unsqueeze(-1)
        return (values.cumsum(-2)[..., m - n :, :] / seen).to(v.dtype)
