"""Cog attention (arXiv 2411.07176; second-hand): attention weights that keep the score's sign.

    p_ij = q_i . k_j / sqrt(D),   a_ij = sign(p_ij) softmax over j of |p_ij|

The absolute weights of a row sum to 1, the weights to anything from -1 to 1. The paper keeps
softmax attention in the first and last layer: model.layers=inner.
"""

import math

from torch import Tensor

from attnlab.functional import masked_softmax
from attnlab.models.attention.base import Attention


class CogAttention(Attention):
    """a V. No parameters. A score of exactly 0 has weight 0: all-zero scores attend to nothing."""

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """See `Attention.weights`."""
        p = q @ k.mT / math.sqrt(q.shape[-1])
        return p.sign() * masked_softmax(p.abs(), visible)
