"""Time and memory of Neural Attention beside the dot product: attention alone, and whole steps.

Every sample of a contender is taken right after one of the dot product, and the ratio of the two
is what counts: a neighbour's load moves both.
"""

import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.activations import ACTIVATIONS
from attnlab.config import Config
from attnlab.kernels.ops import BACKENDS
from attnlab.models.attention.base import head_linear
from attnlab.models.attention.neural import NeuralAttention
from attnlab.models.transformer import build_model
from attnlab.training.meter import memory_mib, peak_memory_mib, reset_peak_memory
from attnlab.training.optim import build_optimizer
from attnlab.training.trainer import precision, training_loss

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
SAMPLES, SECONDS = 15, 5.0  # of one measurement: as many samples, or as long, and 3 at least
CLASSES = {"cifar10": 10, "cifar100": 100, "digits": 10}
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


def environment(device: torch.device) -> dict[str, Any]:
    """Part of every row."""
    from attnlab.folder import processor

    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    capability = "" if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{name} {capability}".strip(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


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
    options = SimpleNamespace(
        d_prime=d_prime,
        hidden=hidden,
        activation="relu",
        score_scale=True,
        per_head=False,
        projection_bias=False,
        backend="eager" if backend == LITERAL else backend,
    )
    arch = SimpleNamespace(heads=shape.heads, head_width=shape.d)
    return NeuralAttention(options, arch)


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


def paired(ours: Callable[[], None], base: Callable[[], None]) -> dict[str, Any]:
    """Median ms, and median and quartiles of the ratio of paired samples."""
    for function in (base, ours):
        function()  # warm-up
    times, ratios = [], []
    began = time.perf_counter()
    while len(ratios) < SAMPLES:
        below, above = seconds(base), seconds(ours)
        times.append(1000 * above)
        ratios.append(above / below)
        if len(ratios) >= 3 and time.perf_counter() - began > SECONDS:
            break
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ms": round(statistics.median(times), 3),
        "ratio_to_sdpa": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "samples": len(ratios),
    }


def seconds(function: Callable[[], None]) -> float:
    """Duration of one call."""
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def extra_memory(function: Callable[[], None], device: torch.device) -> float:
    """Peak MiB during a call above what was in use before it."""
    function()
    reset_peak_memory(device)
    before = memory_mib(device)
    function()
    return round(peak_memory_mib(device) - before, 1)


def whole_steps(arms: dict[str, Config], device: torch.device) -> Iterator[dict[str, Any]]:
    """A row for each arm: a training step (forward, backward, update) beside dot_product's, which
    must be the first arm.
    """
    base = None
    for name, cfg in arms.items():
        run, _ = training_step(cfg, device, published_shape(cfg))
        base = base or run
        timing = paired(run, base)
        yield {"arm": name, "body": cfg.arch.body, **timing, **environment(device)}


def published_shape(cfg: Config) -> dict[str, int]:
    """That of a model (see `Transformer`) for the data set that cfg names, without reading it."""
    if cfg.arch.body == "lm":
        vocabulary = cfg.data.vocab_size
        return {"inputs": vocabulary, "outputs": vocabulary, "tokens": cfg.data.sequence_length}
    patch, patches = cfg.arch.patch_size, (cfg.data.image_size // cfg.arch.patch_size) ** 2
    return {"inputs": 3 * patch**2, "outputs": CLASSES[cfg.data.name], "tokens": 1 + patches}


def training_step(
    cfg: Config, device: torch.device, shape: dict[str, int]
) -> tuple[Callable[[], None], nn.Module]:
    """A step of cfg's batch size on random tokens or images, and the model of this shape that it
    trains.
    """
    torch.manual_seed(0)
    micro = cfg.trainer.micro
    model = build_model(cfg, **shape)
    if cfg.arch.body == "lm":
        x, y = torch.randint(shape["outputs"], (2, micro, shape["tokens"]), device=device)
    else:
        size = cfg.data.image_size
        x = torch.randn(micro, 3, size, size, device=device)
        y = torch.randint(shape["outputs"], (micro,), device=device)
    model.to(device).train()
    optimizer = build_optimizer(model, cfg.trainer)
    autocast = precision(cfg, device)
    per_step = cfg.trainer.batch_size // micro

    def once() -> None:
        for _ in range(per_step):
            with autocast():
                loss = training_loss(model(x), y) / per_step
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    return once, model
