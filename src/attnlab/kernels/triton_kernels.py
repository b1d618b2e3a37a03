"""Fused Neural Attention for CUDA in Triton (arXiv 2502.17206, eqs 7-10), forward and backward.

    A_ij = sum_r w_r act(a_ir + c_jr)                                   one hidden layer
    A_ij = sum_t w_t act(b_t + sum_r W_tr act(a_ir + c_jr))             two hidden layers
    out_i = sum_j softmax_j(A_ij) v_j

Nothing N x M is stored: the forward keeps a running softmax, the backward recomputes the scores.
Shapes: a (B, H, N, h), c (B, H, M, h), v (B, H, M, D), W (H, h2, h), b (H, h2), w (H, h or h2).

One form serves both: pre_t = base_tj + sum_r W_tr unit(x_ir, y_jr), where one layer is a single t
without activation. Rows x and columns y are a and c, or c and a in the kernel that works on the
transpose. For ReLU, W relu(x + y) = W max(x, -y) + W y: the columns are negated and the last term
is part of `base`, so that a unit costs one maximum and one multiply-add per pair. Tables are
stored as (B, H, h, N): one unit of neighbouring tokens is contiguous. Scores are in units of ln 2,
ready for exp2. No atomics: a program owns what it writes, so equal inputs give equal bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

try:
    import triton
    import triton.language as tl

    jit = triton.jit
    INTERPRETED = triton.knobs.runtime.interpret
except ImportError:
    triton = tl = None
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
def _net(rows, cols, base, weight, out_weight, bh, heads, n, m, C: tl.constexpr):
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
def _exp2(x, C: tl.constexpr):
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
        return tl.maximum(x, y)
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
def _tokens(table, i, n, C: tl.constexpr):
    """Tokens i of an (n, d) table, padded with zeros to (len(i), d_padded)."""
    d = tl.arange(0, C.d_padded)[None, :]
    return tl.load(table + i[:, None] * C.d + d, mask=(i < n)[:, None] & (d < C.d), other=0.0)


@jit
def _store_tokens(table, values, i, n, C: tl.constexpr):
    d = tl.arange(0, C.d_padded)[None, :]
    tl.store(table + i[:, None] * C.d + d, values, mask=(i < n)[:, None] & (d < C.d))


@jit
def _key_range(start, n, m, C: tl.constexpr):
    """The keys before `free` are seen by all rows from start on, those from `end` on by none."""
    if C.causal:
        return (start + m - n + 1) // C.cols * C.cols, tl.minimum(m, start + C.rows + m - n)
    else:
        return m // C.cols * C.cols, m


@jit
def _mask(s, i, j, n, m, C: tl.constexpr):
    """Scores of queries i and keys j, -inf where i does not see j."""
    if C.causal:
        return tl.where(j <= i + (m - n), s, float("-inf"))
    else:
        return tl.where(j < m, s, float("-inf"))


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
        pre = tl.zeros((C.rows, C.cols), tl.float32) + base[None, :]
    for r in tl.range(C.h, loop_unroll_factor=C.h if C.h <= 4 else 4):
        x, y = _unit_of(net.rows, r, i, net.n), _unit_of(net.cols, r, j, net.m)
        pre += tl.load(net.weight + t * C.h + r) * _unit(x[:, None], y[None, :], C)
    return pre


@jit
def _scores(net, i, j, C: tl.constexpr):
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
def forward_kernel(
    rows, cols, base, weight, out_weight, v, out, lse, heads, n, m, C: tl.constexpr
):
    """out (B, H, N, D), lse (B, H, N). A program: C.rows queries of one head, all their keys."""
    bh = tl.program_id(0).to(tl.int64)
    net = _net(rows, cols, base, weight, out_weight, bh, heads, n, m, C)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * C.rows  # causal: the longest first
    i = start + tl.arange(0, C.rows)
    best = tl.full((C.rows,), float("-inf"), tl.float32)
    total = tl.zeros((C.rows,), tl.float32)
    mixed = tl.zeros((C.rows, C.d_padded), tl.float32)
    free, end = _key_range(start, n, m, C)
    for masked in tl.static_range(2):
        for key in tl.range(free if masked else 0, end if masked else free, C.cols):
            j = key + tl.arange(0, C.cols)
            s, _ = _scores(net, i, j, C)
            if masked:
                s = _mask(s, i[:, None], j[None, :], n, m, C)
            new = tl.maximum(best, tl.max(s, 1))
            p = _exp2(s - new[:, None], C)
            shrink = _exp2(best - new, C)
            total = total * shrink + tl.sum(p, 1)
            values = _tokens(v + bh * m * C.d, j, m, C)
            mixed = tl.dot(
                p.to(values.dtype), values, mixed * shrink[:, None], input_precision="ieee"
            )
            best = new
    _store_tokens(out + bh * n * C.d, mixed / total[:, None], i, n, C)
    tl.store(lse + bh * n + i, (best + tl.log2(total)) * 0.6931471805599453, mask=i < n)


@jit
def _add(pointer, value, mask=None):
    tl.store(pointer, tl.load(pointer, mask=mask) + value, mask=mask)


@jit
def _add_row_sums(
    total, sums, partial, net, grad, pre, i, j, C: tl.constexpr, PAIRS: tl.constexpr
):
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
                row *= factor * 0.6931471805599453
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
def _store_row_sums(total, sums, i, n, C: tl.constexpr):
    if C.h <= 16:
        r = tl.arange(0, total.shape[1])[None, :]
        tl.store(sums + r * n + i[:, None], total, mask=(i < n)[:, None] & (r < C.h))


@jit
def backward_rows_kernel(
    rows,
    cols,
    base,
    weight,
    out_weight,
    v,
    grad_out,
    out,
    lse,
    delta,
    sums,
    partial,
    heads,
    n,
    m,
    C: tl.constexpr,
    PAIRS: tl.constexpr,
):
    """delta = grad_out . out (B, H, N), row sums for da (B, H, h, N), and sums for the weights'
    gradients, partial (B, H, blocks, h2, h + 2). A program: C.rows queries, all their keys.
    """
    bh = tl.program_id(0).to(tl.int64)
    block = tl.num_programs(1) - 1 - tl.program_id(1)
    net = _net(rows, cols, base, weight, out_weight, bh, heads, n, m, C)
    sums += bh * n * C.h
    partial += (bh * tl.num_programs(1) + block) * C.h2 * (C.h + 2)
    start = block * C.rows
    i = start + tl.arange(0, C.rows)
    gradient = _tokens(grad_out + bh * n * C.d, i, n, C)
    result = _tokens(out + bh * n * C.d, i, n, C)
    dot = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(delta + bh * n + i, dot, mask=i < n)
    # Rows beyond n: a probability of 2^-inf = 0.
    level = tl.load(lse + bh * n + i, mask=i < n, other=float("inf")) * 1.4426950408889634
    total = tl.zeros((C.rows, C.h_padded), tl.float32)
    free, end = _key_range(start, n, m, C)
    for masked in tl.static_range(2):
        for key in tl.range(free if masked else 0, end if masked else free, C.cols):
            j = key + tl.arange(0, C.cols)
            s, pre = _scores(net, i, j, C)
            if masked:
                s = _mask(s, i[:, None], j[None, :], n, m, C)
            p = _exp2(s - level[:, None], C)
            values = _tokens(v + bh * m * C.d, j, m, C)
            grad_p = tl.dot(gradient, tl.trans(values), input_precision="ieee")
            grad = p * (grad_p - dot[:, None])
            total = _add_row_sums(total, sums, partial, net, grad, pre, i, j, C, PAIRS)
    _store_row_sums(total, sums, i, n, C)


@jit
def backward_cols_kernel(
    rows,
    cols,
    base,
    weight,
    out_weight,
    v,
    grad_out,
    lse,
    delta,
    sums,
    grad_v,
    heads,
    n,
    m,
    C: tl.constexpr,
):
    """Row sums for dc (B, H, h, M) and dv (B, H, M, D). A program: C.rows keys and all queries
    that see them, on the transposed tile, so that every sum still runs along the rows.
    """
    bh = tl.program_id(0).to(tl.int64)
    net = _net(rows, cols, base, weight, out_weight, bh, heads, m, n, C)
    sums += bh * m * C.h
    start = tl.program_id(1) * C.rows
    j = start + tl.arange(0, C.rows)
    values = _tokens(v + bh * m * C.d, j, m, C)
    total = tl.zeros((C.rows, C.h_padded), tl.float32)
    mixed = tl.zeros((C.rows, C.d_padded), tl.float32)
    begin, free = 0, 0  # queries before `begin` see none of the keys, from `free` on all of them
    if C.causal:
        begin = tl.maximum(start - (m - n), 0) // C.cols * C.cols
        free = tl.cdiv(tl.maximum(start + C.rows - 1 - (m - n), 0), C.cols) * C.cols
        free = tl.minimum(free, n)
    for masked in tl.static_range(2):
        for query in tl.range(begin if masked else free, free if masked else n, C.cols):
            i = query + tl.arange(0, C.cols)
            s, pre = _scores(net, j, i, C)
            if masked:
                s = _mask(s, i[None, :], j[:, None], n, m, C)
            level = tl.load(lse + bh * n + i, mask=i < n, other=float("inf"))
            p = _exp2(s - (level * 1.4426950408889634)[None, :], C)
            gradient = _tokens(grad_out + bh * n * C.d, i, n, C)
            mixed = tl.dot(p.to(gradient.dtype), gradient, mixed, input_precision="ieee")
            grad_p = tl.dot(values, tl.trans(gradient), input_precision="ieee")
            dot = tl.load(delta + bh * n + i, mask=i < n, other=0.0)
            grad = p * (grad_p - dot[None, :])
            total = _add_row_sums(total, sums, sums, net, grad, pre, j, i, C, False)
    _store_row_sums(total, sums, j, m, C)
    _store_tokens(grad_v + bh * m * C.d, mixed, j, m, C)
