"""ALiBi: exact for every mechanism that has a softmax, refused for all others."""

import math

import pytest
import torch
from conftest import config, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import (
    HEADS,
    PAIRWISE,
    VARIANTS,
    WIDTH,
    configured,
    dot,
    loop,
    mechanism,
    one_head,
    softmax,
)

from attnlab.errors import BadInput
from attnlab.inspection.attention_maps import maps
from attnlab.models.attention.base import Attention
from attnlab.models.positions import Alibi
from attnlab.models.transformer import try_mechanism
from attnlab.training.diagnostics import saturation

RATIONAL = {name for name in VARIANTS if "expressive" in name and "softmax" not in name}
NONE = {"cog", "identity", *RATIONAL}
BIASED = [name for name in VARIANTS if name not in NONE]


def test_slopes_and_distances():
    """arXiv 2108.12409, section 3: 1/2, 1/4, ... 1/256 for 8 heads; 12 heads as released."""
    assert Alibi(8).slopes.flatten().tolist() == [2.0**-h for h in range(1, 9)]
    twelve = [2.0**-h for h in range(1, 9)] + [2**-0.5, 2**-1.5, 2**-2.5, 2**-3.5]
    assert Alibi(12).slopes.flatten().tolist() == pytest.approx(twelve)
    for queries, keys in ((5, 5), (2, 5), (1, 1)):
        bias = Alibi(8)(queries, keys)
        for h in range(8):
            for i in range(queries):
                at = i + keys - queries
                assert bias[h, i, : at + 1].tolist() == [
                    -(at - j) / 2 ** (h + 1) for j in range(at + 1)
                ]


def with_bias(name, module, q, k, visible, bias):
    """Weights of one head, pair by pair: the softmax of s + b has the weights of the softmax of s
    times exp(b), normalised. bias (N, M).
    """
    if name.startswith("dagpam"):
        gain, loss = module.lambdas.value.flatten().tolist()
        negative = q.relu() @ module.negative_query.weight[0].T
        rows = torch.zeros(len(q), len(k), dtype=q.dtype)
        for i in range(len(q)):
            seen = [j for j in range(len(k)) if visible[i, j]]
            parts = [
                softmax(
                    s + float(bias[i, j]) for s, j in zip(dot(x[i], k[seen]), seen, strict=True)
                )
                for x in (q, negative)
            ]
            for j, plus, minus in zip(seen, *parts, strict=True):
                rows[i, j] = (1 + gain) * plus - loss * minus
        return rows
    weights = loop(PAIRWISE[configured(name).model.mechanism], module, q, k, visible)
    raised = weights * bias.exp()
    return raised / raised.sum(-1, keepdim=True)


@pytest.mark.parametrize("name", BIASED)
@settings(max_examples=3)
@given(n=st.integers(1, 5), more=st.integers(0, 3), seed=st.integers(0, 2**31))
def test_weights_with_a_bias_equal_a_loop_over_pairs(name, n, more, seed):
    module, m = mechanism(name).double(), n + more
    torch.manual_seed(seed)
    q = torch.randn(2, HEADS, n, WIDTH, dtype=torch.float64)
    k = torch.randn(2, HEADS, m, WIDTH, dtype=torch.float64)
    bias = Alibi(HEADS)(n, m)
    visible = torch.tensor([[j <= i + more for j in range(m)] for i in range(n)])
    with torch.no_grad():
        weights = module.mixing(q, k, causal=True, bias=bias)
        for b in range(2):
            for head in range(HEADS):
                expected = with_bias(
                    name, one_head(module, head), q[b, head], k[b, head], visible,
                    bias[head].double(),
                )  # fmt: skip
                torch.testing.assert_close(weights[b, head], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", BIASED)
@pytest.mark.parametrize("causal", [True, False])
def test_forward_with_a_bias_and_a_mask_mixes_values_by_the_weights(name, causal):
    """Values and gradients of the fast way; a query that sees no key gets 0; the bias counts."""
    torch.manual_seed(0)
    module = mechanism(name).double()
    mask = torch.rand(2, 1, 5, 7) < 0.6
    mask[0, :, 2] = False
    q = torch.randn(2, HEADS, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, HEADS, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    leaves = [q, k, v, *(p for p in module.parameters() if p.requires_grad)]
    bias = Alibi(HEADS)(5, 7)
    for some in (None, mask):
        found = []
        for forward in (module.forward, lambda *x, **how: Attention.forward(module, *x, **how)):
            out = forward(q, k, v, causal=causal, mask=some, bias=bias)
            grads = torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)
            assert some is None or not out[0, :, 2].any()
            found.append([out, *grads])
        for ours, theirs in zip(*found, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)
        without = module(q, k, v, causal=causal, mask=some)
        assert (without - found[0][0]).abs().max() > 1e-3


@pytest.mark.parametrize(
    "model", ["dot_product", "neural_d2", "dagpam", "uniform", "cog", "expressive"]
)
def test_a_model_attends_by_distance_or_is_refused(model):
    """With queries and keys of 0 the weights of every layer are softmax(-m_h (i - j)), in whole
    sequences and in the diagnostics of some of their rows; order of tokens matters.
    """
    section = config(f"model={model}").model
    key = section.layers_key
    everywhere = [f"model.{key}=all"] if hasattr(section, key) else []
    words = (f"model={model}", *everywhere, "scale=smoke", "arch.positions=alibi")
    if model in NONE:
        with pytest.raises(BadInput, match=r"^arch.positions=alibi: model\.") as error:
            config(*words)
        assert "\n" not in str(error.value)
        return
    net = model_of(config(*words), 300, 300, 90).eval()
    ids = torch.arange(80)[None]
    swapped = ids[:, [1, 0, *range(2, 80)]]
    with torch.no_grad():
        assert not torch.allclose(net(ids)[0, -1], net(swapped)[0, -1], atol=1e-6)
        for block in net.blocks:
            block.attention.qkv.weight[: 2 * 32] = 0
        found = maps(net, ids, [block.attention.mechanism for block in net.blocks])
    distance = (torch.arange(80)[:, None] - torch.arange(80)).double()
    for head in range(2):
        raised = torch.exp(-distance / 16 ** (head + 1)).tril()
        expected = (raised / raised.sum(-1, keepdim=True)).float()
        torch.testing.assert_close(
            found[:, head], expected.expand(2, -1, -1), rtol=1e-4, atol=1e-6
        )
    if not net.blocks[0].attention.mechanism.fixed:
        share = found[:, :, [round(i * 79 / 63) for i in range(1, 64)]].double()
        entropy = torch.special.entr(share).sum(-1) / (share > 0).sum(-1).log()
        measured = saturation(net, ids)
        for layer in range(2):
            got = measured[f"attention/{layer}/normalized_entropy"]
            assert got == pytest.approx(entropy[layer].mean().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data=digits", "is defined for causal attention"),
        ("model=neural_d2 model.backend=cpp", "model.backend=cpp: fused kernels take no bias"),
        ("model=additive model.backend=chunked", "model.backend=chunked: fused kernels take"),
        ("model=cog model.layers=[1]", "model.mechanism=cog has no scores"),
    ],
)
def test_what_cannot_take_the_bias_is_one_line(overrides, message):
    with pytest.raises(BadInput) as error:
        config("arch.positions=alibi", *overrides.split())
    assert str(error.value).startswith("arch.positions=alibi: ") and message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(NONE))
def test_no_mechanism_ignores_a_bias(name):
    """Not even if the schema does not know it, as one of the user's own."""
    x = torch.randn(1, HEADS, 4, WIDTH)
    cfg = configured(name)
    arch = cfg.arch.model_copy(update={"positions": "alibi"})
    with pytest.raises(BadInput, match="has no scores that take a bias"):
        try_mechanism(arch, cfg.model, torch.device("cpu"))
    with pytest.raises(ValueError, match="has no scores that take a bias"):
        mechanism(name)(x, x, x, causal=True, bias=Alibi(HEADS)(4, 4))


@pytest.mark.parametrize("backend", ["chunked", "cpp"])
def test_no_fused_backend_ignores_a_bias(backend):
    x = torch.randn(1, HEADS, 4, WIDTH)
    module = mechanism("neural_d2", f"model.backend={backend}")
    with pytest.raises(BadInput, match=rf"^model.backend={backend}: fused kernels take no bias"):
        module(x, x, x, causal=True, bias=Alibi(HEADS)(4, 4))


@pytest.mark.parametrize("name", ["dot_product", "dagpam", "neural_d2", "uniform"])
@pytest.mark.parametrize(
    ("bias", "said"),
    [(torch.zeros(1, 1, 1, 5), "bias must broadcast"), (torch.ones(4) > 0, "bias must be a ten")],
)
def test_a_bias_that_does_not_fit_is_refused(name, bias, said):
    x = torch.randn(1, HEADS, 4, WIDTH)
    with pytest.raises(ValueError, match=said):
        mechanism(name)(x, x, x, causal=False, bias=bias)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_with_a_bias_are_not_rounded_to_16_bits(dtype):
    """As float32 would have it, rounded once, up to the rounding of the values."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, HEADS, 40, WIDTH).to(dtype)
    bias = Alibi(HEADS)(40, 40)
    for name in ("dot_product", "neural_d2", "uniform", "additive"):
        module = mechanism(name)
        with torch.no_grad():
            with torch.autocast("cpu", dtype):
                output = module(q, k, v, causal=True, bias=bias).float()
            wanted = module(q.float(), k.float(), v.float(), causal=True, bias=bias)
        error = (output - wanted).abs().max() / v.float().abs().max()
        assert error < 4 * torch.finfo(dtype).eps, math.log2(error)
