"""Identity attention: every query attends to itself alone. A control without parameters.

    a_ij = 1 where j = i + M - N, else 0

A layer of it mixes no tokens: what is left of the layer is a linear map of each token.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.models.attention.base import Attention


class IdentityAttention(Attention):
    """The value of the query's own token. A query that does not see itself gets nothing."""

    fixed = True

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """See `Attention.weights`."""
        n, m = q.shape[-2], k.shape[-2]
        dtype = torch.promote_types(q.dtype, torch.float32)
        itself = torch.ones(n, m, dtype=dtype, device=q.device).tril(m - n).triu(m - n)
        if visible is not None:
            itself = itself * visible
        return itself.expand(*q.shape[:-1], m)

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
        """See `Attention.forward`; the last N values, with zeros in front if there are fewer."""
        if mask is not None or bias is not None:
            return super().forward(q, k, v, causal=causal, mask=mask, bias=bias)
        return F.pad(v, (0, 0, q.shape[-2] - v.shape[-2], 0))
