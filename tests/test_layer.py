"""The layer outside of our own bodies: the public names, and masks by every mechanism and backend
of Neural Attention.
"""

import subprocess
import sys

import pytest
import torch
from conftest import MODELS, config, model_of
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attention import (
    HEADS,
    PAIRWISE,
    VARIANTS,
    WIDTH,
    configured,
    loop,
    mechanism,
    one_head,
    random_mask,
)

from attnlab import NeuralAttention
from attnlab.benchmarks.generation import generation
from attnlab.errors import BadInput
from attnlab.functional import ACTIVATIONS
from attnlab.inspection.generate import detokenize, generate
from attnlab.inspection.trained import trained
from attnlab.models.attention.base import Attention
from attnlab.run import run


def test_public_names_wait_for_torch_and_need_no_hydra():
    code = (
        "import sys, attnlab; assert 'torch' not in sys.modules;"
        "from attnlab import *; assert NeuralAttention and neural_attention;"
        "assert 'hydra' not in sys.modules; assert not hasattr(attnlab, 'nothing')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"d_prime": 0}, "d_prime=0: must be a whole number from 1 on"),
        ({"d_prime": 2.5}, "d_prime=2.5: must be a whole number from 1 on"),
        ({"hidden": [4, 0]}, "hidden=0: must be a whole number from 1 on"),
        ({"hidden": 8}, "hidden=8: must be a list of widths"),
        ({"hidden": []}, r"hidden=\[\]: must be a list of widths"),
        ({"d_prime": None, "projection_bias": True}, "d_prime=null has no projection"),
        ({"activation": "swish"}, "activation=swish: must be one of relu"),
    ],
)
def test_wrong_options_are_refused(options, said):
    with pytest.raises(BadInput, match=said):
        NeuralAttention(HEADS, WIDTH, **options)


@pytest.mark.parametrize("name", VARIANTS)
def test_the_result_has_the_dtype_of_the_values(name):
    """Under autocast too, by whichever backend; values may have another dtype than queries."""
    module = mechanism(name)
    q, k, v = torch.randn(3, 1, HEADS, 5, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        assert module(q, k, v, causal=True).dtype == torch.float32
    assert module(q, k, v.bfloat16(), causal=True).dtype == torch.bfloat16


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_query_that_sees_no_key_makes_no_nan_on_the_way(name):
    module = mechanism(name)
    q, k, v = torch.randn(3, 1, HEADS, 4, WIDTH).requires_grad_()
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
    mask[..., 2, :] = False
    with torch.autograd.detect_anomaly(check_nan=True):
        module(q, k, v, causal=True, mask=mask).sum().backward()


@pytest.mark.parametrize("name", [name for name in VARIANTS if "uniform" in name])
def test_uniform_attention_to_no_keys_is_0(name):
    q, none = torch.randn(1, HEADS, 3, WIDTH), torch.randn(1, HEADS, 0, WIDTH)
    assert not mechanism(name)(q, none, none, causal=False).any()


def test_tokens_before_heads_are_refused():
    x = torch.randn(2, 10, HEADS, WIDTH)
    with pytest.raises(ValueError, match=rf"q must be \(B, {HEADS} heads, N, D\); got \(2, 10"):
        NeuralAttention(HEADS, WIDTH)(x, x, x, causal=True)


@pytest.mark.parametrize("per_head", [True, False])
def test_names_of_parameters_stay(per_head):
    """Saved models have them."""
    module = NeuralAttention(HEADS, WIDTH, hidden=[4, 3], per_head=per_head, projection_bias=True)
    layers = ["project_q", "project_k", *(f"score_network.{i}" for i in range(3))]
    assert list(module.state_dict()) == [f"{x}.{y}" for x in layers for y in ("weight", "bias")]
    assert {len(x) for x in module.state_dict().values()} == {HEADS if per_head else 1}


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize(("causal", "padding"), [(True, True), (False, True), (True, False)])
def test_masked_attention_is_the_equation_over_visible_keys(name, causal, padding):
    """A loop over pairs, with key padding or a mask for each query, whatever hidden keys are."""
    module = mechanism(name).double()
    torch.manual_seed(3)
    q, k, v = torch.randn(3, 2, HEADS, 4, WIDTH, dtype=torch.float64)
    mask = torch.stack([random_mask((2, 4, 4), seed) for seed in (1, 2)]).unsqueeze(1)
    mask = mask | torch.eye(4, dtype=torch.bool)
    if padding:
        mask = (torch.arange(4) < torch.tensor([[4], [2]]))[:, None, None]
    visible = mask.expand(2, 1, 4, 4) & (torch.ones(4, 4).tril() > 0 if causal else True)
    unseen = ~visible.any(2)[:, 0]
    k, v = (x.masked_fill(unseen[:, None, :, None], 9.0) for x in (k, v))
    equation = PAIRWISE[configured(name).model.mechanism]
    with torch.no_grad():
        out = module(q, k, v, causal=causal, mask=mask)
        for b in range(2):
            for head in range(HEADS):
                weights = loop(
                    equation, one_head(module, head), q[b, head], k[b, head], visible[b, 0]
                )
                torch.testing.assert_close(
                    out[b, head], weights @ v[b, head], rtol=1e-9, atol=1e-11
                )


PADDED = st.tuples(st.integers(1, 6), st.integers(1, 5), st.booleans(), st.integers(0, 2**31))


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=5)
@given(PADDED)
def test_padded_keys_do_not_matter(name, problem):
    """Tokens behind a sequence are padding: rows of real tokens are those of the sequence alone,
    whatever the padding holds.
    """
    n, more, causal, seed = problem
    module = mechanism(name).double()
    torch.manual_seed(seed)
    inputs = torch.randn(3, 2, HEADS, n + more, WIDTH, dtype=torch.float64)
    mask = (torch.arange(n + more) < n).view(1, 1, 1, -1)
    other = inputs.clone()
    other[1:, ..., n:, :] = 3.0
    with torch.no_grad():
        short = module(*inputs[..., :n, :], causal=causal)
        for x in (inputs, other):
            out = module(*x, causal=causal, mask=mask)
            torch.testing.assert_close(out[..., :n, :], short, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_any_mask_gives_the_weights_of_what_is_left(name, causal):
    """Values and gradients of the fast way are those of weights @ v; a blind query gets 0."""
    torch.manual_seed(0)
    module = mechanism(name).double()
    mask = torch.rand(2, 1, 5, 7) < 0.5
    mask[0, :, 2] = False
    q = torch.randn(2, HEADS, 5, WIDTH, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, 2, HEADS, 7, WIDTH, dtype=torch.float64, requires_grad=True)
    leaves = [q, k, v, *(p for p in module.parameters() if p.requires_grad)]
    found = []
    for forward in (module.forward, lambda *x, **how: Attention.forward(module, *x, **how)):
        out = forward(q, k, v, causal=causal, mask=mask)
        grads = torch.autograd.grad(out.square().sum(), leaves, materialize_grads=True)
        assert not out[0, :, 2].any()
        found.append([out, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
@pytest.mark.parametrize("hidden", [[4], [4, 3]], ids=str)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["chunked", "cpp"])
def test_fused_backends_hide_padded_keys(backend, causal, hidden, activation):
    """Values and every gradient against eager in float64. Keys are hidden in front (rows that see
    nothing, if causal), behind, and all of them.
    """
    torch.manual_seed(0)
    dtype = torch.float64 if backend == "chunked" else torch.float32
    options = {"hidden": hidden, "activation": activation, "per_head": True}
    exact = NeuralAttention(HEADS, WIDTH, backend="eager", **options).double()
    fused = NeuralAttention(HEADS, WIDTH, backend=backend, **options).to(dtype)
    fused.load_state_dict(exact.state_dict())
    inputs = torch.randn(3, 3, HEADS, 70, WIDTH, dtype=dtype)
    mask = torch.ones(3, 1, 1, 70, dtype=torch.bool)
    mask[0, ..., :9] = mask[1, ..., 50:] = mask[2] = False
    found = []
    for module in (fused, exact):
        x = inputs.to(module.score_network[0].weight.dtype).requires_grad_()
        out = module(*x, causal=causal, mask=mask)
        grads = torch.autograd.grad(out.square().sum(), [x, *module.parameters()])
        assert not out[2].any() and not grads[0][1:, :, :, :9][:, 0].any()
        found.append([y.double() for y in (out, *grads)])
    limit = 1e-9 if dtype == torch.float64 else 1e-4
    for ours, theirs in zip(*found, strict=True):
        assert (ours - theirs).abs().max() <= limit * max(1, theirs.abs().max())


@pytest.mark.parametrize("backend", ["chunked", "cpp"])
def test_a_mask_that_a_backend_cannot_serve_is_refused(backend):
    x = torch.randn(1, HEADS, 4, WIDTH)
    mask = torch.ones(4, 4, dtype=torch.bool).triu()
    with pytest.raises(BadInput, match=rf"backend={backend}: a mask that differs between queries"):
        NeuralAttention(HEADS, WIDTH, backend=backend)(x, x, x, causal=False, mask=mask)


@pytest.mark.parametrize("name", ["dot_product", "neural_d2", "uniform"])
@pytest.mark.parametrize(
    "mask,said",
    [(torch.ones(1, 1, 1, 5) > 0, "mask must broadcast"), (torch.ones(4), "must be boolean")],
)
def test_a_mask_that_does_not_fit_is_refused(name, mask, said):
    x = torch.randn(1, HEADS, 4, WIDTH)
    with pytest.raises(ValueError, match=said):
        mechanism(name)(x, x, x, causal=False, mask=mask)


LANGUAGE_MODELS = [
    *((name, "sinusoidal", "post") for name in MODELS),
    *(
        ("neural_d2", place, "pre")
        for place in ("sinusoidal_released", "learned", "rotary", "alibi", "none")
    ),
]


@pytest.mark.parametrize(("name", "positions", "norm"), LANGUAGE_MODELS)
def test_cached_logits_are_those_of_the_whole_sequence(name, positions, norm):
    """In pieces of one and of several tokens, up to the longest sequence."""
    layers = config(f"model={name}").model
    chosen = [f"model.{layers.layers_key}=all"] if hasattr(layers, layers.layers_key) else []
    body = (f"arch.positions={positions}", f"arch.norm={norm}")
    model = model_of(config("scale=smoke", f"model={name}", *body, *chosen), 300, 300, 24)
    model = model.double().eval()
    ids = torch.randint(0, 300, (2, 24))
    cache = model.new_cache()
    with torch.no_grad():
        pieces = [model(piece, cache) for piece in ids.split([5, 1, 1, 10, 1, 6], dim=1)]
        torch.testing.assert_close(torch.cat(pieces, 1), model(ids), rtol=1e-9, atol=1e-11)


def test_generated_text_does_not_depend_on_the_cache(cache, tmp_path):
    """Also where the window slides: the prompt is about to fill it. Its ends of lines are the
    tokens that training has for them.
    """
    settings = ("logger=none", f"runtime.cache={cache}", "trainer.max_steps=2")
    cfg = config("scale=smoke", "arch.positions=rotary", *settings)
    run(cfg, tmp_path / "run")
    block, device = cfg.data.sequence_length, torch.device("cpu")
    tokenizer, model = trained(cfg, tmp_path / "run", device)
    lines = "The statement[SEP]" * (block // 3)
    ids = tokenizer.encode(lines, add_special_tokens=False).ids[: block - 6]
    prompt = detokenize(tokenizer, ids)
    assert "\n" in prompt and "[SEP]" not in prompt
    text = generate(cfg, tmp_path / "run", prompt, 12, 0, 1, 0, device)
    assert len(ids) < block < len(ids) + 12
    for _ in range(12):
        with torch.no_grad():
            ids.append(int(model(torch.tensor([ids[-block:]]))[0, -1].argmax()))
    assert text == detokenize(tokenizer, ids)


def test_the_benchmark_of_generation_generates_the_same():
    cfg = config("model=neural_d2", "scale=smoke")
    (row,) = generation({"neural_d2": cfg}, 6, torch.device("cpu"))
    assert row["same_tokens"] and row["ratio_to_uncached"] > 0 and row["tokens"] == 6
