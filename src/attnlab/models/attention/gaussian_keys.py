"""Mixture of Gaussian keys (Nguyen et al., arXiv 2110.08678; second-hand).

    a_ij ~ sum_r pi_r exp(-||q_i - k_jr||^2 / (2 sqrt(D))),  r = 1, 2
    k_jr = k_j + b_r

Of the paper's two ways to make the keys, projections of their own or shifted copies of one, this
is the second (its Transformer-sMGK): it needs nothing but the keys that every arm has.
"""

import math

import torch
from torch import Tensor, nn

from attnlab.models.attention.base import SoftmaxAttention

COMPONENTS = 2


class KeyMixture(nn.Module):
    """pi and b of every head: logit (R, H, 1), log pi up to a constant; shift (R, H, 1, D)."""

    def __init__(self, heads: int, head_width: int):
        super().__init__()
        self.logit = nn.Parameter(torch.empty(COMPONENTS, heads, 1))
        self.shift = nn.Parameter(torch.empty(COMPONENTS, heads, 1, head_width))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Equal pi; shifts as the biases of a linear layer, or the components would stay alike."""
        nn.init.zeros_(self.logit)
        bound = 1 / math.sqrt(self.shift.shape[-1])
        nn.init.uniform_(self.shift, -bound, bound)


class GaussianKeysAttention(SoftmaxAttention):
    """softmax over j of log a_ij. -||q||^2 is the same for all keys of a row and left out."""

    def __init__(self, heads: int, head_width: int):
        super().__init__(heads, head_width)
        self.mixture = KeyMixture(heads, head_width)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """See `SoftmaxAttention.scores`."""
        log_pi = self.mixture.logit.log_softmax(0)
        scores = None
        for log_share, shift in zip(log_pi, self.mixture.shift, strict=True):
            key = k + shift
            near = q @ key.mT - key.square().sum(-1).unsqueeze(-2) / 2
            part = log_share.unsqueeze(-1) + near / math.sqrt(q.shape[-1])
            scores = part if scores is None else torch.logaddexp(scores, part)
        return scores
