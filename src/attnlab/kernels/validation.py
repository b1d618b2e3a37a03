"""What every backend relies on. The C++ and Triton kernels read memory by sizes alone, so a tensor
of another size would be read beyond its end.

Only sizes, dtypes and devices are looked at: nothing waits for a device, and torch.compile traces
through. Shapes: B batch, H heads, N queries, M keys, D head width (that of v may differ), h and h2
widths of the hidden layers. Every function raises `ValueError`: what, what it got and what was
expected.
"""

from typing import Protocol

import torch
from torch import Tensor, nn

Projections = tuple[nn.Module, nn.Module] | None


class Scorer(Protocol):
    """What the backends need of a score network, as `models.attention.neural.ScoreNetwork` has it:
    its scores, the tables that fused kernels start from, and why these do not take it.
    """

    activation: str

    @property
    def takes(self) -> tuple[int, int]: ...

    @property
    def unfusable(self) -> str | None: ...

    def __call__(self, q: Tensor, k: Tensor, project: Projections = None) -> Tensor: ...

    def tables(
        self, q: Tensor, k: Tensor, scale: float, project: Projections = None
    ) -> tuple[Tensor | None, ...]: ...


SHARED = {0: "batch size", 1: "number of heads"}


def check_inputs(
    q: Tensor, k: Tensor, v: Tensor, score_network: Scorer, project: Projections, causal: bool
) -> None:
    """The arguments of `attnlab.neural_attention`.

    q, k and v have the same heads, none is broadcast; score_network and project may have one set
    of parameters for all heads. v may have a dtype of its own, as under autocast.
    """
    for name, x in ("q", q), ("k", k), ("v", v):
        _check_tokens(name, x, "(B, H, N, D)" if name == "q" else "(B, H, M, D)")
        if x.device != q.device:
            raise ValueError(
                f"q, k and v must be on one device; got q={q.device}, {name}={x.device}"
            )
        for dim, what in SHARED.items():
            if x.shape[dim] != q.shape[dim]:
                raise ValueError(
                    f"q, k and v must have the same {what}, nothing is broadcast; "
                    f"got q={q.shape[dim]}, {name}={x.shape[dim]}"
                )
    if k.dtype != q.dtype:
        raise ValueError(f"q and k must have the same dtype; got q={q.dtype}, k={k.dtype}")
    if v.shape[2] != k.shape[2]:
        raise ValueError(
            f"k and v must have the same number of tokens; got k={k.shape[2]}, v={v.shape[2]}"
        )
    if k.shape[3] != q.shape[3]:
        raise ValueError(
            f"q and k must have the same head width; got q={q.shape[3]}, k={k.shape[3]}"
        )
    _check_order(q.shape[2], k.shape[2], causal)
    groups, width = score_network.takes
    _check_reader("the score network", groups, width if not project else None, q)
    for layer in project or ():
        groups, outputs, inputs = layer.weight.shape
        _check_reader("a projection", groups, inputs, q)
        if outputs != width:
            raise ValueError(
                "a projection must have as many outputs as the score network reads; "
                f"got {outputs}, expected {width}"
            )


def check_operands(
    a: Tensor,
    c: Tensor,
    mid_weight: Tensor | None,
    mid_bias: Tensor | None,
    out_weight: Tensor,
    v: Tensor,
    causal: bool,
) -> None:
    """The tensors of `attnlab.kernels.ops.fused_attention`; all but v have the dtype of a."""
    _check_tokens("a", a, "(B, H, N, h)")
    _check_tokens("c", c, "(B, H, M, h)")
    _check_tokens("v", v, "(B, H, M, D)")
    (batch, heads, n, h), m = a.shape, c.shape[2]
    _check_order(n, m, causal)
    _check("c", c, "(B, H, M, h)", (batch, heads, m, h), a)
    _check("v", v, "(B, H, M, D)", (batch, heads, m, v.shape[3]), a, v.dtype)
    if mid_weight is None and mid_bias is None:
        _check("out_weight", out_weight, "(H, h)", (heads, h), a)
    elif mid_weight is None or mid_bias is None:
        raise ValueError("mid_weight and mid_bias must both be given, or neither; got one of them")
    else:
        h2 = out_weight.shape[-1]
        _check("out_weight", out_weight, "(H, h2)", (heads, h2), a)
        _check("mid_weight", mid_weight, "(H, h2, h)", (heads, h2, h), a)
        _check("mid_bias", mid_bias, "(H, h2)", (heads, h2), a)


def check_gradient(grad_out: Tensor, a: Tensor, v: Tensor, out: Tensor, lse: Tensor) -> None:
    """What the backward gets beside the operands."""
    shape = (*a.shape[:3], v.shape[3])
    _check("grad_out", grad_out, "(B, H, N, D)", shape, a, grad_out.dtype)
    _check("out", out, "(B, H, N, D)", shape, a, v.dtype)
    _check("lse", lse, "(B, H, N)", tuple(a.shape[:3]), a)


def _check_tokens(name: str, x: Tensor, legend: str) -> None:
    if x.dim() != 4 or 0 in x.shape:
        raise ValueError(f"{name} must be {legend}, none of them 0; got {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"{name} must be a tensor of floating point numbers; got {x.dtype}")


def _check_order(queries: int, keys: int, causal: bool) -> None:
    if causal and keys < queries:
        raise ValueError(
            "causal attention needs at least as many keys as queries; "
            f"got {queries} queries, {keys} keys"
        )


def _check_reader(name: str, groups: int, width: int | None, q: Tensor) -> None:
    """Parameters for `groups` heads that read queries and keys of this width, None for any."""
    if groups not in (1, q.shape[1]):
        raise ValueError(
            f"{name} must have parameters for one head (shared by all) or for all of q's; "
            f"got {groups}, expected 1 or {q.shape[1]}"
        )
    if width not in (None, q.shape[3]):
        raise ValueError(
            f"q and k must have the width that {name} reads; got {q.shape[3]}, expected {width}"
        )


def _check(
    name: str,
    x: Tensor,
    legend: str,
    shape: tuple,
    a: Tensor,
    dtype: torch.dtype | None = None,
) -> None:
    """x has this shape, the device of a, and the dtype given or that of a."""
    if tuple(x.shape) != shape:
        raise ValueError(f"{name} must be {legend} = {shape}; got {tuple(x.shape)}")
    if x.device != a.device:
        raise ValueError(f"{name} must be on the device of a, {a.device}; got {x.device}")
    if x.dtype != (dtype or a.dtype):
        raise ValueError(f"{name} must be {dtype or a.dtype}; got {x.dtype}")
