"""Every mechanism against its equation, pair by pair, and what any mechanism must keep."""

import math
from copy import deepcopy
from functools import cache

import pytest
import torch
from conftest import MODELS, config, prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.functional import ACTIVATIONS
from attnlab.models.attention import build_attention
from attnlab.models.attention.base import Attention
from attnlab.models.attention.cog import CogAttention
from attnlab.models.attention.dagpam import DualAttention
from attnlab.models.attention.identity import IdentityAttention
from attnlab.models.attention.neural import NeuralAttention
from attnlab.models.transformer import build_model


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
).filter(lambda options: options["d_prime"] or not options["projection_bias"])


@settings(max_examples=60)
@given(SCORERS, st.integers(1, 9), st.integers(1, 3), st.booleans(), st.integers(0, 2**31))
def test_equals_algorithm_1_in_values_and_gradients(options, n, heads, causal, seed):
    torch.manual_seed(seed)
    module = NeuralAttention(heads, 6, **options).double()
    inputs = torch.randn(3, 2, heads, n, 6, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(2, heads, n, 6, dtype=torch.float64)
    leaves = [inputs, *module.parameters()]
    found = []
    for output in (module(*inputs, causal=causal), algorithm_1(module, *inputs, causal)):
        found.append([output, *torch.autograd.grad((output * wanted).sum(), leaves)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


# Every mechanism, and what its options make different.
VARIANTS = {
    **{name: (name,) for name in MODELS},
    "expressive softmax_square": ("expressive", "model.form=softmax_square"),
    "expressive at a temperature": ("expressive", "model.temperature=3.0"),
    "expressive at a learned one": ("expressive_tempered", "model.temperature=0.4"),
    "dagpam per head": ("dagpam", "model.per_head=true", "model.lambda_minus=0.25"),
    "additive per head": ("additive", "model.per_head=true", "model.hidden=3"),
    "qk_norm with gain": ("qk_norm", "model.gain=true"),
    "dot product of a body with qk_norm": ("dot_product", "arch.qk_norm=rms_gain"),
    "neural eager": ("neural_d2", "model.backend=eager", "model.per_head=true"),
}
HEADS, WIDTH = 2, 16
SHAPES = st.tuples(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6))  # B, N, M


def mechanism(name, *overrides):
    """A mechanism as shipped, in a body of 2 heads of width 16."""
    cfg = configured(name, *overrides)
    torch.manual_seed(1)
    module = build_attention(cfg.model, cfg.arch)
    with torch.no_grad():
        for part in module.modules():
            if list(part.parameters(recurse=False)):
                part.reset_parameters()
        for norm in (m for m in module.modules() if isinstance(m, torch.nn.RMSNorm)):
            if norm.weight is not None:  # gains start at 1, which shows nothing
                norm.weight.uniform_(0.5, 1.5)
    return module


@cache
def configured(name, *overrides):
    model, *more = VARIANTS[name]
    body = ("scale=smoke", f"arch.heads={HEADS}", f"arch.width={HEADS * WIDTH}")
    return config(f"model={model}", *body, *more, *overrides)


def loop(equation, module, q, k, visible):
    """Weights of one head, pair by pair, from an equation of PAIRWISE. q (N, D), k (M, D);
    `module` has one head's parameters.
    """
    rows = []
    for i, query in enumerate(q):
        seen = [j for j in range(len(k)) if visible[i, j]]
        row = torch.zeros(len(k), dtype=q.dtype)
        if equation is None:  # identity: by its place, whatever it contains
            weights = [float(j == i + len(k) - len(q)) for j in seen]
        else:
            weights = equation(module, query, k[seen])
        for j, weight in zip(seen, weights, strict=True):
            row[j] = weight
        rows.append(row)
    return torch.stack(rows)


def softmax(scores):
    scores = list(scores)
    total = sum(math.exp(s) for s in scores)
    return [math.exp(s) / total for s in scores]


def dot(query, keys):
    return [float(query @ key) / math.sqrt(len(query)) for key in keys]


def dot_product(module, query, keys):
    if module.norm_q is None:
        return softmax(dot(query, keys))
    query, *keys = (
        x / math.sqrt(sum(float(e) ** 2 for e in x) / len(x) + 1e-6) for x in (query, *keys)
    )
    if module.norm_q.weight is not None:
        query, keys = query * module.norm_q.weight, [key * module.norm_k.weight for key in keys]
    return softmax(dot(query, keys))


def neural(module, query, keys):
    scores = []
    for key in keys:
        a, b = query, key
        if module.project:
            a, b = (p.weight[0] @ x for p, x in zip(module.project, (query, key), strict=True))
        y = torch.cat((a, b))
        *hidden, last = module.score_network
        for layer in hidden:
            act = ACTIVATIONS[module.score_network.activation]
            y = act(layer.weight[0] @ y + layer.bias[0, 0])
        scores.append(float(last.weight[0, 0] @ y + last.bias[0, 0, 0]) * module.scale)
    return softmax(scores)


def additive(module, query, keys):
    w_q, w_k, w_v = (
        m.weight[0] for m in (module.score.query, module.score.key, module.score.value)
    )
    return softmax([float(w_v[0] @ torch.tanh(w_q @ query + w_k @ key)) for key in keys])


def expressive(module, query, keys):
    temperature = module.fixed_temperature
    if module.temperature:
        temperature = math.exp(module.temperature.log_value)
    squares = [(float(query @ key) / temperature) ** 2 for key in keys]
    if module.form == "softmax_square":
        return softmax(squares)
    raw = [z / (1 + z) for z in squares]
    return [w / sum(raw) for w in raw]


def dagpam(module, query, keys):
    plus = softmax(dot(query, keys))
    minus = softmax(dot(module.negative_query.weight[0] @ query.relu(), keys))
    gain, loss = module.lambdas.value.flatten().tolist()
    return [(1 + gain) * p - loss * m for p, m in zip(plus, minus, strict=True)]


def cog(module, query, keys):
    p = dot(query, keys)
    return [math.copysign(a, x) for a, x in zip(softmax(map(abs, p)), p, strict=True)]


def gaussian_keys(module, query, keys):
    shares = module.mixture.logit.flatten().softmax(0).tolist()
    shifts = module.mixture.shift.flatten(0, 2)
    near = []
    for key in keys:
        distances = [float((query - key - b).square().sum()) for b in shifts]
        terms = zip(shares, distances, strict=True)
        near.append(sum(pi * math.exp(-d / (2 * math.sqrt(len(key)))) for pi, d in terms))
    return [a / sum(near) for a in near]


PAIRWISE = {  # mechanism -> weights of one query, from its equation
    "dot_product": dot_product,
    "dot_product_wide": dot_product,
    "qk_norm": dot_product,
    "uniform": lambda module, query, keys: [1 / len(keys) for _ in keys],
    "identity": None,
    "neural": neural,
    "additive": additive,
    "expressive": expressive,
    "dagpam": dagpam,
    "cog": cog,
    "gaussian_keys": gaussian_keys,
}


def one_head(module, head):
    """A copy whose parameters are those of one head."""
    copy = deepcopy(module)
    for name, parameter in copy.named_parameters():
        dim = 1 if ".mixture." in f".{name}" or ".lambdas." in f".{name}" else 0
        if parameter.dim() > dim and parameter.shape[dim] == HEADS:
            parameter.data = parameter.data.narrow(dim, head, 1)
    return copy


def random_mask(shape, seed):
    """Random, but every query sees at least one key."""
    generator = torch.Generator().manual_seed(seed)
    _, n, m = shape
    visible = torch.rand(n, m, generator=generator) < 0.6
    visible[torch.arange(n), torch.randint(m, (n,), generator=generator)] = True
    return visible


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=6)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_weights_equal_a_loop_over_pairs(name, shape, seed):
    module = mechanism(name).double()
    batch, n, m = shape
    torch.manual_seed(seed)
    q = torch.randn(batch, HEADS, n, WIDTH, dtype=torch.float64)
    k = torch.randn(batch, HEADS, m, WIDTH, dtype=torch.float64)
    visible = random_mask(shape, seed)
    equation = PAIRWISE.get(kind := configured(name).model.mechanism, "missing")
    assert equation != "missing", (
        f"{kind}: write its equation in PAIRWISE (docs/your-mechanism.md)"
    )
    with torch.no_grad():
        weights = module.weights(q, k, visible)
        assert torch.equal(weights[..., ~visible], torch.zeros_like(weights[..., ~visible]))
        for b in range(batch):
            for head in range(HEADS):
                alone = one_head(module, head)
                expected = loop(equation, alone, q[b, head], k[b, head], visible)
                torch.testing.assert_close(weights[b, head], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=6)
@given(shape=SHAPES, causal=st.booleans(), seed=st.integers(0, 2**31))
def test_forward_mixes_values_by_the_weights(name, shape, causal, seed):
    """Whatever the fast way: its values and gradients are those of weights @ v."""
    module = mechanism(name).double()
    batch, n, m = shape
    if causal and configured(name).model.mechanism == "neural":
        m = max(n, m)  # its kernels refuse queries that see no key
    torch.manual_seed(seed)
    q = torch.randn(batch, HEADS, n, WIDTH, dtype=torch.float64, requires_grad=True)
    k, v = torch.randn(2, batch, HEADS, m, WIDTH, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn(batch, HEADS, n, WIDTH, dtype=torch.float64)
    leaves = [q, k, v, *(p for p in module.parameters() if p.requires_grad)]
    found = []
    for output in (
        module(q, k, v, causal=causal),
        Attention.forward(module, q, k, v, causal=causal),
    ):
        # uniform and identity do not depend on q and k: gradients of 0
        grads = torch.autograd.grad((output * upstream).sum(), leaves, materialize_grads=True)
        found.append([output, *grads])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("causal", [False, True])
def test_uniform_attention_sees_no_query(causal):
    k, v = torch.randn(2, 1, HEADS, 5, WIDTH).bfloat16()
    q = torch.full((1, HEADS, 5, WIDTH), torch.inf)
    out = mechanism("uniform")(q, k, v, causal=causal)
    assert out.dtype == v.dtype and torch.equal(out[:, :, -1], v.float().mean(-2).bfloat16())


@pytest.mark.parametrize("name", VARIANTS)
@settings(max_examples=6)
@given(shape=SHAPES, seed=st.integers(0, 2**31))
def test_row_sums(name, shape, seed):
    """1; 1 + lambda+ - lambda- for daGPAM; absolute values that sum to 1 for cog attention; 0 for
    identity attention where a query does not see itself.
    """
    module = mechanism(name)
    batch, n, m = shape
    torch.manual_seed(seed)
    q, k = torch.randn(batch, HEADS, n, WIDTH), torch.randn(batch, HEADS, m, WIDTH)
    with torch.no_grad():
        visible = random_mask(shape, seed)
        weights = module.weights(q, k, visible)
        if isinstance(module, CogAttention):
            weights = weights.abs()
        expected = torch.ones(batch, HEADS, n)
        if isinstance(module, IdentityAttention):
            places = [i + m - n for i in range(n)]
            itself = [j >= 0 and bool(visible[i, j]) for i, j in enumerate(places)]
            expected = expected * torch.tensor(itself)
        if isinstance(module, DualAttention):
            gain, loss = module.lambdas.value
            expected = expected * (1 + gain - loss)[..., 0]
    torch.testing.assert_close(weights.sum(-1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("n", [1, 2, 17])
def test_no_leak_from_the_future(name, n):
    module = mechanism(name)
    inputs = torch.randn(3, 2, HEADS, n, WIDTH)
    later = inputs.clone()
    later[..., n // 2 :, :] += 1
    before, after = (module(*x, causal=True) for x in (inputs, later))
    leaks = not torch.equal(before[..., : n // 2, :], after[..., : n // 2, :])
    assert not leaks, "what a causal query gets depends on keys behind it"
    assert not torch.equal(before, after)


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "identity"])
def test_order_of_keys_makes_no_difference(name):
    module = mechanism(name).double()
    q, k, v = torch.randn(3, 2, HEADS, 13, WIDTH, dtype=torch.float64)
    order = torch.randperm(13)
    output = module(q, k, v, causal=False)
    torch.testing.assert_close(output, module(q, k[..., order, :], v[..., order, :], causal=False))


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["random", "zero", "large", "masked"])
def test_nothing_but_numbers(name, dtype, case):
    """Odd lengths in half precision, all-zero scores, large ones, rows that see no key: values and
    gradients stay finite, and a row that sees nothing gets nothing.
    """
    module = mechanism(name)
    torch.manual_seed(0)
    size = {"zero": 0.0, "large": 30.0}.get(case, 1.0)
    inputs = (size * torch.randn(3, 2, HEADS, 7, WIDTH)).to(dtype).requires_grad_()
    q, k, v = inputs
    visible = torch.ones(7, 7, dtype=torch.bool).tril()
    if case == "masked":
        visible[3] = False
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        weights = module.weights(q, k, visible)
        outputs = [weights.to(v.dtype) @ v, module(q, k, v, causal=True)]
    assert weights.dtype == torch.float32
    leaves = [inputs, *(p for p in module.parameters() if p.requires_grad)]
    for output in outputs:
        grads = torch.autograd.grad(
            output.float().sum(), leaves, retain_graph=True, allow_unused=True
        )
        bad = not output.isfinite().all()
        assert not bad, "an output is not finite (rows that see no key: masked_softmax gives 0)"
        bad = any(g is not None and not g.isfinite().all() for g in grads)
        assert not bad, "a gradient is not finite (a root or a division at 0, or an overflow?)"
    if case == "masked":
        bad = weights[..., 3, :].any()
        assert not bad, "a row that sees no key must have weights 0 (see masked_softmax)"


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [10.0, 100.0])
def test_scores_have_more_than_16_bits(name, dtype, size):
    """What autocast makes of 16-bit inputs is the float32 result of the same inputs, rounded once;
    scores of 10,000 overflow nowhere.
    """
    module = mechanism(name)
    torch.manual_seed(0)
    q, k, v = (size * torch.randn(3, 2, HEADS, 7, WIDTH)).to(dtype)
    with torch.no_grad(), torch.autocast("cpu", dtype):
        output = module(q, k, v, causal=True).float()
    assert output.isfinite().all()
    if name.startswith("dagpam"):
        return  # its negative queries come out of a 16-bit matrix product
    with torch.no_grad():
        wanted = module(q.float(), k.float(), v.float(), causal=True)
    error = (output - wanted).abs().max() / v.float().abs().max()
    assert error < 4 * torch.finfo(dtype).eps


def test_a_small_lambda_counts_in_16_bits():
    """1 + 0.003 is 1 in bfloat16."""
    q, k, v = torch.randn(3, 1, HEADS, 64, WIDTH).bfloat16()
    one, other = (
        mechanism("dagpam", f"model.lambda_plus={plus}", "model.lambda_minus=0.0")
        for plus in (0.0, 0.003)
    )
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(*(m(q, k, v, causal=True) for m in (one, other)))


@pytest.mark.parametrize("gain", [True, False])
def test_normalised_queries_and_keys_have_no_length(gain):
    """Scores are sqrt(D) times a cosine: neither 100 q nor a query of zeros changes what they are.

    As a setting of the body and as a control they are the same, bit for bit.
    """
    kind = "rms_gain" if gain else "rms"
    control = mechanism("qk_norm", f"model.gain={gain}")
    setting = mechanism("dot_product", f"arch.qk_norm={kind}")
    q, k, v = torch.randn(3, 2, HEADS, 9, WIDTH)
    scores = control.scores(q, k)
    if not gain:
        cosine = torch.nn.functional.cosine_similarity(q[..., None, :], k[..., None, :, :], -1)
        torch.testing.assert_close(scores, math.sqrt(WIDTH) * cosine, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(control.scores(100 * q, k), scores, rtol=1e-4, atol=1e-4)
    assert not control.scores(0 * q, k).any()
    assert torch.equal(control(q, k, v, causal=True), setting(q, k, v, causal=True))


def test_only_dot_product_layers_have_the_norm_of_the_body():
    for name in VARIANTS:
        if name != "qk_norm with gain" and "dot" not in name:
            module = mechanism(name, "arch.qk_norm=rms_gain")
            assert module.state_dict().keys() == mechanism(name).state_dict().keys()


def test_dual_attention_without_its_lambdas_is_the_dot_product():
    module = mechanism("dagpam", "model.lambda_plus=0.0", "model.lambda_minus=0.0")
    inputs = torch.randn(3, 2, HEADS, 17, WIDTH)
    baseline = mechanism("dot_product")
    for causal in (True, False):
        assert torch.equal(module(*inputs, causal=causal), baseline(*inputs, causal=causal))
    assert torch.equal(module.weights(*inputs[:2], None), baseline.weights(*inputs[:2], None))


@pytest.mark.parametrize("trainable", [True, False])
def test_lambdas_are_fixed_or_learned(trainable):
    module = mechanism("dagpam", f"model.trainable={str(trainable).lower()}")
    inputs = torch.randn(3, 2, HEADS, 5, WIDTH)
    module(*inputs, causal=True).square().sum().backward()
    assert (module.lambdas.value.grad is not None) == trainable
    assert module.negative_query.weight.grad.any()


@pytest.mark.parametrize("form", ["rational", "softmax_square"])
def test_expressive_attention_does_not_see_the_sign_of_a_query(form):
    module = mechanism("expressive", f"model.form={form}")
    q, k, v = torch.randn(3, 2, HEADS, 9, WIDTH)
    assert torch.equal(module(q, k, v, causal=True), module(-q, k, v, causal=True))


@pytest.mark.parametrize("form", ["rational", "softmax_square"])
def test_expressive_attention_to_orthogonal_keys_is_uniform(form):
    module = mechanism("expressive", f"model.form={form}")
    q, k = (
        torch.eye(WIDTH)[:1].expand(1, HEADS, 3, -1),
        torch.eye(WIDTH)[1:4].expand(1, HEADS, -1, -1),
    )
    visible = torch.ones(3, 3, dtype=torch.bool).tril()
    expected = visible / visible.sum(-1, keepdim=True)
    torch.testing.assert_close(module.weights(q, k, visible), expected.expand(1, HEADS, -1, -1))


@pytest.mark.parametrize("backend", ["eager", "auto"])
def test_additive_is_neural_attention_with_one_tanh_layer_and_no_scale(backend):
    options = (
        *("model.d_prime=null", "model.hidden=[5]", "model.activation=tanh"),
        *("model.score_scale=false", f"model.backend={backend}"),
    )
    neural = mechanism("neural_d2", *options)
    additive = mechanism("additive", "model.hidden=5", f"model.backend={backend}")
    first, last = neural.score_network
    with torch.no_grad():
        first.weight.copy_(torch.cat((additive.score.query.weight, additive.score.key.weight), -1))
        last.weight.copy_(additive.score.value.weight)
        first.bias.zero_()
        last.bias.zero_()
    inputs = torch.randn(3, 2, HEADS, 11, WIDTH)
    ours, theirs = (m(*inputs, causal=True) for m in (additive, neural))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["neural eager", *(n for n in VARIANTS if "neural" not in n)])
@pytest.mark.parametrize("causal", [True, False])
def test_gradients_by_differences(name, causal):
    module = mechanism(name).double()
    inputs = torch.randn(3, 1, HEADS, 4, WIDTH, dtype=torch.float64, requires_grad=True)
    parameters = [p for p in module.parameters() if p.requires_grad]

    def output(x, *_):
        return module(*x, causal=causal)

    assert torch.autograd.gradcheck(output, (inputs, *parameters))


@pytest.mark.parametrize("norm", ["pre", "post"])
def test_expressive_weights_start_between_0_and_1_in_the_fair_ladder(norm):
    """In every layer z^2 / (1 + z^2) is below 0.1 and above 0.9 for at least 5 % of the pairs."""
    cfg = config("experiment=ladder_fair", "model=expressive", f"arch.norm={norm}")
    data = prepared(cfg)
    net = build_model(cfg.arch, cfg.model, 0, **data.shape(cfg.arch)).eval()
    seen = []

    def look(_, args):
        square = (args[0] @ args[1].mT).square()[..., torch.ones(64, 64).tril().bool()]
        seen.append(square / (1 + square))

    for block in net.blocks:
        block.attention.mechanism.register_forward_pre_hook(look)
    with torch.no_grad():
        net(data.train().__getitems__([(0, i) for i in range(8)])[0])
    assert len(seen) == 2
    for part in seen:
        assert (part < 0.1).float().mean() > 0.05 and (part > 0.9).float().mean() > 0.05
