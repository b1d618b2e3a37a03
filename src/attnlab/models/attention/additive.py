"""Additive attention (Bahdanau et al., arXiv 1409.0473).

    e_ij = w_v^T tanh(W_q q_i + W_k k_j),   softmax over j of e_ij     (no scale, no biases)

It is Neural Attention (arXiv 2502.17206) without projection, with one hidden layer of tanh and
without scale, weight for weight, so the same fused kernels serve.
"""

import torch
from torch import Tensor, nn

from attnlab.errors import BadInput
from attnlab.functional import at_least_float32, without_autocast
from attnlab.models.attention.base import HeadLinear
from attnlab.models.attention.fused import FusedAttention


class AdditiveScore(nn.Module):
    """e_ij, one network for all heads (groups = 1) or one each (groups = H)."""

    activation = "tanh"
    unfusable = None

    def __init__(self, groups: int, head_width: int, hidden: int):
        super().__init__()
        self.query = HeadLinear(groups, head_width, hidden, bias=False)
        self.key = HeadLinear(groups, head_width, hidden, bias=False)
        self.value = HeadLinear(groups, hidden, 1, bias=False)

    @property
    def takes(self) -> tuple[int, int]:
        """Heads and width: see `ScoreNetwork.takes`."""
        groups, _, width = self.query.weight.shape
        return groups, width

    def forward(self, q: Tensor, k: Tensor, project: None = None) -> Tensor:
        """q (B, H, N, D), k (B, H, M, D) -> (B, H, N, M), as `ScoreNetwork.forward`."""
        q, k = at_least_float32(q), at_least_float32(k)
        y = torch.tanh(self.query(q).unsqueeze(-2) + self.key(k).unsqueeze(-3))
        return self.value(y.flatten(2, 3)).unflatten(2, y.shape[2:4]).squeeze(-1)

    def tables(self, q: Tensor, k: Tensor, scale: float, project: None) -> tuple:
        """What fused kernels start from: see `ScoreNetwork.tables`."""
        q, k = at_least_float32(q), at_least_float32(k)
        with without_autocast(q):
            last = self.value.weight.to(q.dtype).squeeze(1) * scale
            return self.query(q), self.key(k), None, None, last.expand(q.shape[1], -1)


class AdditiveAttention(FusedAttention):
    """hidden: width of the hidden layer, None for the head width; per_head: a network for each
    head; backend: as for Neural Attention. Errors: `BadInput` for a width below 1.
    """

    def __init__(
        self,
        heads: int,
        head_width: int,
        *,
        hidden: int | None = None,
        per_head: bool = False,
        backend: str = "auto",
    ):
        super().__init__(heads, head_width, backend)
        if hidden is not None and hidden < 1:
            raise BadInput(f"hidden={hidden}: must be a whole number from 1 on")
        groups = heads if per_head else 1
        self.score = AdditiveScore(groups, head_width, head_width if hidden is None else hidden)

    @property
    def network(self) -> AdditiveScore:
        """e_ij."""
        return self.score
