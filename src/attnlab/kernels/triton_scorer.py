"""The score network in Triton, on tiles of pairs: the only part of the CUDA kernels that knows
what a score is.

    A_ij = sum_r w_r act(a_ir + c_jr)                                   one hidden layer
    A_ij = sum_t w_t act(b_t + sum_r W_tr act(a_ir + c_jr))             two hidden layers

Shapes: a (B, H, N, h), c (B, H, M, h), W (H, h2, h), b (H, h2), w (H, h or h2); arXiv 2502.17206,
eqs 7-9.

One form serves both: pre_t = base_tj + sum_r W_tr unit(x_ir, y_jr), where one layer is a single t
without activation. Rows x and columns y are a and c, or c and a in the kernel that works on the
transpose. For ReLU, W relu(x + y) = W max(x, -y) + W y: the columns are negated and the last term
is part of `base`, so that a unit costs one maximum and one multiply-add per pair. Tables are
stored as (B, H, h, N): one unit of neighbouring tokens is contiguous. Scores are in units of ln 2,
ready for exp2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    INTERPRETED = triton.knobs.runtime.interpret
    LN2, LOG2E = tl.constexpr(math.log(2)), tl.constexpr(1 / math.log(2))
except ImportError:
    triton = tl = LN2 = LOG2E = None
    INTERPRETED = False

    def jit(function):
        """So that this module can be imported, and say what is missing."""
        return function


@dataclass(frozen=True)
class Case:
    """What a kernel is compiled for."""

    h: int
    h2: int  # 1 if there is one hidden layer
    two: bool  # hidden layers
    act: str
    causal: bool
    d: int
    half: bool  # v in 16 bits
    rows: int = 0  # tile of the score matrix
    cols: int = 0
    fast: bool = not INTERPRETED  # may use what only the GPU knows

    @property
    def h_padded(self) -> int:
        """Row sums kept in registers, a power of 2; more than 16 units are kept in memory."""
        return 1 << (self.h - 1).bit_length() if self.h <= 16 else 1

    @property
    def d_padded(self) -> int:
        """The width of a tile of tokens: a power of 2, and at least what a tensor core takes."""
        return max(16, 1 << (self.d - 1).bit_length())

    @property
    def homogeneous(self) -> bool:
        """Whether act(x) = x act'(x)."""
        return self.act in ("relu", "leaky_relu")


class Net(NamedTuple):
    """Pointers to one head's score network and to its two tables, of n rows and m columns."""

    rows: tl.tensor  # (h, n)
    cols: tl.tensor  # (h, m)
    base: tl.tensor  # (h2, m)
    weight: tl.tensor  # (h2, h)
    out_weight: tl.tensor  # (h2)
    n: int
    m: int


@jit
def head_net(rows, cols, base, weight, out_weight, bh, heads, n, m, C: tl.constexpr):
    """The `Net` of head bh, counted over the batch, by pointers to those of all heads."""
    head = bh % heads
    return Net(
        rows + bh * n * C.h,
        cols + bh * m * C.h,
        base + bh * m * C.h2,
        weight + head * C.h2 * C.h,
        out_weight + head * C.h2,
        n,
        m,
    )


@jit
def exp2(x, C: tl.constexpr):
    """2^x; fast: the bare instruction, which flushes denormals and exists only on the GPU."""
    if C.fast:
        return tl.inline_asm_elementwise(
            "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.exp2(x)


@jit
def _unit(x, y, C: tl.constexpr):
    """act(x + y); ReLU: max(x, y), as y comes negated and `base` holds the rest."""
    if C.act == "relu":
        return tl.maximum(x, y, propagate_nan=tl.PropagateNan.ALL)  # as torch's relu does
    else:
        z = x + y
        if C.act == "leaky_relu":
            return tl.maximum(z, 0.01 * z)
        elif C.act == "tanh":
            return 1 - 2 / (1 + tl.exp(2 * z))
        elif C.act == "silu":
            return z / (1 + tl.exp(-z))
        else:
            return 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))


@jit
def _through(grad, x, y, C: tl.constexpr):
    """grad act'(x + y), with y negated for ReLU."""
    if C.act == "relu":
        return tl.where(x > y, grad, 0.0)
    else:
        z = x + y
        if C.act == "leaky_relu":
            return tl.where(z > 0, grad, 0.01 * grad)
        elif C.act == "tanh":
            u = 1 - 2 / (1 + tl.exp(2 * z))
            return grad * (1 - u * u)
        elif C.act == "silu":
            u = 1 / (1 + tl.exp(-z))
            return grad * (u + z * u * (1 - u))
        else:
            cdf = 0.5 + 0.5 * tl.erf(z * 0.7071067811865476)
            return grad * (cdf + z * 0.3989422804014327 * tl.exp(-0.5 * z * z))


@jit
def _unit_of(table, r, i, n):
    """Unit r of tokens i from a (units, n) table."""
    return tl.load(table + r * n + i, mask=i < n, other=0.0)


@jit
def _pre(net, t, i, j, C: tl.constexpr):
    """pre_t (rows, cols). In half precision it starts from a tensor-core product, ones times three
    terms whose sum is base: that keeps the tile in the layout in which it meets v.
    """
    base = _unit_of(net.base, t, j, net.m)
    if C.half and C.fast:
        high = base.to(tl.bfloat16).to(tl.float32)
        middle = (base - high).to(tl.bfloat16).to(tl.float32)
        k = tl.arange(0, 16)[:, None]
        low = tl.where(k == 2, (base - high - middle)[None, :], 0.0)
        terms = tl.where(k == 0, high[None, :], tl.where(k == 1, middle[None, :], low))
        pre = tl.dot(tl.full((C.rows, 16), 1.0, tl.bfloat16), terms.to(tl.bfloat16))
    else:
        pre = tl.full((C.rows, C.cols), 0.0, tl.float32) + base[None, :]
    for r in tl.range(C.h, loop_unroll_factor=C.h if C.h <= 4 else 4):
        x, y = _unit_of(net.rows, r, i, net.n), _unit_of(net.cols, r, j, net.m)
        pre += tl.load(net.weight + t * C.h + r) * _unit(x[:, None], y[None, :], C)
    return pre


@jit
def pair_scores(net, i, j, C: tl.constexpr):
    """Scores in units of ln 2 (rows, cols), and pre_0, which is all of pre if h2 = 1."""
    first = _pre(net, 0, i, j, C)
    if C.two:
        scores = tl.load(net.out_weight) * _unit(first, 0.0, C)
        for t in tl.range(1, C.h2):
            scores += tl.load(net.out_weight + t) * _unit(_pre(net, t, i, j, C), 0.0, C)
        return scores, first
    else:
        return first, first


@jit
def _add(pointer, value, mask=None):
    tl.store(pointer, tl.load(pointer, mask=mask) + value, mask=mask)


@jit
def add_row_sums(total, sums, partial, net, grad, pre, i, j, C: tl.constexpr, PAIRS: tl.constexpr):
    """Add sum_j grad_ij dA_ij / dx_ir of one tile to total (rows, >= h) or, if h is large, to
    sums (h, n); with h2 = 1 without the factor W_tr w_t, which is the caller's.

    PAIRS: also add up, in partial (h2, h + 2), the sums over all pairs that the weights' gradients
    need and homogeneity does not give: with e = grad act'(pre_t), of e unit_r, of e, and of
    grad act(pre_t).
    """
    for t in tl.range(C.h2):
        e = grad
        here = partial + t * (C.h + 2)
        if C.two:
            if C.h2 > 1:
                pre = _pre(net, t, i, j, C)
            e = _through(grad, pre, 0.0, C)
            if PAIRS:
                _add(here + C.h, tl.sum(e))
                if not C.homogeneous:
                    _add(here + C.h + 1, tl.sum(grad * _unit(pre, 0.0, C)))
        for r in tl.range(C.h, loop_unroll_factor=C.h if C.h <= 4 else 1):
            x = _unit_of(net.rows, r, i, net.n)[:, None]
            y = _unit_of(net.cols, r, j, net.m)[None, :]
            through = _through(e, x, y, C)
            row = tl.sum(through, 1)
            if C.h2 > 1:
                factor = tl.load(net.weight + t * C.h + r) * tl.load(net.out_weight + t)
                row *= factor * LN2
            if C.h <= 16:
                total += tl.where(tl.arange(0, total.shape[1]) == r, row[:, None], 0.0)
            else:
                _add(sums + r * net.n + i, row, i < net.n)
            if PAIRS and (C.h2 > 1 or not C.homogeneous):
                value = through * (x - y) if C.act == "relu" else e * _unit(x, y, C)
                _add(here + r, tl.sum(value))
        if PAIRS or C.h > 16:
            tl.debug_barrier()  # what other threads have stored is read back
    return total


@jit
def store_row_sums(total, sums, i, n, C: tl.constexpr):
    """Write total to sums (h, n), unless `add_row_sums` has done so."""
    if C.h <= 16:
        r = tl.arange(0, total.shape[1])[None, :]
        tl.store(sums + r * n + i[:, None], total, mask=(i < n)[:, None] & (r < C.h))
