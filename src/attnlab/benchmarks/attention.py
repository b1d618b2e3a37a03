"""Time and memory of Neural Attention beside torch's dot-product attention: attention alone."""

import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.benchmarks.timing import SECONDS, extra_memory, measured_on, paired
from attnlab.errors import first_line
from attnlab.functional import ACTIVATIONS
from attnlab.kernels.ops import BACKENDS
from attnlab.models.attention.base import head_linear
from attnlab.models.attention.neural import NeuralAttention
from attnlab.runtime.device import keep_freed_memory

log = logging.getLogger(__name__)

# The score networks measured: d' (None: no projection) and hidden widths at head width 64.
CASES: dict[str, tuple[int | None, list[int]]] = {
    "released_d2": (2, [2, 1]),
    "d2_h2": (2, [2]),
    "d2_h4": (2, [4]),  # the paper's text, hidden 2 d'
    "d2_h16": (2, [16]),
    "d16_h16": (16, [16]),
    "released_d16": (16, [16, 8]),
    "full_h64": (None, [64]),
    "d16_h32": (16, [32]),  # the paper's text
    "full_h128": (None, [128]),  # the paper's text
}
SDPA = ("dot_product", "sdpa")
LITERAL, FLEX = "algorithm_1", "flex_attention"
ALL_BACKENDS = [LITERAL, "eager", *BACKENDS, FLEX]
FLEX_UNITS = 4  # hidden units at most: FlexAttention captures three tensors for each
MAX_TENSOR_BYTES = 2**29  # bytes: what would need a larger one is left out


@dataclass(frozen=True)
class Shape:
    """What attention is measured on: q, k, v (batch, heads, n, d)."""

    n: int
    d: int = 64
    batch: int = 1
    heads: int = 8
    causal: bool = True
    dtype: torch.dtype = torch.float32


def attention(
    shapes: list[Shape], cases: list[str], backends: list[str], device: torch.device
) -> Iterator[dict[str, Any]]:
    """Two rows (see `measure`) for the dot product on each shape, and for each case and backend
    that fits it and this machine.

    Peaks of all are measured first, because freed memory that is kept would count in the next
    peak. Times are measured with freed memory kept, as in training: otherwise a tensor of more
    than 32 MiB is mapped anew each time.
    """
    found = []
    for shape in shapes:
        for case, backend in [SDPA, *((case, backend) for case in cases for backend in backends)]:
            try:
                passes = steps(shape, case, backend, device)
                peaks = peak_memory(passes, device)
            except Exception as error:
                if backend != FLEX:
                    raise
                # torch's compiler may not take it on every card: the other rows are worth having
                why = first_line(error)
                log.warning("%s, %s, N %d is left out: %s", case, backend, shape.n, why)
            else:
                found.append((shape, case, backend, passes, peaks))
    if device.type == "cpu":
        keep_freed_memory()
    for shape, case, backend, passes, peaks in found:
        rows = measure(passes, shape, case, backend, device)
        for row, peak in zip(rows, peaks, strict=True):
            yield row | {"peak_mib": peak}


# Forward, and both passes -> a step of a contender, and one of the dot product.
Passes = dict[str, tuple[Callable[[], None], Callable[[], None]]]


def steps(
    shape: Shape, case: str, backend: str, device: torch.device, largest: int = MAX_TENSOR_BYTES
) -> Passes:
    """What is measured of a contender. Empty if a tensor of more than `largest`
    bytes would be needed, or the backend cannot serve.
    """
    torch.manual_seed(0)
    size = (3, shape.batch, shape.heads, shape.n, shape.d)
    inputs = torch.randn(size, dtype=shape.dtype, device=device)
    upstream = torch.randn(size[1:], dtype=shape.dtype, device=device)
    leaves = [x.requires_grad_() for x in inputs.unbind()]
    dot = dot_product(shape.causal)
    run, parameters = dot, []
    if (case, backend) != SDPA:
        found = contender(shape, case, backend, device, largest)
        if found is None:
            return {}
        run, parameters = found
    return {
        name: (step(run, leaves, parameters, given), step(dot, leaves, [], given))
        for name, given in (("forward", None), ("forward_backward", upstream))
    }


def peak_memory(passes: Passes, device: torch.device) -> list[float]:
    """Peak MiB of each pass above what was there before."""
    return [extra_memory(ours, device) for ours, _ in passes.values()]


def measure(
    passes: Passes,
    shape: Shape,
    case: str,
    backend: str,
    device: torch.device,
    limit: float = SECONDS,
) -> list[dict[str, Any]]:
    """A row for each pass of `steps`: ms, and ratio to the dot product with its quartiles. limit:
    seconds of a measurement.
    """
    d_prime, hidden = CASES.get(case, (None, None))
    return [
        {
            "case": case,
            "backend": backend,
            "n": shape.n,
            "d": shape.d,
            "batch": shape.batch,
            "heads": shape.heads,
            "d_prime": d_prime,
            "hidden": hidden,
            "causal": shape.causal,
            "dtype": str(shape.dtype).removeprefix("torch."),
            "pass": name,
            **paired(ours, base, device, limit),
            **measured_on(device),
        }
        for name, (ours, base) in passes.items()
    ]


def contender(shape: Shape, case: str, backend: str, device: torch.device, largest: int):
    """A function of q, k, v and its parameters, or None; see `steps`."""
    d_prime, hidden = CASES[case]
    pairs = 4 * shape.batch * shape.heads * shape.n**2
    widest = 2 * (d_prime or shape.d) if backend == LITERAL else hidden[0]
    if backend in (LITERAL, "eager") and pairs * widest > largest:
        return None
    if backend == FLEX and (device.type != "cuda" or len(hidden) > 1 or hidden[0] > FLEX_UNITS):
        return None  # on a CPU it has no gradients, and with many tensors it compiles for minutes
    module = mechanism(d_prime, hidden, backend, shape).to(device)
    if backend == FLEX:  # every case is compiled anew; beyond a limit torch would run unfused code
        torch._dynamo.reset()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
    if backend in BACKENDS:
        heads = torch.zeros(1, shape.heads, 1, shape.d, dtype=shape.dtype, device=device)
        tables = module.score_network.tables(heads, heads, 1.0, module.project)
        if BACKENDS[backend].unsupported(*tables, heads, "relu"):
            return None

    def run(q, k, v):
        autocast = torch.autocast(q.device.type, q.dtype, enabled=q.dtype.itemsize == 2)
        with autocast:
            if backend == LITERAL:
                return algorithm_1(module, q, k, v, shape.causal)
            if backend == FLEX:
                return flex(module, q, k, v, shape.causal)
            return module(q, k, v, causal=shape.causal)

    return run, list(module.parameters())


def mechanism(d_prime: int | None, hidden: list[int], backend: str, shape: Shape):
    """A `NeuralAttention` as configured by the paper, but for d' and hidden."""
    backend = "eager" if backend in (LITERAL, FLEX) else backend
    return NeuralAttention(shape.heads, shape.d, d_prime=d_prime, hidden=hidden, backend=backend)


def algorithm_1(module: NeuralAttention, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """Algorithm 1 of arXiv 2502.17206 as printed: all pairs concatenated, then the network."""
    if module.project:
        q, k = module.project_q(q), module.project_k(k)
    n = q.shape[2]
    pairs = (q.unsqueeze(3).expand(-1, -1, -1, n, -1), k.unsqueeze(2).expand(-1, -1, n, -1, -1))
    y = torch.cat(pairs, dim=-1)
    act = ACTIVATIONS[module.score_network.activation]
    *layers, last = module.score_network
    for layer in layers:
        y = act(head_linear(y, layer.weight, layer.bias))
    scores = head_linear(y, last.weight, last.bias).squeeze(-1) * module.scale
    if causal:
        later = torch.ones(n, n, dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(-1).to(v.dtype) @ v


def flex(module: NeuralAttention, q: Tensor, k: Tensor, v: Tensor, causal: bool) -> Tensor:
    """By torch's FlexAttention (arXiv 2412.05496), compiled: a score network of one ReLU layer as
    score_mod, on captured sums a, c (B, H, N, h) of every token; the product of queries and keys,
    which FlexAttention always computes, is that of zeros of the least width, 16.
    """
    a, c, _, _, weight = module.score_network.tables(q, k, module.scale, module.project)
    # a tensor for each unit: torch differentiates a captured tensor that is indexed once, not more
    units = [[x.clone() for x in table.unbind(-1)] for table in (a, c, weight)]

    def score_mod(score, batch, head, i, j):
        for of_query, of_key, w in zip(*units, strict=True):
            unit = torch.relu(of_query[batch, head, i] + of_key[batch, head, j])
            score = score + w[head] * unit
        return score

    attend, mask = _compiled_flex(causal, q.shape[2], q.device)
    none = torch.zeros(*q.shape[:3], 16, dtype=v.dtype, device=q.device)
    return attend(none, none, v, score_mod=score_mod, block_mask=mask)


@functools.cache
def _compiled_flex(causal: bool, n: int, device: torch.device):
    """The operator, and the mask in its form."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    mask = None
    if causal:
        mask = create_block_mask(lambda b, h, i, j: j <= i, None, None, n, n, device=device)
    return torch.compile(flex_attention, dynamic=False), mask


def dot_product(causal: bool) -> Callable[..., Tensor]:
    """torch's fused dot-product attention."""
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def step(run, leaves, parameters, upstream) -> Callable[[], None]:
    """One forward, or with `upstream` forward and backward."""

    def once() -> None:
        with torch.set_grad_enabled(upstream is not None):
            out = run(*leaves)
            if upstream is not None:
                torch.autograd.grad(out, [*leaves, *parameters], upstream)

    return once
