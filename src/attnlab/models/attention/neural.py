"""Neural Attention (arXiv 2502.17206, eqs 5-10): a small network scores every query-key pair.

    Q' = Q W_q,  K' = K W_k                      (eqs 5, 6; skipped without projection)
    A_ij = w_a^T sigma(W_h [Q'_i; K'_j] + b_h) + b_a    (eqs 7-9)
    softmax(A / sqrt(D)) V                       (eq 10)

W_h [Q'_i; K'_j] = W_hq Q'_i + W_hk K'_j exactly, so the first layer is computed once per token
and summed per pair; the N x N x 2P tensor of eq 7 never exists. This file is the reference that
fast paths are checked against.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from attnlab.models.attention.base import Attention, visible

ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
    "tanh": torch.tanh,
    "leaky_relu": nn.functional.leaky_relu,
}


class HeadLinear(nn.Module):
    """A linear layer applied per head: one for all heads (groups = 1) or one each (groups = H).

    weight (groups, outputs, inputs), bias (groups, 1, outputs); initialised as torch's nn.Linear.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, bias: bool = True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(groups, outputs, inputs))
        self.bias = nn.Parameter(torch.empty(groups, 1, outputs)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform within 1 / sqrt(inputs), as nn.Linear."""
        bound = 1 / math.sqrt(self.weight.shape[-1])
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, N, inputs) -> (B, H, N, outputs)."""
        if len(self.weight) == 1:  # one matrix product for all heads
            bias = None if self.bias is None else self.bias[0, 0]
            return nn.functional.linear(x, self.weight[0], bias)
        y = x @ self.weight.mT
        return y if self.bias is None else y + self.bias


class NeuralAttention(Attention):
    """Neural Attention with any number of hidden layers in the score network.

    options: the `Neural` section of the configuration; arch: the body, for head count and width.
    """

    def __init__(self, options, arch):
        super().__init__()
        groups = arch.heads if options.per_head else 1
        head_width = arch.head_width
        width = options.d_prime or head_width
        self.project_q = self.project_k = None
        if options.d_prime:
            self.project_q = HeadLinear(groups, head_width, width, options.projection_bias)
            self.project_k = HeadLinear(groups, head_width, width, options.projection_bias)
        sizes = [2 * width, *options.hidden, 1]
        self.score_network = nn.ModuleList(HeadLinear(groups, i, o) for i, o in pairwise(sizes))
        self.activation = ACTIVATIONS[options.activation]
        self.scale = 1 / math.sqrt(head_width) if options.score_scale else 1.0

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Unscaled scores A (eqs 5-9): q, k (B, H, N, D) -> (B, H, N, N)."""
        if self.project_q is not None:
            q, k = self.project_q(q), self.project_k(k)
        first, *rest = self.score_network
        w_q, w_k = first.weight.chunk(2, dim=-1)  # W_h = [W_hq, W_hk]
        a = q @ w_q.mT + first.bias  # (B, H, N, h)
        c = k @ w_k.mT
        y = a.unsqueeze(-2) + c.unsqueeze(-3)  # (B, H, N, N, h)
        for layer in rest:
            y = self.activation(y)
            y = layer(y.flatten(2, 3)).unflatten(2, y.shape[2:4])
        return y.squeeze(-1)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """See `Attention.forward`."""
        scores = self.scores(q, k) * self.scale
        if causal:
            scores = scores.masked_fill(~visible(q.shape[-2], q.device), -math.inf)
        return scores.softmax(-1).to(v.dtype) @ v
