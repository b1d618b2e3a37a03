"""Diagnostics: values worked out by hand, what they must not disturb, and the report on them."""

import json
import math
import xml.etree.ElementTree as ET
from functools import partial
from statistics import fmean, pstdev, stdev

import pytest
import torch
import torch.nn.functional as F
from conftest import MODELS, config, metrics, model_of, prepared, same_state, smoke
from hypothesis import given, settings
from hypothesis import strategies as st
from made_runs import Page

from attnlab.models.attention import build_attention
from attnlab.report.render import report
from attnlab.run import build, run
from attnlab.training import checkpoint
from attnlab.training.diagnostics import (
    diagnostics,
    means,
    of_tokens,
    of_weights,
    saturation,
)
from attnlab.training.selection import Selection
from attnlab.training.update import training_loss

PLACES = ("input", "0", "1")
KEYS = {
    *(f"representation/{p}/{n}" for p in PLACES for n in ("rank_one_residual", "cosine")),
    *(f"attention/{i}/{n}" for i in (0, 1) for n in ("entropy", "negative_mass", "row_sum")),
    *(f"gradient/{i}/query" for i in (0, 1)),
}


@pytest.mark.parametrize("n", [1, 2, 7])
def test_equal_weights_have_the_logarithm_of_the_visible_keys_as_entropy(n):
    seen = torch.ones(n, n).tril()
    found = of_weights(-2 * seen / seen.sum(-1, keepdim=True))
    expected = torch.tensor([math.log(i + 1) for i in range(n)])
    torch.testing.assert_close(found["entropy"], expected)
    assert found["negative_mass"].tolist() == [1] * n
    torch.testing.assert_close(found["row_sum"], torch.full((n,), -2.0))


def test_one_key_alone_has_no_entropy_and_a_row_of_zeros_counts_nowhere():
    found = of_weights(torch.tensor([[0.0, 0.7, 0.0], [0.0, 0.0, 0.0]]))
    kept = means({name: [values] for name, values in found.items()})
    assert kept == pytest.approx({"entropy": 0, "negative_mass": 0, "row_sum": 0.35})


def mechanism(model: str, *overrides: str):
    cfg = config("scale=smoke", f"model={model}", *overrides)
    return build_attention(cfg.model, cfg.arch)


def test_negative_mass_of_cog_by_hand():
    """Scores 3 log 2 and -log 2: weights 4/5 and -1/5."""
    q, k = torch.ones(1, 1, 1, 1), torch.tensor([3.0, -1.0]).mul(math.log(2)).view(1, 1, 2, 1)
    found = of_weights(mechanism("cog").weights(q, k, None))
    assert found["negative_mass"].item() == pytest.approx(0.2)
    assert found["row_sum"].item() == pytest.approx(0.6)
    entropy = 0.8 * math.log(5 / 4) + 0.2 * math.log(5)
    assert found["entropy"].item() == pytest.approx(entropy)


def test_row_sums_are_one_and_those_of_dagpam_are_what_its_lambdas_say():
    q, k = torch.randn(2, 2, 2, 9, 16)
    found = of_weights(mechanism("dot_product").weights(q, k, None))
    torch.testing.assert_close(found["row_sum"], torch.ones(2, 2, 9))
    assert not found["negative_mass"].any()
    dual = mechanism("dagpam", "model.lambda_plus=0.7", "model.lambda_minus=0.2")
    with torch.no_grad():
        found = of_weights(dual.weights(q, k, None))
    torch.testing.assert_close(found["row_sum"], torch.full((2, 2, 9), 1.5))


def saturation_of(q, k, name="dot_product", causal=True):
    """`saturation` of a layer that gets these queries and keys (1, H, N, D), in every sequence."""
    cfg = config("scale=smoke", f"model={name}", "arch.layers=1")
    model = model_of(cfg, 300, 300, q.shape[-2])
    attention = model.blocks[0].attention
    attention.causal = causal
    attention.split = lambda x, start: (q, k, torch.zeros_like(q))
    found = saturation(model, torch.zeros(2, q.shape[-2], dtype=torch.long))
    return {key.removeprefix("attention/0/"): value for key, value in found.items()}


def test_saturation_by_hand():
    """One head has equal scores, the other one that leaves e^-8 for each other key. The first
    query sees one key and counts nowhere.
    """
    q, k = torch.zeros(2, 1, 2, 5, 16)
    q[0, 1, :, 0] = 4.0  # scores: 8 for key 0, 0 for the others
    k[0, 1, 0, 0] = 8.0
    found = saturation_of(q, k)
    assert found["saturated"] == pytest.approx(0.5)
    entropy = []
    for n in range(2, 6):
        shares = [1 / (1 + (n - 1) * math.exp(-8)), *[1 / ((n - 1) + math.exp(8))] * (n - 1)]
        entropy.append(-sum(p * math.log(p) for p in shares) / math.log(n))
    assert found["normalized_entropy"] == pytest.approx((1 + fmean(entropy)) / 2)
    scores = [8.0] * 5 + [0.0] * 10
    assert found["logit_std"] == pytest.approx(pstdev(scores) / 2)
    full = saturation_of(q, k, causal=False)
    assert full["logit_std"] == pytest.approx(pstdev([8.0] * 5 + [0.0] * 20) / 2)
    assert full["saturated"] == pytest.approx(0.5)


def test_saturation_looks_at_few_queries_of_a_long_sequence():
    """Evenly spread and with the last: what a query scores says which it is."""
    n = 1000
    q, k = torch.zeros(2, 1, 2, n, 16)
    place = torch.arange(n).float()
    q[..., 0] = place
    k[..., 0] = 4.0
    seen = []
    cfg = config("scale=smoke", "model=dot_product", "arch.layers=1")
    model = model_of(cfg, 300, 300, n)
    attention = model.blocks[0].attention
    attention.split = lambda x, start: (q, k, torch.zeros_like(q))
    scores = attention.mechanism.scores
    attention.mechanism.scores = lambda q, k: seen.append(scores(q, k)) or seen[-1]
    found = saturation(model, torch.zeros(1, n, dtype=torch.long))
    assert seen[0].shape == (1, 2, 64, n)
    assert seen[0][0, 0, :, 0].tolist() == [round(i * (n - 1) / 63) for i in range(64)]
    assert found["attention/0/normalized_entropy"] == pytest.approx(1)
    assert found["attention/0/saturated"] == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("data", ["pydocs", "digits"])
def test_saturation_is_that_of_the_weights_of_every_row(model, data, cache):
    """Against whole matrices of weights, of 4 sequences no longer than 64."""
    cfg = smoke(cache, f"data={data}", f"model={model}", "data.sequence_length=32"
                if data == "pydocs" else "arch.patch_size=8", *(
                ["data.eval_stride=32"] if data == "pydocs" else []))  # fmt: skip
    built = prepared(cfg)
    net = build(cfg, built)
    inputs, _ = Selection(built, cfg.trainer.select_on).sample(torch.device("cpu"))
    whole = {}

    def look(layer, attention, module, args):
        weights = module.mixing(*args[:2], causal=attention.causal).double().abs()
        share = weights / weights.sum(-1, keepdim=True)
        visible = torch.ones_like(share[0, 0])
        visible = visible.tril() if attention.causal else visible
        count = visible.sum(-1)
        rows = count > 1
        entropy = torch.special.entr(share).sum(-1) / count.log()
        whole[f"attention/{layer}/saturated"] = (share.amax(-1) > 0.99)[..., rows].double().mean()
        whole[f"attention/{layer}/normalized_entropy"] = entropy[..., rows].mean()

    for layer, block in enumerate(net.blocks):
        hook = partial(look, layer, block.attention)
        block.attention.mechanism.register_forward_pre_hook(hook)
    with torch.no_grad():
        net.eval()(inputs)
    fixed = {layer for layer, b in enumerate(net.blocks) if b.attention.mechanism.fixed}
    assert fixed == ({0} if model in ("uniform", "identity") else set())
    wanted = {key: v.item() for key, v in whole.items() if int(key.split("/")[1]) not in fixed}
    found = saturation(net, inputs)
    plain = {key: v for key, v in found.items() if not key.endswith("/logit_std")}
    assert plain == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    without = model in ("cog", "dagpam", "uniform", "identity") or "expressive" in model
    assert ("attention/0/logit_std" in found) == (not without)


def test_a_saturated_start_is_said_once_with_what_mends_it(cache, tmp_path, caplog):
    """sqrt(W) times an embedding of variance 1 in a wide body; each remedy that is named works."""
    wide = ("model=dot_product", "arch.width=256", "arch.heads=2", "trainer.max_steps=2")
    run(smoke(cache, *wide), tmp_path / "bare")
    (said,) = [r.message for r in caplog.records if "saturated" in r.message]
    first, *later = [row for row in metrics(tmp_path / "bare") if "attention/0/saturated" in row]
    assert first["step"] == 0 and [row["step"] for row in later] == [2]
    assert first["attention/0/saturated"] > 0.5 and first["attention/0/logit_std"] > 60
    assert first["attention/1/saturated"] == 0 and "layer 0:" in said and "layer 1" not in said
    caplog.clear()
    remedies = [key for key in said.split() if key.startswith("arch.")]
    assert len(remedies) == 4
    for i, remedy in enumerate(remedies):
        run(smoke(cache, *wide, remedy.rstrip(",")), tmp_path / str(i))
        assert metrics(tmp_path / str(i))[0]["attention/0/saturated"] < 0.5
    assert "saturated" not in caplog.text
    result = json.loads((tmp_path / "bare" / "result.json").read_text())
    assert not [key for key in result if "saturated" in key]  # rows have it, not best/*


def test_equal_and_orthogonal_tokens():
    same = of_tokens(torch.randn(3, 1, 8).expand(3, 5, 8))
    torch.testing.assert_close(same["rank_one_residual"], torch.zeros(3).double())
    torch.testing.assert_close(same["cosine"], torch.ones(3).double())
    apart = of_tokens(7 * torch.eye(4)[None])
    assert apart["rank_one_residual"].item() == pytest.approx(math.sqrt(3 / 4))
    assert apart["cosine"].item() == pytest.approx(0, abs=1e-12)
    assert of_tokens(torch.tensor([[[1.0], [-2.0]]]))["cosine"].item() == pytest.approx(-1)


@settings(max_examples=30)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 10**6))
def test_measures_of_tokens_against_their_definitions(n, width, seed):
    """The mean is the best rank-one fit 1 x^T; every pair of different tokens counts once."""
    x, other = torch.randn(
        2, n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    x += 1
    found = {name: value.item() for name, value in of_tokens(x[None]).items()}
    best = torch.linalg.lstsq(torch.ones(n, 1).double(), x).solution
    assert found["rank_one_residual"] == pytest.approx(((x - best).norm() / x.norm()).item())
    assert found["rank_one_residual"] <= ((x - other[:1]).norm() / x.norm()).item()
    pairs = [F.cosine_similarity(x[i], x[j], 0).item() for i in range(n) for j in range(i)]
    assert found["cosine"] == pytest.approx(fmean(pairs), abs=1e-9)


def test_tokens_of_norm_zero_and_single_tokens_are_left_out():
    x = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]])
    assert of_tokens(x)["cosine"].item() == pytest.approx(math.sqrt(0.5))
    for tokens, known in ((torch.ones(1, 1, 2), {"rank_one_residual": 0}), (0 * x, {})):
        found = of_tokens(tokens)
        assert means({name: [values] for name, values in found.items()}) == known


@pytest.mark.parametrize(
    "data",
    [["data=pydocs"], ["data=digits"], ["data=nt", "data.ladder=[[2,3],[16,9]]"]],
    ids=["pydocs", "digits", "nt"],  # samples of nt differ in their number of targets
)
def test_gradients_are_those_of_the_training_loss_and_nothing_is_disturbed(data, cache):
    cfg = smoke(cache, *data, "model=dagpam", "arch.dropout=0.1")
    built = prepared(cfg)
    model = build(cfg, built)
    inputs, targets = Selection(built, cfg.trainer.select_on).sample(torch.device("cpu"))
    assert len(inputs) == 4
    training_loss(model.eval()(inputs), targets).backward()
    width = cfg.arch.width
    expected = {
        f"gradient/{i}/query": block.attention.qkv.weight.grad[:width].norm().item()
        for i, block in enumerate(model.blocks)
    }
    model.train()
    before = [p.grad.clone() for p in model.parameters()]
    random = torch.get_rng_state()
    found = diagnostics(model, inputs, targets, training_loss)
    assert found.keys() == KEYS
    tokens = len(model.positions.table)
    most = math.lgamma(tokens + 1) / tokens  # mean of log 1, ..., log tokens: a causal mask's
    assert (found["attention/1/entropy"] < most) == (cfg.arch.body == "lm")
    assert {k: v for k, v in found.items() if k in expected} == pytest.approx(expected, rel=1e-4)
    assert torch.equal(torch.get_rng_state(), random) and all(
        module.training for module in model.modules()
    )
    assert all(map(torch.equal, before, (p.grad for p in model.parameters())))
    assert found == diagnostics(model, inputs, targets, training_loss)
    with pytest.raises(IndexError):  # a failure leaves no hook and no eval mode behind
        diagnostics(model, inputs, torch.full_like(targets, 10**6), training_loss)
    hooked = [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert model.training and not hooked


def test_a_single_token_and_weights_of_another_kind_stay_finite(cache):
    cfg = smoke(cache, "data.sequence_length=1", "data.eval_stride=1", "model=cog")
    built = prepared(cfg)
    sample = Selection(built, cfg.trainer.select_on).sample(torch.device("cpu"))
    found = diagnostics(build(cfg, built), *sample, training_loss)
    assert found.keys() == {key for key in KEYS if not key.endswith("cosine")}
    assert all(map(math.isfinite, found.values())) and found["attention/1/entropy"] == 0


@pytest.mark.parametrize("model", ["dot_product", "neural_d2", "cog", "dagpam", "identity"])
def test_a_run_with_diagnostics_is_the_run_without(model, cache, tmp_path):
    for switch in ("off", "on"):
        on = f"trainer.diagnostics={switch == 'on'}"
        run(smoke(cache, "data=nt", f"model={model}", "arch.dropout=0.1", on), tmp_path / switch)
    off, on = metrics(tmp_path / "off"), metrics(tmp_path / "on")
    assert not any(KEYS & row.keys() for row in off)
    evaluated = [row for row in on if "val/loss" in row or row["step"] == 0]
    assert [row["step"] for row in evaluated] == [0, 2, 4]
    for row in evaluated:
        assert row.keys() >= KEYS and all(math.isfinite(row[key]) for key in KEYS)
        entropy = row["attention/0/entropy"]
        assert entropy == 0 if model == "identity" else entropy > 0
        assert entropy <= math.lgamma(17) / 16 * (1 + 1e-6)  # uniform attention has the most
    bare = [{key: value for key, value in row.items() if key not in KEYS} for row in on]
    assert [row for row in bare if row != {"step": 0}] == off
    for file in ("step_000000004.pt", "best.pt"):
        one, two = (checkpoint.load(tmp_path / n / "checkpoints" / file) for n in ("off", "on"))
        assert same_state(one, two)


@pytest.fixture(scope="module")
def runs(cache, tmp_path_factory):
    """Two seeds of two arms with diagnostics: their folder with a report, and the rows of the last
    evaluations.
    """
    root, last = tmp_path_factory.mktemp("diagnosed"), {}
    for model in ("dot_product", "dagpam"):
        for seed in (0, 1):
            words = ("data=digits", f"model={model}", f"seed={seed}", "trainer.diagnostics=true")
            run(smoke(cache, *words), root / f"{model}{seed}")
            rows = [row for row in metrics(root / f"{model}{seed}") if row.keys() >= KEYS]
            last.setdefault(model, []).append(rows[-1])
    report(root, root / "report")
    return root, last


def test_report_draws_what_depth_does(runs):
    root, last = runs
    (picture,) = (root / "report" / "figures").glob("depth_*.svg")
    assert ET.parse(picture).getroot().tag.endswith("svg")
    residual, cosine, gradient, entropy = Page(root / "report" / "index.html").plots[-4:]
    dot = {trace["name"]: trace for trace in residual["data"] if trace.get("name")}
    assert dot.keys() == {f"{arm}, {what}" for arm in last for what in ("mean of 2", "step 0")}
    mean = dot["dagpam, mean of 2"]
    keys = [f"representation/{place}/rank_one_residual" for place in PLACES]
    expected = [fmean(row[key] for row in last["dagpam"]) for key in keys]
    assert mean["x"] == [-1, 0, 1] and mean["y"] == pytest.approx(expected)
    assert dot["dagpam, step 0"]["y"] != mean["y"]
    bands = [trace for trace in residual["data"] if trace.get("fill") == "toself"]
    spread = 12.706 * stdev(row[keys[0]] for row in last["dagpam"]) / math.sqrt(2)
    assert bands[1]["y"][0] == pytest.approx(expected[0] + spread, rel=1e-3)
    assert cosine["data"][1]["x"] == [-1, 0, 1] and entropy["data"][1]["x"] == [0, 1]
    assert gradient["layout"]["yaxis"]["type"] == "log"
    norms = [row["gradient/1/query"] for row in last["dot_product"]]
    assert gradient["data"][1]["y"][1] == pytest.approx(math.sqrt(math.prod(norms)))


def test_report_tells_what_depth_does(runs):
    root, last = runs
    text = (root / "report" / "report.md").read_text()
    lines = text[text.index("### Over depth") :].splitlines()
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in lines if line[:1] == "|"]
    assert rows[0] == ["quantity", "model", "when", "layer 0", "layer 1", "n"]
    found = {tuple(row[:3]): row[3:] for row in rows[2:26]}
    assert len(found) == 24
    assert found["row sum of weights", "dot_product", "trained"][0].startswith("1 [")
    mass = [row["attention/1/negative_mass"] for row in last["dagpam"]]
    cell, n = found["share of negative weights", "dagpam", "trained"][1:]
    assert cell.startswith(f"{fmean(mass):.3g} [") and n == "2" and fmean(mass) > 0
    begins = [metrics(root / f"dagpam{seed}")[0] for seed in (0, 1)]
    assert all(row["step"] == 0 for row in begins)
    start = fmean(row["representation/1/rank_one_residual"] for row in begins)
    assert found["rank-one residual", "dagpam", "step 0"][1].startswith(f"{start:.3g} [")
    assert "<h3>Over depth</h3>" in (root / "report" / "index.html").read_text()


def test_report_without_negative_weights_or_diagnostics_says_nothing_of_them(runs, tmp_path):
    root, _ = runs
    folder = tmp_path / "runs" / "one"
    folder.mkdir(parents=True)
    for name in ("config.yaml", "env.json", "result.json", "metrics.jsonl"):
        (folder / name).write_text((root / "dot_product0" / name).read_text())
    report(tmp_path / "runs", tmp_path / "with")
    text = (tmp_path / "with" / "report.md").read_text()
    assert "rank-one residual" in text and "negative weights" not in text
    rows = [{k: v for k, v in row.items() if k not in KEYS} for row in metrics(folder)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report(tmp_path / "runs", tmp_path / "without")
    assert "depth" not in (tmp_path / "without" / "report.md").read_text()
    assert not list((tmp_path / "without" / "figures").glob("depth*"))
