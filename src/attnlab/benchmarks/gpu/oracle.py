"""Problems for the Triton kernels, their results, and those of the eager form in float64."""

import copy
import math
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from attnlab.functional import causal_mask
from attnlab.kernels.api import neural_attention
from attnlab.models.attention.base import HeadLinear
from attnlab.models.attention.neural import ScoreNetwork

BATCH, HEADS = 2, 2
MAX_ELEMENTS = 2**24  # numbers in a tensor of the reference, which takes some queries at a time


class Network(NamedTuple):
    """A score network, and the heads that it is measured on."""

    p: int | None  # d', None: no projection
    hidden: tuple[int, ...]
    activation: str = "relu"
    d: int = 64
    per_head: bool = False
    bias: bool = False
    loudness: float = 1.0  # factor of its scores


def problem(network: Network, n: int, m: int, dtype: torch.dtype, device: torch.device):
    """The score network, its projections, and q, k, v, gradient: views into blocks of all heads,
    as a transformer has them.
    """
    torch.manual_seed(n + 7 * m)
    groups, width = (HEADS if network.per_head else 1), network.p or network.d
    net = ScoreNetwork(groups, [2 * width, *network.hidden, 1], network.activation)
    project = None
    if network.p:
        pair = [HeadLinear(groups, network.d, network.p, network.bias) for _ in range(2)]
        project = torch.nn.ModuleList(pair).to(device)
    with torch.no_grad():
        net[-1].weight.mul_(network.loudness)
    size = (BATCH, max(n, m), 4, HEADS, network.d)
    block = torch.randn(size, device=device).to(dtype).permute(2, 0, 3, 1, 4)
    q, k, v, gradient = block.unbind()
    return net.to(device), project, (q[:, :, :n], k[:, :, :m], v[:, :, :m]), gradient[:, :, :n]


def results(net, project, leaves, gradient, causal, autocast=None, mask=None) -> list[Tensor]:
    """Output, and gradients of q, k, v and all parameters. autocast: context of the forward;
    mask: (1, 1, 1, keys), True where a key is visible.
    """
    leaves = [x.detach().requires_grad_() for x in leaves]
    scale = 1 / math.sqrt(gradient.shape[-1])
    with autocast or nullcontext():
        out = neural_attention(
            *(*leaves, net),
            project=project,
            causal=causal,
            mask=mask,
            scale=scale,
            backend="triton",
        )
    wanted = [*leaves, *parameters(net, project)]
    return [out.detach(), *torch.autograd.grad(out, wanted, gradient.to(out.dtype))]


def parameters(net, project) -> list[Tensor]:
    """All of a score network and its projections."""
    return [*net.parameters(), *(project.parameters() if project else ())]


def reference(net, project, leaves, gradient, causal, mask=None) -> list[Tensor]:
    """As `results`, by the eager form in float64, some queries at a time so that it fits."""
    net, project = double(net), double(project)
    q, k, v = (x.detach().double().requires_grad_() for x in leaves)
    n, m = q.shape[2], k.shape[2]
    visible = causal_mask(n, m, q.device) if causal else q.new_ones(n, m, dtype=torch.bool)
    visible, outs = visible if mask is None else visible & mask[0, 0], []
    wanted = [q, k, v, *parameters(net, project)]
    total = [torch.zeros_like(x) for x in wanted]
    widest = max(layer.weight.shape[1] for layer in net)
    block = max(1, MAX_ELEMENTS // (BATCH * HEADS * m * widest))
    for start in range(0, n, block):
        rows = slice(start, start + block)
        out = neural_attention(
            *(q[:, :, rows], k, v, net),
            project=project,
            causal=False,
            mask=visible[rows],
            scale=1 / math.sqrt(q.shape[-1]),
            backend="eager",
        )
        found = torch.autograd.grad(out, wanted, gradient[:, :, rows].double())
        total = [x + y for x, y in zip(total, found, strict=True)]
        outs.append(out.detach())
    return [torch.cat(outs, 2), *total]


def double(module):
    """A copy in float64."""
    return module and copy.deepcopy(module).double()


def names(net, project) -> list[str]:
    """Of what `results` returns."""
    inner = [f"network {name}" for name, _ in net.named_parameters()]
    outer = [f"projection {name}" for name, _ in project.named_parameters()] if project else []
    return ["out", "dq", "dk", "dv", *inner, *outer]


def errors(found, exact, gradient, v) -> list[float]:
    """Largest error of each tensor, relative to its largest number; gradients of scores are
    differences of terms of the size |dout| |v|, which may cancel.
    """
    size = (gradient.double().norm(dim=-1).max() * v.double().norm(dim=-1).max()).item() / 10
    floors = [1.0, size, size, 1.0, *[size] * (len(exact) - 4)]
    largest = []
    for x, y, floor in zip(found, exact, floors, strict=True):
        error = (x.double() - y).abs().max().item()
        largest.append(error / max(y.abs().max().item(), floor))  # nan stays nan
    return largest
