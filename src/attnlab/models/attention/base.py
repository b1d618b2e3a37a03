"""What every attention mechanism is: per-head queries, keys and values in, mixed values out.

Shapes here and in the mechanisms: B batch, H heads, N tokens, D head width, P = d' projected
width.
"""

from torch import Tensor, nn


class Attention(nn.Module):
    """The part in which the arms of a comparison differ; projections to Q, K, V and back belong
    to the block.
    """

    def forward(self, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
        """Mix values by attention weights.

        q, k, v: (B, H, N, D). causal: query i sees keys 0 to i only. Returns (B, H, N, D).
        """
        raise TypeError(f"{type(self).__name__} does not define forward")
