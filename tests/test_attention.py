"""Neural Attention against a literal Algorithm 1, and what any mechanism must keep."""

import math
from types import SimpleNamespace

import pytest
import torch
from conftest import MODELS, config
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.activations import ACTIVATIONS
from attnlab.models.attention import ATTENTION
from attnlab.models.attention.neural import NeuralAttention


def algorithm_1(module: NeuralAttention, q, k, v, causal):
    """Eqs 5-10 as written: concatenate every pair, run the network on it, softmax, mix."""
    if module.project:
        q, k = (
            x @ p.weight.mT + (0 if p.bias is None else p.bias)
            for x, p in ((q, module.project_q), (k, module.project_k))
        )
    n = q.shape[-2]
    left = q.unsqueeze(-2).expand(*q.shape[:-1], n, q.shape[-1])
    right = k.unsqueeze(-3).expand(*k.shape[:-2], n, n, k.shape[-1])
    y = torch.cat((left, right), dim=-1)  # the N x N x 2d' tensor of eq 7
    *hidden, last = module.score_network
    for layer in hidden:
        y = ACTIVATIONS[module.score_network.activation](_per_head(layer, y))
    scores = _per_head(last, y).squeeze(-1) * module.scale
    if causal:
        later = torch.arange(n)[None, :] > torch.arange(n)[:, None]
        scores = scores.masked_fill(later, -math.inf)
    return scores.softmax(-1) @ v


def _per_head(layer, y):
    weight = layer.weight.expand(y.shape[1], -1, -1)
    bias = layer.bias.expand(y.shape[1], -1, -1)
    return torch.einsum("bhijc,hoc->bhijo", y, weight) + bias[None, :, None]


SCORERS = st.fixed_dictionaries(
    {
        "d_prime": st.none() | st.integers(1, 5),
        "hidden": st.lists(st.integers(1, 5), min_size=1, max_size=3),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "score_scale": st.booleans(),
        "per_head": st.booleans(),
        "projection_bias": st.booleans(),
        "backend": st.sampled_from(["eager", "auto"]),  # in float64 auto is chunked
    }
)


@settings(max_examples=60, deadline=None)
@given(SCORERS, st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_equals_algorithm_1_in_values_and_gradients(options, n, heads, causal, seed):
    torch.manual_seed(seed)
    arch = SimpleNamespace(heads=heads, head_width=6)
    module = NeuralAttention(SimpleNamespace(**options), arch).double()
    inputs = torch.randn(3, 2, heads, n, 6, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(2, heads, n, 6, dtype=torch.float64)
    leaves = [inputs, *module.parameters()]
    found = []
    for output in (module(*inputs, causal=causal), algorithm_1(module, *inputs, causal)):
        found.append([output, *torch.autograd.grad((output * wanted).sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def mechanism(name, *overrides):
    cfg = config(f"model={name}", "scale=smoke", *overrides)
    torch.manual_seed(1)
    return ATTENTION[cfg.model.mechanism](cfg.model, cfg.arch), cfg.arch


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_no_leak_from_the_future(name, n):
    module, arch = mechanism(name)
    inputs = torch.randn(3, 2, arch.heads, n, arch.head_width)
    later = inputs.clone()
    later[..., n // 2 :, :] += 1
    before, after = (module(*x, causal=True) for x in (inputs, later))
    assert torch.equal(before[..., : n // 2, :], after[..., : n // 2, :])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_averages_that_forget_key_order(name):
    module, arch = mechanism(name)
    q, k, v = torch.randn(3, 2, arch.heads, 13, arch.head_width, dtype=torch.float64)
    module.double()
    order = torch.randperm(13)
    output = module(q, k, v, causal=False)
    torch.testing.assert_close(output, module(q, k[..., order, :], v[..., order, :], causal=False))
    ones = torch.ones_like(v)
    torch.testing.assert_close(module(q, k, ones, causal=True), ones)
    torch.testing.assert_close(module(q, k, ones, causal=False), ones)


@pytest.mark.parametrize("backend", ["eager", "chunked"])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_differences(causal, backend):
    options = "model.activation=tanh", "model.per_head=true", f"model.backend={backend}"
    module, arch = mechanism("neural_d2", *options)
    module.double()
    shape = (3, 1, arch.heads, 5, arch.head_width)
    inputs = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: module(*x, causal=causal), inputs)
