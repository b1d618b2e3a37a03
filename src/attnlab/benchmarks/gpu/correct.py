"""The Triton kernels here, forward and every gradient, beside the reference in float64."""

import math
from functools import partial
from typing import Any

import torch
from torch import library as torch_library

from attnlab.benchmarks.gpu.oracle import (
    BATCH,
    HEADS,
    Network,
    errors,
    names,
    parameters,
    problem,
    reference,
    results,
)
from attnlab.benchmarks.gpu.plan import Plan
from attnlab.kernels import ops
from attnlab.kernels.api import neural_attention

TITLE = "Correct"

# Largest error allowed, relative to the largest number of a tensor: in 16 bits two roundings.
ALLOWED = {torch.float32: 5e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}


# One or two hidden layers, every activation, narrow and wide, shared and per head: what the
# kernels' own choices depend on.
NETWORKS = {
    "d2_h4": Network(2, (4,)),
    "released_d2": Network(2, (2, 1), bias=True),
    "d16_h32": Network(16, (32,)),
    "released_d16": Network(16, (16, 8), bias=True),
    "full_h128": Network(None, (128,)),
    "released_full": Network(None, (64, 32)),
    "d3_h6 of vision": Network(3, (6,), d=96, bias=True),
    "d1_h1": Network(1, (1,), d=16),
    "h256, D 128": Network(8, (256,), d=128, per_head=True),
    "gelu": Network(4, (5,), "gelu"),
    "silu, two layers": Network(4, (5, 3), "silu", per_head=True),
    "tanh": Network(4, (17,), "tanh", per_head=True),
    "leaky_relu, two layers": Network(4, (6, 4), "leaky_relu", d=20),
}
ARMS = ["d2_h4", "released_d2", "d16_h32", "full_h128"]
SMOKE = [("d2_h4", "fp32", True), ("d2_h4", "fp16", False)]  # bf16 is wrong in the interpreter
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def work(plan: Plan):
    """Arms of the paper at every number of tokens in every dtype, causal and full; the other
    networks at one number; and the properties.
    """
    rows, device = {}, torch.device(plan.device)
    n = 16 if plan.smoke else 300
    for name, network in NETWORKS.items():
        for precision, dtype in DTYPES.items():
            for causal in (True, False):
                if plan.smoke and (name, precision, causal) not in SMOKE:
                    continue
                tokens = plan.tokens if name in ARMS else plan.tokens[2:3]  # a tile has a tail
                arguments = (network, dtype, causal, tokens or plan.tokens, device)
                key = f"{name}, {precision}, {'causal' if causal else 'full'}"
                rows[key] = partial(against_float64, *arguments)
    for check in (large_scores, not_a_number, more_keys, hidden_keys, opcheck, autocast):
        rows[check.__name__] = partial(check, device, n)
    rows["torch_compile"] = partial(compiled, device, n, plan.compiler)
    return rows


def page(rows: dict[str, dict], plan: Plan) -> list[str]:
    """Lines of Markdown."""
    lines = [
        "Largest error of the forward and of any gradient, relative to the largest number of the",
        "tensor, beside the reference in float64; limits "
        + ", ".join(f"{name} {ALLOWED[dtype]:g}" for name, dtype in DTYPES.items())
        + f". Strided inputs, B {BATCH}, H {HEADS}; every number of tokens is computed twice and",
        "must give equal bits.",
        "",
        "| check | tokens | largest error | where | holds |",
        "|---|---|---|---|---|",
    ]
    for key, row in rows.items():
        tokens = ", ".join(map(str, row.get("tokens", [])))
        error = f"{row['error_max']:.1e}" if "error_max" in row else ""
        holds = "yes" if row["holds"] else "**no**"
        lines.append(f"| {key} | {tokens} | {error} | {row.get('where', '')} | {holds} |")
    return lines


def against_float64(network, dtype, causal, tokens, device) -> dict[str, Any]:
    """Errors at several numbers of tokens; each is computed twice and must give equal bits."""
    seen, repeats = [], True
    for n in tokens:
        *modules, leaves, gradient = problem(network, n, n, dtype, device)
        found, again = (results(*modules, leaves, gradient, causal) for _ in range(2))
        repeats &= all(torch.equal(x, y) for x, y in zip(found, again, strict=True))
        exact = reference(*modules, leaves, gradient, causal)
        sizes = errors(found, exact, gradient, leaves[2])
        seen += [(error, name, n) for name, error in zip(names(*modules), sizes, strict=True)]
    worst, name, n = max(seen, key=lambda each: (math.isnan(each[0]), each[0]))
    holds = repeats and worst <= ALLOWED[dtype]
    where = f"{name}, N {n}" if worst else ""
    return {"holds": holds, "equal_bits": repeats, "error_max": worst, "where": where} | {
        "tokens": tokens
    }


def large_scores(device, n) -> dict[str, Any]:
    """Scores of hundreds: all results are finite, and the output is that of float64."""
    network = NETWORKS["d2_h4"]._replace(loudness=1e4)
    *modules, leaves, gradient = problem(network, n, n, torch.float32, device)
    found = results(*modules, leaves, gradient, True)
    exact = reference(*modules, leaves, gradient, True)[0]
    error = (found[0].double() - exact).abs().max().item()
    finite = all(x.isfinite().all().item() for x in found)
    return {"holds": finite and error < 0.05, "error_max": error, "where": "out", "tokens": [n]}


def not_a_number(device, n) -> dict[str, Any]:
    """A query that is not a number shows in its own row, and in no other."""
    *modules, leaves, gradient = problem(NETWORKS["released_d2"], n, n, torch.float32, device)
    q = leaves[0].clone()
    q[:, :, 7] = math.nan
    out = results(*modules, (q, *leaves[1:]), gradient, True)[0].isnan().all(-1)
    rows = torch.arange(n, device=device) == 7
    return {"holds": (out == rows).all().item(), "tokens": [n]}


def hidden_keys(device, n) -> dict[str, Any]:
    """Padding on the left: the first queries see no key, so that their output is 0."""
    *modules, leaves, gradient = problem(NETWORKS["d2_h4"], n, n, torch.float32, device)
    mask = (torch.arange(n, device=device) >= 5).view(1, 1, 1, n)
    found = results(*modules, leaves, gradient, True, mask=mask)
    exact = reference(*modules, leaves, gradient, True, mask=mask)
    return judged(errors(found, exact, gradient, leaves[2]), n)


def judged(sizes: list[float], n: int) -> dict[str, Any]:
    """The row of one check in float32, from its errors."""
    worst = torch.tensor(sizes).max().item()  # unlike Python's, nan if one is
    return {"holds": worst <= ALLOWED[torch.float32], "error_max": worst, "tokens": [n]}


def more_keys(device, n) -> dict[str, Any]:
    """Fewer queries than keys: the last query sees all."""
    *modules, leaves, gradient = problem(NETWORKS["d2_h4"], n - 3, n, torch.float32, device)
    found = results(*modules, leaves, gradient, True)
    exact = reference(*modules, leaves, gradient, True)
    return judged(errors(found, exact, gradient, leaves[2]), n)


def opcheck(device, n) -> dict[str, Any]:
    """torch's own check of custom operators: schema, fake tensors, autograd; with values strided
    as a block splits them.
    """
    net, project, (q, k, v), _ = problem(NETWORKS["released_d2"], n, n, torch.float32, device)
    tables = [x.detach().requires_grad_() for x in net.tables(q, k, 0.1, project)]
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    leaf = v.detach().mT.contiguous().mT.requires_grad_()
    given = (*tables, leaf, "relu", True, "triton")
    torch_library.opcheck(ops.fused_attention, given, test_utils=tests)
    with torch.no_grad():
        out, lse = ops.fused_attention(*given)
        *most, _, _, _ = given
        given = (torch.ones_like(out), *most, out, lse, "relu", True, "triton")
        torch_library.opcheck(ops._backward, given, test_utils=("test_schema", "test_faketensor"))
    return {"holds": True, "tokens": [n]}


def autocast(device, n) -> dict[str, Any]:
    """Under autocast the scores stay in float32: the same bits as without it, of 16-bit inputs."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float16
    *modules, leaves, gradient = problem(NETWORKS["d2_h4"], n, n, dtype, device)
    plain = results(*modules, leaves, gradient, True)
    found = results(*modules, leaves, gradient, True, torch.autocast(device.type, dtype))
    same = all(torch.equal(x, y) for x, y in zip(plain, found, strict=True))
    return {"holds": same, "tokens": [n]}


def compiled(device, n, backend) -> dict[str, Any]:
    """torch.compile takes it whole, without a break of the graph, and gives the same numbers."""
    net, project, leaves, gradient = problem(NETWORKS["d2_h4"], n, n, torch.float32, device)
    plain = results(net, project, leaves, gradient, True)
    whole = torch.compile(
        lambda q, k, v: neural_attention(
            *(q, k, v, net), project=project, causal=True, scale=1 / 8, backend="triton"
        ),
        fullgraph=True,
        backend=backend,
    )
    leaves = [x.detach().requires_grad_() for x in leaves]
    out = whole(*leaves)
    found = [out, *torch.autograd.grad(out, [*leaves, *parameters(net, project)], gradient)]
    return judged(errors(found, [x.double() for x in plain], gradient, leaves[2]), n)
