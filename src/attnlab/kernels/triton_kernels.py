"""Fused Neural Attention for CUDA in Triton (arXiv 2502.17206, eqs 7-10), forward and backward.

    out_i = sum_j softmax_j(A_ij) v_j, with scores A from triton_scorer.py

Nothing N x M is stored: the forward keeps a running softmax, the backward recomputes the scores.
Shapes: v (B, H, M, D), out (B, H, N, D), lse and delta (B, H, N). No atomics: a program owns what
it writes, so equal inputs give equal bits.
"""

from __future__ import annotations

from attnlab.kernels.triton_scorer import (
    LN2,
    LOG2E,
    add_row_sums,
    exp2,
    head_net,
    jit,
    pair_scores,
    store_row_sums,
    tl,
)


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
def forward_kernel(
    rows, cols, base, weight, out_weight, v, out, lse, heads, n, m, C: tl.constexpr
):
    """out (B, H, N, D), lse (B, H, N). A program: C.rows queries of one head, all their keys."""
    bh = tl.program_id(0).to(tl.int64)
    net = head_net(rows, cols, base, weight, out_weight, bh, heads, n, m, C)
    start = (tl.num_programs(1) - 1 - tl.program_id(1)) * C.rows  # causal: the longest first
    i = start + tl.arange(0, C.rows)
    best = tl.full((C.rows,), float("-inf"), tl.float32)
    total = tl.full((C.rows,), 0.0, tl.float32)
    mixed = tl.full((C.rows, C.d_padded), 0.0, tl.float32)
    free, end = _key_range(start, n, m, C)
    for masked in tl.static_range(2):
        for key in tl.range(free if masked else 0, end if masked else free, C.cols):
            j = key + tl.arange(0, C.cols)
            s, _ = pair_scores(net, i, j, C)
            if masked:
                s = _mask(s, i[:, None], j[None, :], n, m, C)
            new = tl.maximum(best, tl.max(s, 1))
            p = exp2(s - new[:, None], C)
            shrink = exp2(best - new, C)
            total = total * shrink + tl.sum(p, 1)
            values = _tokens(v + bh * m * C.d, j, m, C)
            mixed = tl.dot(
                p.to(values.dtype), values, mixed * shrink[:, None], input_precision="ieee"
            )
            best = new
    _store_tokens(out + bh * n * C.d, mixed / total[:, None], i, n, C)
    tl.store(lse + bh * n + i, (best + tl.log2(total)) * LN2, mask=i < n)


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
    net = head_net(rows, cols, base, weight, out_weight, bh, heads, n, m, C)
    sums += bh * n * C.h
    partial += (bh * tl.num_programs(1) + block) * C.h2 * (C.h + 2)
    start = block * C.rows
    i = start + tl.arange(0, C.rows)
    gradient = _tokens(grad_out + bh * n * C.d, i, n, C)
    result = _tokens(out + bh * n * C.d, i, n, C)
    dot = tl.sum(gradient.to(tl.float32) * result.to(tl.float32), 1)
    tl.store(delta + bh * n + i, dot, mask=i < n)
    # Rows beyond n: a probability of 2^-inf = 0.
    level = tl.load(lse + bh * n + i, mask=i < n, other=float("inf")) * LOG2E
    total = tl.full((C.rows, C.h_padded), 0.0, tl.float32)
    free, end = _key_range(start, n, m, C)
    for masked in tl.static_range(2):
        for key in tl.range(free if masked else 0, end if masked else free, C.cols):
            j = key + tl.arange(0, C.cols)
            s, pre = pair_scores(net, i, j, C)
            if masked:
                s = _mask(s, i[:, None], j[None, :], n, m, C)
            p = exp2(s - level[:, None], C)
            values = _tokens(v + bh * m * C.d, j, m, C)
            grad_p = tl.dot(gradient, tl.trans(values), input_precision="ieee")
            grad = p * (grad_p - dot[:, None])
            total = add_row_sums(total, sums, partial, net, grad, pre, i, j, C, PAIRS)
    store_row_sums(total, sums, i, n, C)


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
    net = head_net(rows, cols, base, weight, out_weight, bh, heads, m, n, C)
    sums += bh * m * C.h
    start = tl.program_id(1) * C.rows
    j = start + tl.arange(0, C.rows)
    values = _tokens(v + bh * m * C.d, j, m, C)
    total = tl.full((C.rows, C.h_padded), 0.0, tl.float32)
    mixed = tl.full((C.rows, C.d_padded), 0.0, tl.float32)
    begin, free = 0, 0  # queries before `begin` see none of the keys, from `free` on all of them
    if C.causal:
        begin = tl.maximum(start - (m - n), 0) // C.cols * C.cols
        free = tl.cdiv(tl.maximum(start + C.rows - 1 - (m - n), 0), C.cols) * C.cols
        free = tl.minimum(free, n)
    for masked in tl.static_range(2):
        for query in tl.range(begin if masked else free, free if masked else n, C.cols):
            i = query + tl.arange(0, C.cols)
            s, pre = pair_scores(net, j, i, C)
            if masked:
                s = _mask(s, i[None, :], j[:, None], n, m, C)
            level = tl.load(lse + bh * n + i, mask=i < n, other=float("inf"))
            p = exp2(s - (level * LOG2E)[None, :], C)
            gradient = _tokens(grad_out + bh * n * C.d, i, n, C)
            mixed = tl.dot(p.to(gradient.dtype), gradient, mixed, input_precision="ieee")
            grad_p = tl.dot(values, tl.trans(gradient), input_precision="ieee")
            dot = tl.load(delta + bh * n + i, mask=i < n, other=0.0)
            grad = p * (grad_p - dot[None, :])
            total = add_row_sums(total, sums, sums, net, grad, pre, j, i, C, False)
    store_row_sums(total, sums, j, m, C)
    _store_tokens(grad_v + bh * m * C.d, mixed, j, m, C)
