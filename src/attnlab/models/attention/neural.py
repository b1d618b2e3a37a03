"""Neural Attention (arXiv 2502.17206, eqs 5-10): a small network scores every query-key pair.

    Q' = Q W_q,  K' = K W_k                      (eqs 5, 6; skipped without projection)
    A_ij = w_a^T sigma(W_h [Q'_i; K'_j] + b_h) + b_a    (eqs 7-9)
    softmax(A / sqrt(D)) V                       (eq 10)

W_h [Q'_i; K'_j] = W_hq Q'_i + W_hk K'_j exactly, so the first layer is computed once per token
and summed per pair; the N x N x 2P tensor of eq 7 never exists. `ScoreNetwork.forward` is the
reference that the fast paths in attnlab.kernels are checked against.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from numbers import Integral

from torch import Tensor, nn

from attnlab.errors import BadInput
from attnlab.functional import ACTIVATIONS, at_least_float32, without_autocast
from attnlab.kernels.validation import Projections
from attnlab.models.attention.base import HeadLinear, head_linear
from attnlab.models.attention.fused import FusedAttention


class ScoreNetwork(nn.ModuleList):
    """The network of eqs 7-9 on every pair: widths [2P, hidden..., 1], one for all heads
    (groups = 1) or one each (groups = H).
    """

    def __init__(self, groups: int, widths: list[int], activation: str):
        super().__init__(HeadLinear(groups, i, o) for i, o in pairwise(widths))
        if activation not in ACTIVATIONS:
            raise BadInput(f"activation={activation}: must be one of {', '.join(ACTIVATIONS)}")
        self.activation = activation

    def forward(self, q: Tensor, k: Tensor, project: Projections = None) -> Tensor:
        """Unscaled scores A (eqs 5-9): q (B, H, N, D), k (B, H, M, D) -> (B, H, N, M), in float32
        or better but for what autocast says. project: W_q and W_k, or None if D is P.
        """
        q, k = at_least_float32(q), at_least_float32(k)
        if project:
            q, k = project[0](q), project[1](k)
        first, *rest = self
        w_q, w_k = first.weight.chunk(2, dim=-1)  # W_h = [W_hq, W_hk]
        a, c = head_linear(q, w_q, first.bias), head_linear(k, w_k)
        y = a.unsqueeze(-2) + c.unsqueeze(-3)  # (B, H, N, M, h)
        for layer in rest:
            y = ACTIVATIONS[self.activation](y)
            y = layer(y.flatten(2, 3)).unflatten(2, y.shape[2:4])
        return y.squeeze(-1)

    @property
    def takes(self) -> tuple[int, int]:
        """How many heads it has parameters for (1: for any number), and the width P that it reads
        of a query or key.
        """
        groups, _, both = self[0].weight.shape
        return groups, both // 2

    @property
    def unfusable(self) -> str | None:
        """Why the fused kernels do not take this network, in one line, or None."""
        if len(self) > 3:
            return f"{len(self) - 1} hidden layers: fused kernels take one or two"
        return None

    def tables(
        self, q: Tensor, k: Tensor, scale: float, project: Projections = None
    ) -> tuple[Tensor | None, ...]:
        """What fused kernels start from, in float32 or float64 whatever autocast says: a, c,
        mid_weight, mid_bias, out_weight as in `attnlab.kernels.ops`.

        q, k (B, H, N or M, D); a projection W_q and the first layer are one matrix, W_hq W_q.
        """
        q, k, heads = at_least_float32(q), at_least_float32(k), q.shape[1]
        with without_autocast(q):
            (first, b_q), *rest = ((x.weight.to(q.dtype), x.bias.to(q.dtype)) for x in self)
            (w_q, w_k), b_k = first.chunk(2, dim=-1), None
            if project:
                p_q, p_k = (x.weight.to(q.dtype) for x in project)
                if project[0].bias is not None:
                    b_q = b_q + project[0].bias.to(q.dtype) @ w_q.mT
                    b_k = project[1].bias.to(q.dtype) @ w_k.mT
                w_q, w_k = w_q @ p_q, w_k @ p_k
            a, c = head_linear(q, w_q, b_q), head_linear(k, w_k, b_k)
            mid_weight = mid_bias = None
            *middle, (last_weight, last_bias) = rest
            if middle:
                ((mid_weight, mid_bias),) = middle
                mid_weight = mid_weight.expand(heads, -1, -1)
                mid_bias = mid_bias.squeeze(1).expand(heads, -1)
            # The last bias drops out of the softmax: 0 * b gives it its gradient, exactly 0.
            last = last_weight.squeeze(1) * scale + 0 * last_bias.squeeze(1)
            return a, c, mid_weight, mid_bias, last.expand(heads, -1)


class NeuralAttention(FusedAttention):
    """Neural Attention with any number of hidden layers in the score network.

    heads: H; head_width: D; d_prime: P, width of projected queries and keys, None for no
    projection; hidden: widths of the hidden layers, None for [2 P]; activation: relu, gelu, silu,
    tanh or leaky_relu; score_scale: divide scores by sqrt(D); per_head: projections and a network
    for each head instead of one for all; projection_bias: W_q and W_k with a bias; backend: see
    `kernels.api.neural_attention`. Errors: `BadInput` for a size that is no whole number from 1
    on, an unknown activation, or projection_bias without projection; in a call for the backend.
    """

    def __init__(
        self,
        heads: int,
        head_width: int,
        *,
        d_prime: int | None = 2,
        hidden: Sequence[int] | None = None,
        activation: str = "relu",
        score_scale: bool = True,
        per_head: bool = False,
        projection_bias: bool = False,
        backend: str = "auto",
    ):
        super().__init__(heads, head_width, backend)
        if hidden is not None and not (isinstance(hidden, Sequence) and hidden):
            raise BadInput(f"hidden={hidden}: must be a list of widths")
        if projection_bias and d_prime is None:
            raise BadInput("projection_bias=true: d_prime=null has no projection")
        sizes = [
            ("heads", heads),
            ("head_width", head_width),
            *(("hidden", h) for h in hidden or ()),
        ]
        for name, size in sizes + [("d_prime", d_prime)] * (d_prime is not None):
            if not isinstance(size, Integral) or size < 1:
                raise BadInput(f"{name}={size}: must be a whole number from 1 on")
        groups = heads if per_head else 1
        width = head_width if d_prime is None else d_prime
        if d_prime is not None:
            self.project_q = HeadLinear(groups, head_width, width, projection_bias)
            self.project_k = HeadLinear(groups, head_width, width, projection_bias)
        self.projected = d_prime is not None
        self.score_network = ScoreNetwork(
            groups, [2 * width, *(hidden or [2 * width]), 1], activation
        )
        self.scale = 1 / math.sqrt(head_width) if score_scale else 1.0

    @property
    def project(self) -> Projections:
        """W_q and W_k of eqs 5, 6, or None without projection."""
        return (self.project_q, self.project_k) if self.projected else None

    @property
    def network(self) -> ScoreNetwork:
        """The network of eqs 7-9."""
        return self.score_network
