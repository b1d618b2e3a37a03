"""Time and memory of Neural Attention beside torch's dot-product attention: attention alone."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.benchmarks.timing import environment, extra_memory, paired
from attnlab.functional import ACTIVATIONS
from attnlab.kernels.ops import BACKENDS
from attnlab.models.attention.base import head_linear
from attnlab.models.attention.neural import NeuralAttention

# The score networks measured: d' (None: no projection) and hidden widths at head width 64.
CASES: dict[str, tuple[int | None, list[int]]] = {
    "released_d2": (2, [2, 1]),
    "d2_h2": (2, [2]),
    "d2_h4": (2, [4]),  # the paper's text, hidden 2 d'
    "d2_h16": (2, [16]),
    "d16_h16": (16, [16]),
    "released_d16": (16, [16, 8]),
    "full_h64": (None, [64]),
}
SDPA = ("dot_product", "sdpa")
LITERAL = "algorithm_1"
ALL_BACKENDS = [LITERAL, "eager", *BACKENDS]
LARGEST_TENSOR = 2**29  # bytes: what would need a larger one is left out


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
    shape: Shape, cases: list[str], backends: list[str], device: torch.device
) -> Iterator[dict[str, Any]]:
    """A row for each case, backend and pass on this shape: ms, ratio to the dot product with its
    quartiles, and peak MiB above what was there before.
    """
    torch.manual_seed(0)
    size = (3, shape.batch, shape.heads, shape.n, shape.d)
    inputs = torch.randn(size, dtype=shape.dtype, device=device)
    upstream = torch.randn(size[1:], dtype=shape.dtype, device=device)
    leaves = [x.requires_grad_() for x in inputs.unbind()]
    dot = dot_product(shape.causal)
    for (case, backend), run, parameters in contenders(shape, cases, backends, device):
        for both in (False, True):
            arguments = (upstream if both else None, device)
            base = step(dot, leaves, [], *arguments)
            ours = base if backend == "sdpa" else step(run, leaves, parameters, *arguments)
            peak = extra_memory(ours, device)
            d_prime, hidden = CASES.get(case, (None, None))
            yield {
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
                "pass": "forward_backward" if both else "forward",
                **paired(ours, base),
                "peak_mib": peak,
                **environment(device),
            }


def contenders(shape: Shape, cases: list[str], backends: list[str], device: torch.device):
    """Name, function of q, k, v and parameters, for whatever fits this shape and machine."""
    yield SDPA, dot_product(shape.causal), []
    for case in cases:
        d_prime, hidden = CASES[case]
        pairs = 4 * shape.batch * shape.heads * shape.n**2
        for backend in backends:
            widest = 2 * (d_prime or shape.d) if backend == LITERAL else hidden[0]
            if backend not in BACKENDS and pairs * widest > LARGEST_TENSOR:
                continue
            module = mechanism(d_prime, hidden, backend, shape).to(device)
            if backend in BACKENDS:
                heads = torch.zeros(1, shape.heads, 1, shape.d, dtype=shape.dtype, device=device)
                tables = module.score_network.tables(heads, heads, 1.0, module.project)
                if BACKENDS[backend].unsupported(*tables, heads, "relu"):
                    continue

            def run(q, k, v, module=module, literal=backend == LITERAL):
                autocast = torch.autocast(q.device.type, q.dtype, enabled=q.dtype.itemsize == 2)
                with autocast:
                    if literal:
                        return algorithm_1(module, q, k, v, shape.causal)
                    return module(q, k, v, causal=shape.causal)

            yield (case, backend), run, list(module.parameters())


def mechanism(d_prime: int | None, hidden: list[int], backend: str, shape: Shape):
    """A `NeuralAttention` as configured by the paper, but for d' and hidden."""
    backend = "eager" if backend == LITERAL else backend
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


def dot_product(causal: bool) -> Callable[..., Tensor]:
    """torch's fused dot-product attention."""
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def step(run, leaves, parameters, upstream, device) -> Callable[[], None]:
    """One forward, or with `upstream` forward and backward; waits for the device."""

    def once() -> None:
        with torch.set_grad_enabled(upstream is not None):
            out = run(*leaves)
            if upstream is not None:
                torch.autograd.grad(out, [*leaves, *parameters], upstream)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return once
