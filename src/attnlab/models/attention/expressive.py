"""Expressive Attention (Gros, arXiv 2407.18601): high for parallel and antiparallel query and key,
low for orthogonal ones.

    z_ij = q_i . k_j / T                               (T = 1: no 1/sqrt(D))
    rational:        w_ij = z^2 / (1 + z^2), divided by its sum over the visible keys
    softmax_square:  w_ij = softmax over j of z^2

The abstract speaks of the squared dot product, which read literally is the second form; the first
is second-hand (a third party's code) and the default. No parameters.

The temperature T is ours, fixed or learned. z^2 / (1 + z^2) is 1/2 at |q.k| = T. Where all
products of a row are far larger, every key has nearly the same weight; where all are far smaller,
a weight is proportional to z^2.
"""

import math

import torch
from torch import Tensor, nn

from attnlab.functional import at_least_float32, masked_softmax
from attnlab.models.attention.base import Attention

FLOOR = 1e-30  # added to every weight before the division: a row of zeros becomes uniform


class Temperature(nn.Module):
    """log T of every head: log_value (H, 1, 1)."""

    def __init__(self, heads: int, start: float):
        super().__init__()
        self.start = start
        self.log_value = nn.Parameter(torch.empty(heads, 1, 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The configured temperature."""
        nn.init.constant_(self.log_value, math.log(self.start))


class ExpressiveAttention(Attention):
    """w V; form: rational or softmax_square; temperature: T, the same for all heads, or the value
    from which T of each head starts if learn_temperature.

    q and -q attend alike. A query orthogonal to all its keys (all z are 0) attends uniformly, in
    either form.
    """

    def __init__(
        self,
        heads: int,
        head_width: int,
        *,
        form: str = "rational",
        temperature: float = 1.0,
        learn_temperature: bool = False,
    ):
        super().__init__(heads, head_width)
        self.form, self.fixed_temperature = form, temperature
        self.temperature = Temperature(heads, temperature) if learn_temperature else None

    @property
    def takes_bias(self) -> bool:
        """Only the softmax has scores that a bias can be added to."""
        return self.form == "softmax_square"

    def weights(
        self, q: Tensor, k: Tensor, visible: Tensor | None, bias: Tensor | None = None
    ) -> Tensor:
        """See `Attention.weights` and, for bias, `Attention.mixing`."""
        z = at_least_float32(q @ k.mT)
        if self.temperature is None:
            z = z / self.fixed_temperature
        else:
            z = z * at_least_float32(self.temperature.log_value).neg().exp()
        square = z.square()
        if self.form == "softmax_square":
            return masked_softmax(square, visible, bias)
        weights = square / (1 + square) + FLOOR
        if visible is not None:
            weights = weights.masked_fill(~visible, 0)
        return weights / weights.sum(-1, keepdim=True).clamp(min=FLOOR)
