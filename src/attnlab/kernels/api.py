"""Fused Neural Attention: one function, four backends, one result.

    eager    the reference, every tensor in memory; any score network, any device
    chunked  plain torch, some queries at a time, scores recomputed in the backward; any device
    cpp      C++ on CPU, compiled on first use
    triton   NVIDIA GPUs (CUDA, not ROCm)

Shapes: B batch, H heads, N queries, M keys, D head width, h and h2 widths of the hidden layers.
"""

import logging

import torch
from torch import Tensor

from attnlab.errors import BadInput
from attnlab.functional import (
    ACTIVATIONS,
    check_bias,
    check_mask,
    constant_in_graphs,
    masked_softmax,
    visible_keys,
    without_autocast,
)
from attnlab.kernels.ops import BACKENDS, fused_attention
from attnlab.kernels.padding import blind_queries, key_padding, with_padding
from attnlab.kernels.validation import Projections, Scorer, check_inputs

log = logging.getLogger(__name__)
_SAID: set[str] = set()
FASTEST = {"cpu": "cpp", "cuda": "triton"}


def neural_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    score_network: Scorer,
    *,
    causal: bool,
    scale: float,
    project: Projections = None,
    backend: str = "auto",
    mask: Tensor | None = None,
    bias: Tensor | None = None,
) -> Tensor:
    """softmax(scale * A + bias) V with A_ij = score_network([q_i; k_j]) (arXiv 2502.17206, eqs
    5-10).

    q (B, H, N, D), k (B, H, M, D), v (B, H, M, any width). Returns (B, H, N, width of v) in the
    dtype of v.

    score_network: a `kernels.validation.Scorer`, such as `models.attention.neural.ScoreNetwork`.
    causal: query i sees key j <= i + M - N, so that the last query sees all keys; N is at most M.
    scale: factor of the scores.
    project: two `models.attention.base.HeadLinear` from D to the width that it reads, or None.
    backend: auto, eager, chunked, cpp or triton. The last three take a mask that is the same for
    all queries, (B, 1, 1, M), at the price of one more hidden unit, and no bias; eager takes any.
    mask: boolean, True where a key may be seen, broadcasts to (B, H, N, M); a query that sees no
    key gets 0.
    bias: floating point, of positions, broadcasts to (B, H, N, M).

    Errors: `ValueError` if shapes, dtypes or devices do not fit (see `validation`); `BadInput` if
    the named backend is unknown or cannot serve, where auto takes the next one.
    """
    if backend not in ("auto", "eager", *BACKENDS):
        allowed = ", ".join(("auto", "eager", *BACKENDS))
        raise BadInput(f"model.backend={backend}: must be one of {allowed}")
    check_inputs(q, k, v, score_network, project, causal)
    blind = padding = None
    if mask is not None:
        check_mask(mask, (*q.shape[:3], k.shape[2]))
        padding = key_padding(mask, k.shape[2])
    if bias is not None:
        check_bias(bias, (*q.shape[:3], k.shape[2]))
    if backend != "eager":
        reason = _unfusable(score_network, mask, padding, bias)
        if not reason:
            arguments = score_network.tables(q, k, scale, project)
            if padding is not None:
                blind = blind_queries(padding, q.shape[2], causal)
                arguments = with_padding(arguments, padding, blind)
            activation = score_network.activation
            backend, reason = _choose(backend, arguments, v, activation)
        if not reason:
            out, _ = fused_attention(*arguments, v, activation, causal, backend)
            return out if blind is None else out.masked_fill(blind, 0)
        if backend != "auto":
            raise BadInput(f"model.backend={backend}: {reason}")
        _say(f"attention uses the eager reference: {reason}")
    visible = visible_keys(q, k, causal, mask)
    with without_autocast(q):  # as precise as the kernels
        weights = masked_softmax(score_network(q, k, project) * scale, visible, bias)
        return weights.to(v.dtype) @ v


def _unfusable(
    score_network: Scorer, mask: Tensor | None, padding: Tensor | None, bias: Tensor | None
) -> str | None:
    """Why no fused kernel serves this call, in one line, or None. padding: of the mask, where it
    is the same for all queries.
    """
    if reason := score_network.unfusable:
        return reason
    if score_network.activation not in ACTIVATIONS:
        known = ", ".join(ACTIVATIONS)
        return f"activation {score_network.activation}: fused kernels have {known}"
    if _transformed():
        return "torch.func transforms: fused kernels have a backward only"
    if bias is not None:
        return "fused kernels take no bias of positions (arch.positions=alibi)"
    if mask is not None and padding is None:
        return "a mask that differs between queries: fused kernels take key padding"
    return None


def _choose(backend: str, arguments: tuple, v: Tensor, activation: str) -> tuple[str, str | None]:
    """The backend that serves, or the reason why the named one cannot."""
    if backend != "auto":
        return backend, BACKENDS[backend].unsupported(*arguments, v, activation)
    fastest = FASTEST.get(v.device.type)
    if fastest:
        reason = BACKENDS[fastest].unsupported(*arguments, v, activation)
        if not reason:
            return fastest, None
        _say(f"attention uses the chunked backend: {fastest}: {reason}")
    return "chunked", BACKENDS["chunked"].unsupported(*arguments, v, activation)


@constant_in_graphs
def _transformed() -> bool:
    """Whether torch.func (grad, jvp, vmap) is at work: jvp would take the kernels' derivative in
    forward mode, which they do not have, for 0.
    """
    return torch._C._are_functorch_transforms_active()


@constant_in_graphs
def _say(message: str) -> None:
    """Log a message, once."""
    if message not in _SAID:
        _SAID.add(message)
        log.warning(message)
