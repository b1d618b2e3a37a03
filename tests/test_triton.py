"""The Triton kernels against the formula in float64: in Triton's interpreter, or compiled where
there is a GPU. A process is either interpreter or compiler, so the interpreter has its own.
"""

import os
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from attnlab.functional import ACTIVATIONS
from attnlab.kernels import triton_backend

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
RUNS = triton_backend.INTERPRETED or DEVICE == "cuda"
HALF, FULL = torch.float16, torch.float32  # bfloat16 is silently wrong in the interpreter

# activation, h, h2, causal, N, M, D, dtype, tile: every loop and tail, sums in either place
CASES = [
    ("relu", 2, None, True, 37, 37, 20, FULL, (16, 16)),
    ("relu", 2, 1, True, 35, 40, 64, HALF, (16, 32)),
    ("relu", 1, None, False, 20, 50, 8, FULL, (32, 16)),
    ("relu", 2, 1, False, 33, 17, 8, FULL, (16, 16)),
    ("relu", 5, 3, True, 18, 20, 8, FULL, (16, 32)),
    ("relu", 17, None, True, 17, 18, 96, HALF, (32, 32)),
    ("gelu", 3, None, True, 19, 33, 8, FULL, (32, 16)),
    ("leaky_relu", 3, 2, True, 17, 19, 8, FULL, (16, 16)),
    ("silu", 2, 1, True, 1, 64, 20, FULL, (16, 32)),
    ("tanh", 6, None, True, 20, 20, 8, FULL, (16, 16)),
    ("tanh", 2, 3, False, 1, 1, 8, FULL, (16, 16)),
]


def reference(a, c, mid_weight, mid_bias, out_weight, v, activation, causal):
    """The formula as it stands in the module's text, on all pairs at once."""
    act = ACTIVATIONS[activation]
    x = act(a.unsqueeze(-2) + c.unsqueeze(-3))
    if mid_weight is not None:
        x = act(torch.einsum("bhijr,htr->bhijt", x, mid_weight) + mid_bias[:, None, None])
    scores = torch.einsum("bhijr,hr->bhij", x, out_weight)
    n, m = scores.shape[-2:]
    if causal:
        later = torch.arange(m) > torch.arange(n)[:, None] + m - n
        scores = scores.masked_fill(later, -torch.inf)
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def problem(h, h2, n, m, d, dtype, batch=2, heads=2):
    """Random a, c, mid_weight, mid_bias, out_weight, v (not contiguous), and a gradient of out."""
    torch.manual_seed(h + n)
    a, c = torch.randn(batch, heads, n, h), torch.randn(batch, heads, m, h)
    v = torch.randn(batch, m, heads, d).to(dtype).transpose(1, 2)
    mid = (None, None) if h2 is None else (torch.randn(heads, h2, h), torch.randn(heads, h2))
    out_weight = torch.randn(heads, h2 or h) / (h2 or h) ** 0.5
    gradient = torch.randn(batch, 1, n, d).to(dtype).expand(batch, heads, n, d)
    return (a, c, *mid, out_weight, v), gradient


def run(inputs, gradient, activation, causal):
    """out, lse and all gradients, on the CPU."""
    inputs = [None if x is None else x.to(DEVICE) for x in inputs]
    assert triton_backend.unsupported(*inputs, activation) is None
    out, lse = triton_backend.forward(*inputs, activation, causal)
    gradients = triton_backend.backward(gradient.to(DEVICE), *inputs, out, lse, activation, causal)
    return [None if x is None else x.cpu() for x in (out, lse, *gradients)]


@pytest.fixture(autouse=True)
def poisoned(monkeypatch):
    """torch fills what is not initialised with nan."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def tile(monkeypatch):
    """Sets the tile, so that few tokens make several blocks."""

    def set_tile(rows, cols):
        launch = {"rows": rows, "cols": cols, "num_warps": 4, "num_stages": 2}
        monkeypatch.setattr(triton_backend, "tiles", lambda kernel, case: dict(launch))

    return set_tile


@pytest.mark.parametrize(
    "activation,h,h2,causal,n,m,d,dtype,shape", CASES if RUNS else [], ids=str
)
def test_values_and_gradients(activation, h, h2, causal, n, m, d, dtype, shape, tile):
    tile(*shape)
    inputs, gradient = problem(h, h2, n, m, d, dtype)
    found = run(inputs, gradient, activation, causal)
    exact = [None if x is None else x.double().requires_grad_() for x in inputs]
    out, lse = reference(*exact, activation, causal)
    out.backward(gradient.double())
    expected = [out, lse, *(None if x is None else x.grad for x in exact)]
    limit = 2e-5 if dtype == FULL else 4e-3
    for x, y, dtype_of in zip(found, expected, [inputs[-1], lse, *inputs], strict=True):
        assert (x is None) == (y is None)
        if x is not None:
            assert x.shape == y.shape and x.is_contiguous()
            assert x.dtype == (dtype_of.dtype if dtype_of is not lse else FULL)
            error = (x - y).abs().max() / y.abs().max().clamp_min(0.1)
            assert error <= limit


@pytest.mark.parametrize("loudness", [50.0] if RUNS else [])
def test_large_scores_and_equal_bits(loudness, tile):
    tile(16, 16)
    inputs, gradient = problem(2, None, 20, 33, 8, FULL)
    inputs = (*inputs[:-2], inputs[-2] * loudness, inputs[-1])
    first, second = (run(inputs, gradient, "relu", True) for _ in range(2))
    for x, y in zip(first, second, strict=True):
        assert x is None or (torch.equal(x, y) and x.isfinite().all())
    out, _ = reference(*(None if x is None else x.double() for x in inputs), "relu", True)
    torch.testing.assert_close(first[0].double(), out, atol=1e-3, rtol=0)


@pytest.mark.parametrize("h2", [None, 3] if RUNS else [])
@pytest.mark.parametrize("place", [0, 1])
def test_what_is_not_a_number_shows(place, h2, tile):
    """Of one query in its row, of one key in the row of every query that sees it."""
    tile(16, 16)
    inputs, _ = problem(4, h2, 20, 20, 8, FULL)
    inputs[place][:, :, 7] = torch.nan
    inputs = [None if x is None else x.to(DEVICE) for x in inputs]
    out = triton_backend.forward(*inputs, "relu", True)[0].isnan().all(-1).cpu()
    rows = torch.arange(20)
    assert (out == (rows >= 7 if place else rows == 7)).all()


def test_a_reason_is_given():
    (a, c, *_, w, v), _ = problem(2, None, 3, 3, 8, FULL)
    a, c, w, v = (x.to(DEVICE) for x in (a, c, w, v))
    wide = a.repeat(1, 1, 1, 129)
    reason = triton_backend.unsupported
    if RUNS:
        assert "h=258" in reason(wide, wide, None, None, wide[0, :, 0], v, "relu")
        assert "float64" in reason(a, c, None, None, w, v.double(), "relu")
    else:
        assert "cuda" in reason(a, c, None, None, w, v, "relu")


def test_rocm_is_refused_though_torch_calls_it_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    (a, c, *_, w, v), _ = problem(2, None, 3, 3, 8, FULL)
    reason = triton_backend.unsupported(a, c, None, None, w, v, "relu")
    assert reason == "ROCm: the kernels hold instructions of NVIDIA GPUs"


def child(*command, **environment) -> str:
    """What a Python process prints that must succeed."""
    inherited = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, *command],
        env=inherited | environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.skipif(RUNS, reason="the tests above run in this process")
def test_the_tests_above_in_the_interpreter():
    options = ["-n", "0", "-p", "no:cacheprovider"]
    arguments = ("-m", "pytest", *options, "-k", "not interpreter", __file__)
    said = child(*arguments, TRITON_INTERPRET="1")
    assert f"{len(CASES) + 7} passed" in said


@pytest.mark.skipif(triton_backend.INTERPRETED, reason="has its own process")
def test_kernels_compile_without_a_gpu_and_do_not_spill(tmp_path):
    script = ("scripts/compile_triton.py", "archs=90", "cases=released_d2,gelu")
    said = child(*script, TRITON_CACHE_DIR=str(tmp_path))
    rows = [line.split(" | ") for line in said.splitlines()[2:]]
    assert [row[0] for row in rows] == ["| forward", "| rows", "| cols"] * 2
    assert all(row[4:6] == ["0", "0"] for row in rows)
