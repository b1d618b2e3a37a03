"""Neural Attention in plain torch, some queries at a time: memory linear in N, any device and
dtype. Scores are computed one hidden unit at a time, and again in the backward.
"""

import math

import torch
from torch import Tensor

from attnlab.functional import ACTIVATIONS

PAIRS = 2**18  # in a chunk on a CPU, so that its tensors stay in cache
VALUES = 2**27  # of all hidden units of a chunk on a GPU (512 MiB), so that launches are few

HOMOGENEOUS = ("relu", "leaky_relu")  # whose value at u is u times its slope there

aten = torch.ops.aten
BACK = {  # gradient through an activation at u
    "relu": lambda grad, u: aten.threshold_backward(grad, u, 0),
    "gelu": aten.gelu_backward,
    "silu": aten.silu_backward,
    "tanh": lambda grad, u: aten.tanh_backward(grad, u.tanh()),
    "leaky_relu": lambda grad, u: aten.leaky_relu_backward(grad, u, 0.01, False),
}


def forward(a, c, mid_weight, mid_bias, out_weight, v, activation, causal):
    """See `ops`."""
    act = ACTIVATIONS[activation]
    out, lse = v.new_empty(*a.shape[:3], v.shape[3]), a.new_empty(a.shape[:3])
    for rows, keys in _chunks(a, c, mid_weight, causal):
        *_, last = _hidden(a[:, :, rows], c[:, :, :keys], mid_weight, mid_bias, act)
        scores = _hide(_mix(out_weight, map(act, last)), causal)
        largest = scores.amax(-1, keepdim=True)
        weights = scores.sub_(largest).exp_()
        total = weights.sum(-1, keepdim=True)
        lse[:, :, rows] = (largest + total.log()).squeeze(-1)
        # divided first: in fp16 the sum of many values overflows where their mean does not
        out[:, :, rows] = weights.div_(total).to(v.dtype) @ v[:, :, :keys]
    return out, lse


def backward(grad_out, a, c, mid_weight, mid_bias, out_weight, v, out, lse, activation, causal):
    """See `ops`."""
    act, back = ACTIVATIONS[activation], BACK[activation]
    da, dc, d_out = (x.new_zeros(x.shape) for x in (a, c, out_weight))  # contiguous
    dv = v.new_zeros(v.shape, dtype=a.dtype)  # a sum over chunks, which 16 bits would stop
    d_mid = d_bias = None
    if mid_weight is not None:
        d_mid, d_bias = (x.new_zeros(x.shape) for x in (mid_weight, mid_bias))
    delta = (grad_out.to(a.dtype) * out).sum(-1, keepdim=True)
    for rows, keys in _chunks(a, c, mid_weight, causal):
        a_here, c_here = a[:, :, rows], c[:, :, :keys]
        first, *second = _hidden(a_here, c_here, mid_weight, mid_bias, act)
        last = second[0] if second else first
        units = [act(u) for u in last]
        weights = _hide(_mix(out_weight, units), causal).sub_(lse[:, :, rows, None]).exp_()
        upstream = grad_out[:, :, rows].to(v.dtype)
        values = weights.to(v.dtype).flatten(0, 1)
        here = dv.flatten(0, 1)[:, :keys]
        if dv.dtype == v.dtype:
            here.baddbmm_(values.mT, upstream.flatten(0, 1))
        else:
            here += values.mT @ upstream.flatten(0, 1)
        grad = (upstream @ v[:, :, :keys].mT).to(a.dtype)
        grad = grad.sub_(delta[:, :, rows]).mul_(weights)  # of the scores

        # `through` is the gradient behind the last activation without the factor out_weight. For
        # a homogeneous activation the sum of grad * act(u) is that of through * u, and u is linear
        # in what is summed below anyway.
        through = [back(grad, u) for u in last]
        if second:
            sums = torch.stack([y.sum((0, 2, 3)) for y in through], 1)
            products = _products(through, [act(u) for u in first])
            d_bias += out_weight * sums
            d_mid += out_weight[..., None] * products
            linear = (mid_weight * products).sum(-1) + mid_bias * sums
            mixed = (mid_weight * out_weight[..., None]).unbind(2)
            through = [back(_mix(w, through), u) for w, u in zip(mixed, first, strict=True)]
        by_query = torch.stack([u.sum(-1) for u in through], -1)
        by_key = torch.stack([u.sum(-2) for u in through], -1)
        if not second:
            linear = (by_query * a_here).sum((0, 2)) + (by_key * c_here).sum((0, 2))
            by_query, by_key = (x * out_weight[:, None] for x in (by_query, by_key))
        da[:, :, rows] = by_query
        dc[:, :, :keys] += by_key
        d_out += linear if activation in HOMOGENEOUS else _products([grad], units)[:, 0]
    return da, dc, d_mid, d_bias, d_out, dv.to(v.dtype)


def unsupported(a, c, mid_weight, mid_bias, out_weight, v, activation) -> str | None:
    """Why this backend cannot serve: it always can."""
    return None


def _chunks(a: Tensor, c: Tensor, mid_weight: Tensor | None, causal: bool):
    """Rows of queries and how many keys the last of them sees."""
    (batch, heads, n, h), m = a.shape, c.shape[2]
    units = h if mid_weight is None else h + mid_weight.shape[1]
    pairs = VALUES // units if a.is_cuda else PAIRS
    queries = max(1, pairs // (batch * heads * m))
    for start in range(0, n, queries):
        stop = min(start + queries, n)
        yield slice(start, stop), stop + m - n if causal else m


def _hidden(a, c, mid_weight, mid_bias, act) -> list[list[Tensor]]:
    """For each hidden layer its units before the activation, each (B, H, rows, keys)."""
    first = [
        x[..., None] + y[..., None, :] for x, y in zip(a.unbind(-1), c.unbind(-1), strict=True)
    ]
    if mid_weight is None:
        return [first]
    units = [act(u) for u in first]
    second = [_mix(w, units) for w in mid_weight.unbind(1)]
    return [
        first,
        [y.add_(b[:, None, None]) for y, b in zip(second, mid_bias.unbind(1), strict=True)],
    ]


def _mix(weights: Tensor, units) -> Tensor:
    """Sum of weight times unit; weights (H, units), each unit (B, H, rows, keys)."""
    total = None
    for weight, unit in zip(weights[..., None, None].unbind(1), units, strict=True):
        total = unit * weight if total is None else total.addcmul_(unit, weight)
    return total


def _products(left: list[Tensor], right: list[Tensor]) -> Tensor:
    """Sums over batch and pairs of every left times every right unit: (H, left, right)."""
    rows = [torch.stack([(x * y).sum((0, 2, 3)) for y in right], -1) for x in left]
    return torch.stack(rows, 1)


def _hide(scores: Tensor, causal: bool) -> Tensor:
    """-inf, in place, where a key is not visible: the last row of a chunk sees all its keys, so
    only the last keys, as many as there are rows, are hidden from any.
    """
    rows = scores.shape[-2]
    if causal:
        hidden = torch.ones(rows, rows, dtype=torch.bool, device=scores.device).triu_(1)
        scores[..., -rows:].masked_fill_(hidden, -math.inf)
    return scores
