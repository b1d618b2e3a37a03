"""Expressive Attention (Gros, arXiv 2407.18601): high for parallel and antiparallel query and key,
low for orthogonal ones.

    z_ij = q_i . k_j                                   (no 1/sqrt(D))
    rational:        w_ij = z^2 / (1 + z^2), divided by its sum over the visible keys
    softmax_square:  w_ij = softmax over j of z^2

The abstract speaks of the squared dot product, which read literally is the second form; the first
is second-hand (a third party's code) and the default. No parameters.
"""

from torch import Tensor

from attnlab.functional import at_least_float32, masked_softmax
from attnlab.models.attention.base import Attention

FLOOR = 1e-30  # added to every weight before the division: a row of zeros becomes uniform


class ExpressiveAttention(Attention):
    """w V; form: rational or softmax_square.

    q and -q attend alike. A query orthogonal to all its keys (all z are 0) attends uniformly, in
    either form.
    """

    def __init__(self, heads: int, head_width: int, *, form: str = "rational"):
        super().__init__(heads, head_width)
        self.form = form

    def weights(self, q: Tensor, k: Tensor, visible: Tensor | None) -> Tensor:
        """See `Attention.weights`."""
        square = at_least_float32(q @ k.mT).square()
        if self.form == "softmax_square":
            return masked_softmax(square, visible)
        weights = square / (1 + square) + FLOOR
        if visible is not None:
            weights = weights.masked_fill(~visible, 0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=FLOOR)
