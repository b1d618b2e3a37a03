"""Key padding for the fused backends, without a kernel that knows of masks: one more hidden unit.

The unit is act(c_j) with c_j = 32 for a hidden key and 0 for a visible one. Every activation is 0
at 0, so a visible key's score does not change; a hidden key's score gets -10^9 times act(32) or
act(act(32)), and its weight is exactly 0. A query that sees no key at all would have a softmax of
such scores, which float32 cannot tell apart: its own part is a_i = -32, so that its scores are
ordinary ones, and its output is set to 0.

Shapes: see `attnlab.kernels.ops`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

# Where tanh is 1, and gelu, silu and relu are the identity. A power of two, so that its product
# with any weight is exact: what is rounded, a fused multiply-add leaves as a blind query's score.
ON = 32.0
DEPTH = -1e9


def key_padding(mask: Tensor, keys: int) -> Tensor | None:
    """mask as (B or 1, H or 1, M) if it is the same for all queries, else None."""
    mask = mask.expand(torch.broadcast_shapes(mask.shape, (1, 1, 1, keys)))
    return mask.squeeze(2) if mask.shape[2] == 1 else None


def blind_queries(visible: Tensor, queries: int, causal: bool) -> Tensor:
    """(B or 1, H or 1, N, 1): True where a query sees none of the keys, visible (.., .., M)."""
    if causal:
        seen = visible.cumsum(-1)[..., visible.shape[-1] - queries :]
    else:
        seen = visible.sum(-1, keepdim=True).expand(*visible.shape[:-1], queries)
    return (seen == 0).unsqueeze(-1)


def with_padding(arguments: tuple, visible: Tensor, blind: Tensor) -> tuple[Tensor | None, ...]:
    """a, c, mid_weight, mid_bias, out_weight with the unit that hides keys."""
    a, c, mid_weight, mid_bias, out_weight = arguments
    a = torch.cat((a, _unit(a, -ON * blind)), -1)
    c = torch.cat((c, _unit(c, ON * ~visible.unsqueeze(-1))), -1)
    if mid_weight is not None:
        mid_weight, mid_bias = F.pad(mid_weight, (0, 1, 0, 1)), F.pad(mid_bias, (0, 1))
        through = torch.zeros_like(mid_weight[0])
        through[-1, -1] = 1
        mid_weight = mid_weight + through
    return a, c, mid_weight, mid_bias, F.pad(out_weight, (0, 1), value=DEPTH)


def _unit(table: Tensor, values: Tensor) -> Tensor:
    """values as one more column of a table (B, H, tokens, h)."""
    return values.to(table.dtype).expand(*table.shape[:-1], 1)
