"""Softmax attention by a score network: what Neural Attention and additive attention share."""

from abc import abstractmethod

from torch import Tensor

from attnlab.kernels.api import neural_attention
from attnlab.kernels.validation import Projections, Scorer
from attnlab.models.attention.base import SoftmaxAttention


class FusedAttention(SoftmaxAttention):
    """softmax(scale * A) V, A_ij = network([q_i; k_j]), by the backend that is chosen.

    heads: H; backend: see `kernels.api.neural_attention`.
    """

    scale = 1.0
    project: Projections = None

    def __init__(self, heads: int, head_width: int, backend: str):
        super().__init__(heads, head_width)
        self.heads, self.backend = heads, backend

    @property
    @abstractmethod
    def network(self) -> Scorer:
        """The score network."""

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """See `SoftmaxAttention.scores`: scale * A, by the reference."""
        return self.network(q, k, self.project) * self.scale

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
        """q (B, H, N, D), k (B, H, M, D), v (B, H, M, any width) -> (B, H, N, width of v): see
        `Attention.forward`. Errors: `ValueError` also if q is not (B, heads, N, D).
        """
        if q.dim() != 4 or q.shape[1] != self.heads:
            raise ValueError(f"q must be (B, {self.heads} heads, N, D); got {tuple(q.shape)}")
        return neural_attention(
            q,
            k,
            v,
            self.network,
            project=self.project,
            causal=causal,
            mask=mask,
            bias=bias,
            scale=self.scale,
            backend=self.backend,
        )
