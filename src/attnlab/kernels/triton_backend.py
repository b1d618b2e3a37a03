"""Neural Attention on CUDA: what to launch, and what torch does before and after the kernels of
triton_kernels.py.
"""

import functools
import math
from dataclasses import replace

import torch
from torch import Tensor

from attnlab.errors import first_line
from attnlab.functional import constant_in_graphs
from attnlab.kernels.triton_kernels import (
    backward_cols_kernel,
    backward_rows_kernel,
    forward_kernel,
)
from attnlab.kernels.triton_scorer import INTERPRETED, Case, triton
from attnlab.runtime.signals import keeping_children

MAX_WIDTHS = {"h": 256, "h2": 256, "D": 128}
LN2 = math.log(2)

KERNELS = {
    "forward": forward_kernel,
    "rows": backward_rows_kernel,
    "cols": backward_cols_kernel,
}


def tiles(kernel: str, case: Case) -> dict:
    """Tile and launch options: in 16 bits no spilled registers, or some bytes, by the table that
    scripts/compile_triton.py prints, and among those the fewest instructions per pair.
    """
    if not case.half:  # products without tensor cores keep much more in registers
        rows, cols, warps = 32, 32, 8
    elif kernel == "forward" and case.act != "relu":
        rows, cols, warps = 32 if case.act == "gelu" and case.d > 64 else 64, 32, 4
    elif case.act == "gelu":  # erf and exp of every pair
        rows, cols, warps = (64, 32, 4) if kernel == "rows" else (32, 64, 8)
    elif kernel == "forward":
        rows, cols, warps = (128, 64, 8) if case.d > 64 else (128 if case.h2 == 1 else 64, 64, 4)
    elif kernel == "rows":
        rows, cols, warps = 64, 64, 4
    elif case.d > 64:
        rows, cols, warps = 128, 32, 8
    else:
        rows, cols, warps = 64, 64 if case.h > 4 and case.h2 == 1 else 32, 4
    return {"rows": rows, "cols": cols, "num_warps": warps, "num_stages": 2}


def unsupported(a, c, mid_weight, mid_bias, out_weight, v, activation: str) -> str | None:
    """Why these kernels cannot serve, in one line, or None. Shapes: see `ops`."""
    if triton is None:
        return "triton is not installed"
    if torch.version.hip:  # where torch calls the device "cuda" too
        return "ROCm: the kernels hold instructions of NVIDIA GPUs"
    if v.device.type != "cuda" and not INTERPRETED:
        return f"device {v.device.type}: triton needs cuda"
    if v.device.type == "cuda" and torch.cuda.get_device_capability(v.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if v.device.type == "cuda" and (problem := driver_problem()):
        return problem
    if v.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        return f"dtype {v.dtype} of v: must be float32, float16 or bfloat16"
    if v.dtype == torch.bfloat16 and INTERPRETED:
        return "dtype bfloat16: wrong in triton's interpreter"
    weights = [out_weight] if mid_weight is None else [mid_weight, out_weight]
    if {t.dtype for t in (a, c, *weights)} != {torch.float32}:
        return "the tables and weights of the score network must be float32"
    for name, size in ("h", a.shape[-1]), ("h2", out_weight.shape[-1]), ("D", v.shape[-1]):
        if size > MAX_WIDTHS[name]:
            return f"{name}={size}: at most {MAX_WIDTHS[name]}"
    return None


@constant_in_graphs
def driver_problem() -> str | None:
    """`_start_driver`, as a constant to torch.compile."""
    return _start_driver()


@functools.cache
def _start_driver() -> str | None:
    """Start Triton, for which it compiles a small library; why that failed, in one line, or
    None.
    """
    try:
        triton.runtime.driver.active.get_current_target()
    except Exception as error:  # no compiler, no Python.h, a cache that cannot be written
        return f"triton cannot start: {first_line(error)}"
    return None


def _network(mid_weight, mid_bias, out_weight) -> tuple[Tensor, Tensor, Tensor]:
    """W (H, h2, h), b (H, h2), w (H, h2) as the kernels take them, for scores in units of ln 2."""
    scaled = out_weight.contiguous() / LN2
    if mid_weight is None:
        weight = scaled.unsqueeze(1)
        return weight, torch.zeros_like(weight[..., 0]), weight
    return mid_weight.contiguous(), mid_bias, scaled


def _tables(x: Tensor, y: Tensor, weight: Tensor, bias: Tensor, case: Case):
    """Rows (B, H, h, N), columns (B, H, h, M), base (B, H, h2, M) of x (B, H, N, h) and y."""
    rows, cols = x.mT.contiguous(), y.mT.contiguous()
    base = bias.unsqueeze(-1).repeat(len(y), 1, 1, y.shape[-2])
    if case.act == "relu":
        for t in range(case.h2):  # not a matrix product: that might use TF32
            base[:, :, t] += (weight[:, t, :, None] * cols).sum(-2)
        cols = -cols
    return rows, cols, base


def _case(v: Tensor, weight: Tensor, two: bool, activation: str, causal: bool) -> Case:
    h2, h = weight.shape[-2:]
    return Case(h, h2, two, activation, causal, v.shape[-1], v.dtype != torch.float32)


def specialize(kernel: str, case: Case) -> tuple[Case, dict]:
    """The case with its tile, and the launch options."""
    tile = tiles(kernel, case)
    return replace(case, rows=tile.pop("rows"), cols=tile.pop("cols")), tile


def _launch(kernel: str, case: Case, tokens: int, net: tuple, v: Tensor, *args, **constants):
    """Run a kernel for every head and every block of `tokens`."""
    case, launch = specialize(kernel, case)
    with torch.cuda.device_of(v), keeping_children():  # ptxas is one, at a first launch
        grid = (v.shape[0] * v.shape[1], triton.cdiv(tokens, case.rows))
        KERNELS[kernel][grid](*net, v, *args, C=case, **constants, **launch)


def forward(a, c, mid_weight, mid_bias, out_weight, v, activation, causal):
    """See `ops`."""
    weight, bias, scaled = _network(mid_weight, mid_bias, out_weight)
    case = _case(v, weight, mid_weight is not None, activation, causal)
    (heads, n), m = a.shape[1:3], c.shape[2]
    out, lse = v.new_empty(*a.shape[:3], case.d), a.new_empty(a.shape[:3])
    net = (*_tables(a, c, weight, bias, case), weight, scaled)
    _launch("forward", case, n, net, v.contiguous(), out, lse, heads, n, m)
    return out, lse


def backward(grad_out, a, c, mid_weight, mid_bias, out_weight, v, out, lse, activation, causal):
    """See `ops`."""
    weight, bias, scaled = _network(mid_weight, mid_bias, out_weight)
    case = _case(v, weight, mid_weight is not None, activation, causal)
    (batch, heads, n, h), m = a.shape, c.shape[2]
    grad_out = grad_out.to(v.dtype)
    v, grad_out, out, lse = (x.contiguous() for x in (v, grad_out, out, lse))
    delta, grad_v = torch.empty_like(lse), torch.empty_like(v)
    sums_a, sums_c = a.new_zeros(batch, heads, h, n), c.new_zeros(batch, heads, h, m)
    by_homogeneity = case.homogeneous and case.h2 == 1  # unit sums: sum_ij e act(x) = sum_i x e'
    pairs = case.two or not by_homogeneity
    blocks = triton.cdiv(n, tiles("rows", case)["rows"]) if pairs else 0
    partial = a.new_zeros(batch, heads, blocks, case.h2, h + 2)

    net = (*_tables(a, c, weight, bias, case), weight, scaled)
    rest = (grad_out, out, lse, delta, sums_a, partial, heads, n, m)
    _launch("rows", case, n, net, v, *rest, PAIRS=pairs)
    net = (*_tables(c, a, weight, bias, case), weight, scaled)
    _launch("cols", case, m, net, v, grad_out, lse, delta, sums_c, grad_v, heads, n, m)

    sums_a, sums_c, partial = sums_a.mT, sums_c.mT, partial.sum((0, 2))
    units, e, outer = partial[..., :h], partial[..., h], partial[..., h + 1]  # (H, h2, ...)
    if by_homogeneity:
        units = ((sums_a * a).sum((0, 2)) + (sums_c * c).sum((0, 2))).unsqueeze(1)
    if case.h2 == 1:  # the factor that the kernels left out
        factor = out_weight if mid_weight is None else mid_weight[:, 0] * out_weight
        sums_a, sums_c = sums_a * factor.unsqueeze(1), sums_c * factor.unsqueeze(1)
    sums_a, sums_c = sums_a.contiguous(), sums_c.contiguous()
    if mid_weight is None:
        return sums_a, sums_c, None, None, units[:, 0].contiguous(), grad_v
    if case.homogeneous:  # act(pre) = pre act'(pre)
        outer = bias * e + (mid_weight * units).sum(-1)
    grad_weight = out_weight.unsqueeze(-1) * units
    return sums_a, sums_c, grad_weight, out_weight * e, outer.contiguous(), grad_v
