"""Every backend of Neural Attention on this machine against the reference in float64, and how
backends are chosen and built.
"""

import logging
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from conftest import config, metrics
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import library as torch_library
from torch.utils.flop_counter import FlopCounterMode

from attnlab.errors import BadInput
from attnlab.functional import ACTIVATIONS
from attnlab.kernels import api, chunked, cpp_backend, ops
from attnlab.kernels.api import neural_attention
from attnlab.models.attention.base import HeadLinear
from attnlab.models.attention.neural import ScoreNetwork
from attnlab.run import run

BACKENDS = ["chunked", "cpp"]
FLOAT32 = 3e-5  # largest error allowed, relative to the largest number of a tensor
HALF = {torch.bfloat16: 1.6e-2, torch.float16: 2e-3}  # two roundings of the values


@pytest.fixture(scope="module")
def built():
    """All libraries, two compilers at a time."""
    with ThreadPoolExecutor(2) as pool:
        assert not any(pool.map(cpp_backend.build_problem, ACTIVATIONS))


def network(groups, p, hidden, activation, loudness=1.0):
    """A score network whose hidden units are neither all on nor all off."""
    net = ScoreNetwork(groups, [2 * p, *hidden, 1], activation)
    with torch.no_grad():
        net[-1].weight.mul_(loudness)
    return net


def gradients(net, q, k, v, upstream, **options):
    """Output and gradients of q, k, v and the network, in float64."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = neural_attention(*leaves, net, **options)
    found = torch.autograd.grad(out, [*leaves, *net.parameters()], upstream.to(out.dtype))
    return [x.double() for x in (out, *found)]


def compare(backend, net, q, k, v, causal, limit=FLOAT32):
    upstream = torch.randn(*q.shape[:3], v.shape[3]).to(v.dtype)
    options = {"causal": causal, "scale": 1 / math.sqrt(v.shape[3])}
    found = gradients(net, q, k, v, upstream, backend=backend, **options)
    exact = network_in_float64(net)
    wanted = gradients(
        exact, *(x.double() for x in (q, k, v, upstream)), backend="eager", **options
    )
    names = ["out", "q", "k", "v", *(name for name, _ in net.named_parameters())]
    # Gradients of scores are differences of two terms of this size, which cancel for one key.
    size = (upstream.double().norm(dim=-1).max() * v.double().norm(dim=-1).max()).item()
    for name, x, y in zip(names, found, wanted, strict=True):
        floor = 1.0 if name in ("out", "v") else size / 10
        error = (x - y).abs().max().item() / max(y.abs().max().item(), floor)
        assert error <= limit, (name, error)


def network_in_float64(net):
    groups, _, inputs = net[0].weight.shape
    widths = [inputs, *(layer.weight.shape[1] for layer in net)]
    exact = ScoreNetwork(groups, widths, net.activation).double()
    exact.load_state_dict(net.state_dict())
    return exact


@torch.no_grad()
def test_chunked_values_do_not_overflow_where_their_mean_does_not():
    """A sum of 1,024 times 100 is beyond fp16."""
    q, k = torch.randn(2, 1, 1, 1024, 8, dtype=torch.float16)
    v = torch.full((1, 1, 1024, 8), 100.0, dtype=torch.float16)
    net = network(1, 8, [4], "relu")
    out = neural_attention(q, k, v, net, causal=False, scale=1.0, backend="chunked")
    torch.testing.assert_close(out, v, rtol=2e-3, atol=0)


def test_chunked_gradients_of_values_do_not_stop_growing(monkeypatch):
    """A query in each chunk: 600 terms, of which bf16 alone would add the first 256."""
    monkeypatch.setattr(chunked, "PAIRS", 1)
    q, k, v = torch.randn(3, 1, 1, 600, 8)
    net, ones = network(1, 8, [4], "relu"), torch.ones(1, 1, 600, 8)
    options = {"causal": False, "scale": 0.01, "backend": "chunked"}
    exact = gradients(net, q, k, v, ones, **options)[3]
    found = gradients(net, q, k, v.bfloat16(), ones, **options)[3]
    torch.testing.assert_close(found, exact, rtol=1e-2, atol=1e-2)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # by torch.func itself
def test_forward_mode_goes_by_the_reference_and_not_silently_to_0(built):
    q, step = torch.randn(2, 1, 1, 5, 4)
    net = network(1, 4, [3], "tanh")

    def attend(x, backend="auto"):
        return neural_attention(x, x, x, net, causal=True, scale=1.0, backend=backend)

    found = torch.func.jvp(attend, (q,), (step,))[1]
    nearby = (attend(q + 1e-3 * step) - attend(q - 1e-3 * step)) / 2e-3
    torch.testing.assert_close(found, nearby, rtol=1e-2, atol=1e-3)
    with pytest.raises(BadInput, match=r"backend=cpp: torch\.func transforms"):
        torch.func.jvp(lambda x: attend(x, "cpp"), (q,), (step,))


def test_an_activation_of_ones_own_is_computed_by_the_reference(monkeypatch):
    monkeypatch.setitem(ACTIVATIONS, "softsign", torch.nn.functional.softsign)
    net = network(1, 4, [3], "softsign")
    monkeypatch.undo()
    net.forward = lambda q, k, project=None: q @ k.mT
    q = torch.randn(1, 1, 5, 4)
    found = neural_attention(q, q, q, net, causal=True, scale=1.0)
    wanted = F.scaled_dot_product_attention(q, q, q, is_causal=True, scale=1.0)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(BadInput, match="backend=chunked: activation softsign: fused kernels have"):
        neural_attention(q, q, q, net, causal=True, scale=1.0, backend="chunked")


@st.composite
def problems(draw):
    n, extra = draw(st.integers(1, 70)), draw(st.integers(0, 70))
    causal = draw(st.booleans())
    swap = not causal and draw(st.booleans())  # more queries than keys
    return {
        "n": n + extra if swap else n,
        "m": n if swap else n + extra,
        "d": draw(st.integers(8, 128)),
        "p": draw(st.integers(1, 6)),
        "batch": draw(st.integers(1, 2)),
        "heads": draw(st.integers(1, 3)),
        "per_head": draw(st.booleans()),
        "hidden": draw(st.lists(st.integers(1, 19), min_size=1, max_size=2)),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
        "causal": causal,
        "layout": draw(st.sampled_from(["plain", "of a block", "heads last", "expanded"])),
        "loudness": draw(st.sampled_from([1.0, 30.0])),
        "seed": draw(st.integers(0, 2**31)),
    }


PAPER = {"batch": 1, "heads": 2, "per_head": False, "layout": "of a block", "loudness": 1.0}
HEADS_LAST = {"layout": "heads last", "batch": 2, "heads": 4}
RELU = {"activation": "relu", "seed": 0, **PAPER}


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=30)
@given(problems())
@example({"n": 785, "m": 785, "d": 96, "p": 2, "hidden": [2, 1], "causal": False, **RELU})
@example({"n": 1023, "m": 1023, "d": 64, "p": 2, "hidden": [4], "causal": True, **RELU})
@example({"n": 64, "m": 64, "d": 64, "p": 64, "hidden": [128], "causal": True, **RELU})
@example({"n": 70, "m": 70, "d": 96, "p": 96, "hidden": [192], "causal": False, **RELU})
@example({"n": 65, "m": 65, "d": 64, "p": 64, "hidden": [64, 32], "causal": True, **RELU})
@example({"n": 63, "m": 200, "d": 128, "p": 16, "hidden": [16, 8], "causal": True, **RELU})
@example({"n": 1, "m": 500, "d": 64, "p": 2, "hidden": [4], "causal": True, **RELU})
@example({"n": 9, "m": 9, "d": 20, "p": 2, "hidden": [4], "causal": False, **RELU, **HEADS_LAST})
def test_equals_the_float64_reference(built, backend, problem):
    torch.manual_seed(problem["seed"])
    batch, heads, d, p = (problem[key] for key in ("batch", "heads", "d", "p"))

    def tensor(tokens, width):
        if problem["layout"] == "of a block":
            return torch.randn(batch, tokens, heads, width).transpose(1, 2)
        if problem["layout"] == "heads last":  # as einops splits "b n (d h)": channels_last
            return torch.randn(batch, tokens, width, heads).permute(0, 3, 1, 2)
        if problem["layout"] == "expanded":
            return torch.randn(1, 1, tokens, width).expand(batch, heads, -1, -1)
        return torch.randn(batch, heads, tokens, width)

    q, k, v = tensor(problem["n"], p), tensor(problem["m"], p), tensor(problem["m"], d)
    groups = heads if problem["per_head"] else 1
    net = network(groups, p, problem["hidden"], problem["activation"], problem["loudness"])
    limit = FLOAT32 * problem["loudness"]  # an error of a score is one of its softmax
    compare(backend, net, q, k, v, problem["causal"], limit)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_values(backend, dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 70, 16).to(dtype) for _ in range(3))
    for hidden in ([5], [4, 3]):
        compare(backend, network(3, 16, hidden, "gelu"), q, k, v, True, HALF[dtype])


@pytest.mark.parametrize("backend", ["eager", *BACKENDS])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_network(backend, dtype):
    """Scores are computed in float32 from the rounded parameters, by every backend."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 3, 70, 16).to(dtype) for _ in range(3))
    for hidden in ([5], [4, 3]):
        net = network(3, 16, hidden, "gelu", loudness=10.0).to(dtype)
        assert net(q, k).dtype == torch.float32
        compare(backend, net, q, k, v, True, HALF[dtype])


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_equal_scores_average(backend):
    net = network(1, 2, [3], "relu")
    with torch.no_grad():
        net[0].bias.fill_(-100)  # no unit ever fires
    v = torch.randn(1, 2, 90, 24)
    q = torch.randn(1, 2, 90, 2)
    out = neural_attention(q, q, v, net, causal=True, scale=1.0, backend=backend)
    average = v.cumsum(2) / torch.arange(1, 91)[:, None]
    torch.testing.assert_close(out, average, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_not_finite_shows(backend):
    net = network(1, 2, [3], "relu")
    for place in range(2):
        q, k, v = torch.randn(1, 1, 40, 2), torch.randn(1, 1, 40, 2), torch.randn(1, 1, 40, 8)
        (q, k)[place][0, 0, 7] = math.nan
        out = neural_attention(q, k, v, net, causal=False, scale=1.0, backend=backend)
        rows = (slice(7, 8), slice(None))[place]  # every query sees the key
        assert out[0, 0, rows].isnan().all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hidden", [[2], [16, 8]])
def test_same_bits_twice_and_for_any_number_of_threads(backend, hidden):
    torch.manual_seed(0)
    net = network(1, 2, hidden, "relu")
    q, k, v, upstream = *torch.randn(2, 2, 4, 300, 2), *torch.randn(2, 2, 4, 300, 64)
    options = {"causal": True, "scale": 0.125, "backend": backend}
    once = gradients(net, q, k, v, upstream, **options)
    assert all(map(torch.equal, once, gradients(net, q, k, v, upstream, **options)))
    if backend == "cpp":  # the sums of chunked are torch's, which depend on threads
        torch.set_num_threads(1)
        try:
            alone = gradients(net, q, k, v, upstream, **options)
        finally:
            torch.set_num_threads(2)
        assert all(map(torch.equal, once, alone))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("hidden", [[3], [3, 2]])
def test_registered_as_torch_wants_operators(backend, hidden):
    net = network(2, 4, hidden, "relu")
    q, k = torch.randn(1, 2, 6, 4), torch.randn(1, 2, 6, 4)
    v = torch.randn(1, 6, 3, 2, 24)[:, :, 2].transpose(1, 2)  # strided, as a block splits it
    tables = [None if x is None else x.detach().requires_grad_() for x in net.tables(q, k, 1.0)]
    checks = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (*tables, v.requires_grad_(), "relu", True, backend)
    torch_library.opcheck(
        ops.fused_attention, arguments, test_utils=(*checks, "test_aot_dispatch_static")
    )
    out, lse = ops.fused_attention(*arguments)
    arguments = (torch.ones_like(out), *tables, v, out, lse, "relu", True, backend)
    arguments = [x.detach() if isinstance(x, torch.Tensor) else x for x in arguments]
    torch_library.opcheck(ops._backward, tuple(arguments), test_utils=checks)


@pytest.mark.parametrize("backend", [*BACKENDS, "auto"])
def test_compile_and_autocast_work_around_it(backend):
    torch.manual_seed(0)
    net = network(1, 4, [4], "relu")
    q, k, v = (torch.randn(1, 2, 33, 4, requires_grad=True) for _ in range(3))

    def attend(q, k, v):
        return neural_attention(2 * q, k, v, net, causal=True, scale=1.0, backend=backend) * 2

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for function in (attend, compiled):
        with torch.autocast("cpu", torch.bfloat16):
            assert function(q, k, v.bfloat16()).dtype == torch.bfloat16
    plain, traced = (torch.autograd.grad(f(q, k, v).sum(), (q, k, v)) for f in (attend, compiled))
    torch.testing.assert_close(plain, traced)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative_is_refused(backend):
    net = network(1, 2, [2], "tanh")
    q = torch.randn(1, 1, 5, 2, requires_grad=True)
    out = neural_attention(q, q, q, net, causal=False, scale=1.0, backend=backend)
    (first,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative; use backend=eager"):
        first.sum().backward()


@pytest.mark.parametrize(
    "options,reason",
    [
        (["model.backend=triton"], "model.backend=triton: device cpu: triton needs cuda"),
        (["model.backend=cpp", "model.hidden=[300]"], "width 300: cpp takes hidden layers"),
        (["model.backend=cpp", "model.hidden=[2,2,2]"], "3 hidden layers: fused kernels take one"),
    ],
)
def test_a_backend_that_cannot_serve_is_refused_at_once(options, reason, cache, tmp_path):
    cpu = ("scale=smoke", "logger=none", "runtime.device=cpu", f"runtime.cache={cache}")
    with pytest.raises(BadInput, match=reason):
        run(config(*cpu, *options), tmp_path / "run")
    assert not (tmp_path / "run").exists()


WRONG = {  # q (1, 2, 5, 4), k (1, 2, 7, 4), v (1, 2, 7, 8) -> what is said
    "short v": (lambda q, k, v: (q, k, v[:, :, :-1]), "number of tokens; got k=7, v=6"),
    "long v": (lambda q, k, v: (q, k[:, :, :-1], v), "number of tokens; got k=6, v=7"),
    "batch": (lambda q, k, v: (q, k, v.repeat(2, 1, 1, 1)), "batch size, .* got q=1, v=2"),
    "one head of v": (lambda q, k, v: (q, k, v[:, :1]), "number of heads, .* got q=2, v=1"),
    "one head of k": (lambda q, k, v: (q, k[:, :1], v), "number of heads, .* got q=2, k=1"),
    "width of k": (lambda q, k, v: (q, k[..., :3], v), "head width; got q=4, k=3"),
    "width": (
        lambda q, k, v: (q[..., :2], k[..., :2], v),
        "score network reads; got 2, expected 4",
    ),
    "no heads": (lambda q, k, v: (q[0], k, v), r"q must be \(B, H, N, D\).* got \(2, 5, 4\)"),
    "no keys": (lambda q, k, v: (q, k[:, :, :0], v[:, :, :0]), "none of them 0"),
    "fewer keys": (lambda q, k, v: (q, k[:, :, :4], v[:, :, :4]), "got 5 queries, 4 keys"),
    "dtype of k": (
        lambda q, k, v: (q, k.double(), v),
        "dtype; got q=torch.float32, k=torch.float64",
    ),
    "integers": (lambda q, k, v: (q, k, v.int()), "v must be a tensor of floating point numbers"),
    "device": (lambda q, k, v: (q, k, v.to("meta")), "one device; got q=cpu, v=meta"),
}


@pytest.mark.parametrize("backend", ["eager", *BACKENDS, "triton", "auto"])
@pytest.mark.parametrize("case", WRONG)
def test_inputs_that_do_not_fit_are_refused(backend, case):
    change, said = WRONG[case]
    q, k, v = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 8)
    with pytest.raises(ValueError, match=said):
        neural_attention(
            *change(q, k, v), network(1, 4, [3], "relu"), causal=True, scale=1.0, backend=backend
        )


@pytest.mark.parametrize("backend", ["eager", *BACKENDS])
def test_parameters_that_do_not_fit_are_refused(backend):
    x, options = torch.randn(1, 2, 5, 4), {"causal": True, "scale": 1.0, "backend": backend}
    with pytest.raises(ValueError, match="got 3, expected 1 or 2"):
        neural_attention(x, x, x, network(3, 4, [3], "relu"), **options)
    net = network(1, 2, [3], "relu")
    for shape, said in ((1, 4, 3), "got 3, expected 2"), ((1, 5, 2), "got 4, expected 5"):
        project = (HeadLinear(*shape), HeadLinear(*shape))
        with pytest.raises(ValueError, match=said):
            neural_attention(x, x, x, net, project=project, **options)


def operands(hidden):
    """All tensors of the backward operator by name, and those of the forward as it takes them."""
    names = ("a", "c", "mid_weight", "mid_bias", "out_weight", "v")
    q, k, v = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 70, 4), torch.randn(1, 2, 70, 16)
    tables = [
        None if x is None else x.detach().contiguous()
        for x in network(2, 4, hidden, "relu").tables(q, k, 1.0)
    ]
    found = dict(zip(names, (*tables, v), strict=True))
    found["out"], found["lse"] = torch.randn(1, 2, 5, 16), torch.randn(1, 2, 5)
    return {"grad_out": torch.randn(1, 2, 5, 16)} | found


WRONG_OPERAND = {
    "short": lambda x: x[:, :, 1:].clone() if x.dim() > 2 else x[:, 1:].clone(),
    "one head": lambda x: x.narrow(int(x.shape[0] == 1), 0, 1).clone(),
    "flat": lambda x: x.flatten(),
    "dtype": lambda x: x.double(),
    "device": lambda x: x.to("meta"),
    "strides": lambda x: x.mT.contiguous().mT,
}
FORWARD = ("a", "c", "mid_weight", "mid_bias", "out_weight", "v")


def wrong_operands(hidden, case):
    """Name of a tensor and all tensors of the backward operator, with that one made wrong."""
    right = operands(hidden)
    for name in (name for name, x in right.items() if x is not None):
        yield name, right | {name: WRONG_OPERAND[case](right[name])}


@pytest.mark.parametrize("hidden", [[3], [3, 2]])
@pytest.mark.parametrize("case", WRONG_OPERAND)
def test_the_cpp_library_reads_nothing_beyond_a_tensor(built, hidden, case):
    """Called past every check in Python."""
    library = cpp_backend._library("relu")
    library.backward(*operands(hidden).values(), True)
    for name, tensors in wrong_operands(hidden, case):
        if case == "strides" and (
            name in ("v", "out", "grad_out") or tensors[name].is_contiguous()
        ):
            continue  # need not be contiguous
        with pytest.raises(RuntimeError, match=r" must .*; got "):
            library.backward(*tensors.values(), True)
        if name in FORWARD and (case, name) != ("short", "a"):  # any number of queries
            with pytest.raises(RuntimeError, match=r" must .*; got "):
                library.forward(*(tensors[key] for key in FORWARD), True)
    half = operands(hidden) | {"mid_bias": None if len(hidden) == 2 else torch.zeros(2, 3)}
    with pytest.raises(RuntimeError, match="mid_weight and mid_bias must both be given"):
        library.forward(*(half[key] for key in FORWARD), True)


@pytest.mark.parametrize("backend", [*BACKENDS, "triton"])
@pytest.mark.parametrize("hidden", [[3], [3, 2]])
@pytest.mark.parametrize("case", ["short", "one head", "flat", "dtype", "device"])
def test_the_operator_refuses_tensors_that_do_not_fit(backend, hidden, case):
    """Before any backend gets them: Triton's kernels check nothing."""
    for name, tensors in wrong_operands(hidden, case):
        if case == "dtype" and name in ("a", "v", "grad_out"):
            continue  # may be of any
        with pytest.raises(ValueError, match=r" must .*; got "):
            ops._backward(*tensors.values(), "relu", True, backend)
        if name in FORWARD and (case, name) != ("short", "a"):  # any number of queries
            with pytest.raises(ValueError, match=r" must .*; got "):
                ops.fused_attention(*(tensors[key] for key in FORWARD), "relu", True, backend)


def test_auto_takes_what_there_is_and_says_so_once(caplog):
    api._SAID.clear()
    q = torch.randn(1, 1, 5, 2)
    with caplog.at_level(logging.WARNING):
        for hidden in ([300], [300], [2, 2, 2]):
            net = network(1, 2, hidden, "relu")
            neural_attention(q, q, q, net, causal=True, scale=1.0)
    chunked, eager = caplog.messages
    assert "chunked backend: cpp: width 300" in chunked and "eager reference: 3 hidden" in eager


def test_training_loses_the_same_by_every_backend(cache, tmp_path):
    losses = []
    for backend in ["eager", *BACKENDS]:
        steps = [f"trainer.{key}=200" for key in ("max_steps", "eval_every", "save_every")]
        steps += ["trainer.log_every=1", "arch.dropout=0.0"]
        settings = [f"model.backend={backend}", f"runtime.cache={cache}", "logger=none", *steps]
        run(config("scale=smoke", *settings), tmp_path / backend)
        rows = metrics(tmp_path / backend)
        losses.append(torch.tensor([row["train/loss"] for row in rows if "train/loss" in row]))
    assert len(losses[0]) == 200 and losses[0][-1] < losses[0][0]
    for other in losses[1:]:
        torch.testing.assert_close(other, losses[0], rtol=1e-5, atol=0)


@pytest.mark.parametrize("hidden", [[4], [4, 3]])
def test_fused_products_are_counted_as_those_of_the_reference(hidden):
    """Floating-point operations of forward and backward: those of eager's products over pairs."""
    n, m, d, h = 5, 7, 6, hidden[0]
    a, c = torch.randn(2, 3, n, h, requires_grad=True), torch.randn(2, 3, m, h, requires_grad=True)
    v = torch.randn(2, 3, m, d, requires_grad=True)
    mid = [torch.randn(3, hidden[1], h), torch.randn(3, hidden[1])] if hidden[1:] else [None, None]
    last = torch.randn(3, hidden[-1], requires_grad=True)
    with FlopCounterMode(display=False) as fused:
        ops.fused_attention(a, c, *mid, last, v, "relu", False, "chunked")[0].sum().backward()
    units = (a[..., None, :] + c[..., None, :, :]).relu()  # the reference, from the same tables
    if hidden[1:]:
        mid[0].requires_grad_()
    with FlopCounterMode(display=False) as eager:
        if hidden[1:]:
            units = (units.flatten(2, 3) @ mid[0].mT).unflatten(2, (n, m)).relu()
        scores = (units.flatten(2, 3) @ last[..., None]).unflatten(2, (n, m)).squeeze(-1)
        (scores.softmax(-1) @ v).sum().backward()
    assert fused.get_total_flops() == eager.get_total_flops() > 0
