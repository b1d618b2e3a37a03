"""Training: every model on every embedded data set, accumulation, schedules, measures, health."""

import math
import shutil
from pathlib import Path

import pytest
import torch
from conftest import config, metrics, model_of, newest, prepared, smoke

from attnlab.data.symbols import UNSCORED
from attnlab.errors import BadInput
from attnlab.functional import perplexity
from attnlab.run import build, run
from attnlab.training.diagnostics import dead_scorers, warn_if_dead
from attnlab.training.evaluate import evaluate
from attnlab.training.flops import arithmetic, flops_per_step
from attnlab.training.meter import memory_mib, peak_memory_mib
from attnlab.training.optim import build_optimizer, learning_rate, set_learning_rate
from attnlab.training.prefetch import Prefetch
from attnlab.training.selection import Selection
from attnlab.training.trainer import total_steps
from attnlab.training.update import Update, precision


def counted(cfg, inputs, outputs, tokens):
    sizes = {"inputs": inputs, "outputs": outputs, "tokens": tokens}
    return flops_per_step(cfg.arch, cfg.model, cfg.trainer.batch_size, **sizes)


def trained(cache, tmp_path, *overrides):
    cfg = smoke(cache, "arch.dropout=0.0", *overrides)
    run(cfg, tmp_path)
    state = torch.load(newest(tmp_path), weights_only=True)
    return state["model"], metrics(tmp_path)


LADDER = ("data=nt", "data.ladder=[[2,2],[16,12]]")  # micro-batches score unequally many targets


@pytest.mark.parametrize("data", [("data=pydocs",), ("data=digits",), LADDER])
def test_accumulation_changes_memory_not_the_update(data, cache, tmp_path):
    whole, rows = trained(cache, tmp_path / "a", *data)
    parts, again = trained(cache, tmp_path / "b", *data, "trainer.micro_batch_size=1")
    for key in whole:
        torch.testing.assert_close(whole[key], parts[key], rtol=1e-3, atol=1e-4)
    for key in ("train/loss", "train/grad_norm"):
        first, again_first = (next(r for r in run if key in r)[key] for run in (rows, again))
        assert first == pytest.approx(again_first, rel=1e-5), key


def test_evaluation_logging_and_saving_do_not_change_training(cache, tmp_path):
    one, _ = trained(cache, tmp_path / "a", "arch.dropout=0.1")
    other, _ = trained(
        *(cache, tmp_path / "b", "arch.dropout=0.1"),
        *("trainer.eval_every=1", "trainer.log_every=3", "trainer.save_every=1"),
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_run_shorter_than_the_interval_of_evaluation_is_evaluated_at_its_end(cache, tmp_path):
    _, rows = trained(cache, tmp_path, "trainer.max_steps=3", "trainer.eval_every=1000")
    assert [row["step"] for row in rows if "val/loss" in row] == [3]


@pytest.mark.parametrize("setting", ["bf16", "fp16"])
def test_half_precision_trains(setting, cache, tmp_path):
    """Losses are near those of fp32, and not the same."""
    _, rows = trained(cache, tmp_path / "half", f"trainer.precision={setting}")
    _, exact = trained(cache, tmp_path / "fp32")
    half, full = ([row["train/loss"] for row in r if "train/loss" in row] for r in (rows, exact))
    assert len(half) == 4 and half == pytest.approx(full, rel=2e-2) and half != full


def test_training_learns(cache, tmp_path):
    """100 steps on pydocs beat the unigram model of the same tokens."""
    cfg = smoke(cache, "trainer.max_steps=120", "trainer.lr=0.01", "trainer.eval_every=60")
    result = run(cfg, tmp_path)
    assert result["test/perplexity"] < 0.9 * result["test/unigram_perplexity"]


def test_schedules():
    step = config("data=cifar10").trainer  # the released code: 5e-5 for epochs 0-4, then 2.5e-5
    assert learning_rate(0, 100, 0.0, step) == learning_rate(9, 100, 4.99, step) == 5e-5
    assert learning_rate(10, 100, 5.0, step) == learning_rate(99, 100, 349.0, step) == 2.5e-5
    constant = config("data=wikitext103").trainer
    assert {learning_rate(s, 10**6, 0.0, constant) for s in (0, 7, 999_999)} == {3e-4}
    cosine = config().trainer
    rates = [learning_rate(s, 600, 0.0, cosine) for s in range(600)]
    assert rates[: cosine.warmup_steps] == sorted(rates[: cosine.warmup_steps])
    assert rates[cosine.warmup_steps] == max(rates) == cosine.lr
    assert 0 < rates[-1] < 1e-3 * cosine.lr


def test_budget_is_whichever_ends_first():
    def budget(*overrides):
        return config("data=digits", "trainer.epochs=2", *overrides).trainer

    assert total_steps(budget("trainer.warmup_steps=0"), 640) == 20
    assert total_steps(budget("trainer.warmup_steps=0", "trainer.max_steps=7"), 640) == 7
    with pytest.raises(BadInput, match="at most the 20 steps"):
        total_steps(budget("trainer.warmup_steps=21"), 640)


def test_weight_decay_is_on_linear_weights_only(cache):
    cfg = smoke(cache, "model.per_head=true")
    model = build(cfg, prepared(cfg))
    optimizer = build_optimizer(model, cfg.trainer)
    decayed = {id(p) for p in optimizer.param_groups[0]["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in decayed}
    assert optimizer.param_groups[0]["weight_decay"] == 0.1
    assert optimizer.param_groups[1]["weight_decay"] == 0.0
    assert all(name.endswith("weight") for name in names)
    assert not any("norm" in name or "embedding" in name for name in names)
    assert {"head.weight", "blocks.0.attention.mechanism.project_q.weight"} <= names


def test_vision_has_the_groups_of_the_released_optimiser(cache):
    """Its patch embedding has no weight decay, and only the decayed group's rate drops."""
    cfg = smoke(cache, "data=digits", "trainer.schedule=step", "trainer.drop_epochs=[5]")
    model = build(cfg, prepared(cfg))
    optimizer = build_optimizer(model, cfg.trainer)
    decayed, rest = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert id(model.embedding.weight) in rest and id(model.head.weight) in decayed
    lr, late = cfg.trainer.lr, 1000  # after the warm-up
    assert set_learning_rate(optimizer, late, 2000, 4.99, cfg.trainer) == lr
    assert [group["lr"] for group in optimizer.param_groups] == [lr, lr]
    assert set_learning_rate(optimizer, late, 2000, 5.0, cfg.trainer) == lr / 2
    assert [group["lr"] for group in optimizer.param_groups] == [lr / 2, lr]


def test_perplexity_against_a_loop_over_tokens(cache):
    """Stride shorter than the window: each token scored once, with the context of its window."""
    cfg = smoke(cache, "data.sequence_length=16", "data.eval_stride=5")
    data = prepared(cfg)
    data.tokens["test"] = data.tokens["test"][:90]
    model = build(cfg, data).eval()
    tokens = torch.tensor(data.tokens["test"].astype(int))
    losses, overlap_means, scored = [], [], 0
    for begin in [*range(0, 90 - 1 - 16, 5), 90 - 1 - 16]:
        with torch.no_grad():
            logs = model(tokens[None, begin : begin + 16])[0].double().log_softmax(-1)
        window = [-logs[i, tokens[begin + i + 1]].item() for i in range(16)]
        overlap_means.append(sum(window) / 16)
        for i in range(16):
            if begin + i + 1 > scored:
                losses.append(window[i])
                scored = begin + i + 1
    assert len(losses) == 89
    found = evaluate(model, data, "test", 4, precision(cfg.trainer, torch.device("cpu")))
    total = sum(losses)
    assert found["test/perplexity"] == pytest.approx(math.exp(total / 89), rel=1e-5)
    mean = sum(overlap_means) / len(overlap_means)
    assert found["test/perplexity_overlap"] == pytest.approx(math.exp(mean), rel=1e-5)
    words = data.words["test"]
    assert found["test/word_perplexity"] == pytest.approx(math.exp(total / words), rel=1e-5)


def test_the_perplexity_of_a_loss_that_is_no_number_is_none():
    """Else it would be evidence: a very large number, but one."""
    assert perplexity(math.inf) == math.inf and math.isnan(perplexity(math.nan))
    assert math.isfinite(perplexity(1e6))


def test_dead_scorer_is_seen_and_explained(cache, caplog):
    """A score network whose ReLUs never fire: all rows constant; one whose do: none."""
    cfg = smoke(cache, "model.neural_layers=all")
    data = prepared(cfg)
    model = build(cfg, data)
    inputs = data.evaluation("validation").__getitems__([(0, 0), (0, 1)])[0]
    with torch.no_grad():
        for layer, bias in ((0, -1e6), (1, 1e3)):
            model.blocks[layer].attention.mechanism.score_network[0].bias.fill_(bias)
    shares = dead_scorers(model, inputs)
    assert shares == {"attention/0/dead_scorer": 1.0, "attention/1/dead_scorer": 0.0}
    warn_if_dead(shares, 7)
    assert len(caplog.records) == 1
    assert "layer 0 is dead" in caplog.text and "no gradient" in caplog.text
    model(inputs).sum().backward()
    dead = model.blocks[0].attention.mechanism
    assert all(not p.grad.any() for p in dead.score_network[0].parameters())


def test_operations_of_a_step_are_those_counted_by_hand(cache, tmp_path):
    """Published language model: qkv, output projection, FFN and head, and pairs twice; backward
    costs twice as much. The same for every backend, and in result.json.
    """
    cfg = config("model=dot_product", "data=wikitext103", "scale=paper")
    width, ffn, layers, n, vocabulary = 512, 1024, 8, 1024, 28996
    token = layers * (4 * width**2 + 2 * width * ffn + 2 * n * width) + width * vocabulary
    expected = 3 * 2 * 16 * n * token
    assert counted(cfg, vocabulary, vocabulary, n) == expected
    counts = {
        backend: counted(config("scale=smoke", f"model.backend={backend}"), 300, 300, 64)
        for backend in ("auto", "eager", "cpp", "triton")
    }
    assert len(set(counts.values())) == 1
    small = smoke(cache, "model=neural_d2", "data=digits", "trainer.micro_batch_size=2")
    result = run(small, tmp_path / "run")
    shape = prepared(small).shape(small.arch)
    assert result["flops_per_step"] == counted(small, **shape) > 0
    assert "mfu" not in result  # whose peak is known, this processor is not


def test_utilization_is_the_rate_by_the_peak_of_a_known_card(cache):
    cfg = smoke(cache, "data=digits", "trainer.precision=bf16")
    data = prepared(cfg)
    count = counted(cfg, **data.shape(cfg.arch))
    found = arithmetic(cfg, data, 1e3 * count / 98.9e12, "NVIDIA H100 80GB HBM3")
    assert found == {"flops_per_step": count, "mfu": pytest.approx(0.1)}
    assert arithmetic(cfg, data, None, "NVIDIA H100 80GB HBM3") == {"flops_per_step": count}


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_model_trains_the_same(cache, tmp_path):
    """Without dropout, whose masks inductor draws by a generator of its own."""
    short = ["data=digits", "arch.layers=1", "trainer.max_steps=2"]
    _, plain = trained(cache, tmp_path / "a", *short)
    _, compiled = trained(cache, tmp_path / "b", *short, "runtime.compile=true")
    for ours, theirs in zip(plain, compiled, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-5)


def test_an_evaluation_that_is_not_a_number_is_beaten_by_any_that_is():
    cfg = config("scale=smoke", "data=nt")
    selection = Selection(prepared(cfg), cfg.trainer.select_on)
    nan, good = {selection.key: float("nan")}, {selection.key: 0.5}
    assert selection.better(nan, {}) and selection.better(good, nan)
    assert not selection.better(nan, good) and not selection.better(good, good)


def test_a_micro_batch_without_a_scored_target_counts_nothing():
    """The other micro-batch decides the loss and the update; no target at all is a loss of 0."""
    cfg = config("data=nt", "scale=smoke", "trainer.batch_size=4", "trainer.micro_batch_size=2")
    tokens = torch.randint(8, (4, 6))
    unscored = torch.full_like(tokens[:2], UNSCORED)

    def updated(*micro_batches):
        model = model_of(cfg, 8, 8, 6).eval()
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        update = Update(model, build_optimizer(model, cfg.trainer), scaler, cfg.trainer, 0)
        batches = Prefetch(iter(micro_batches), 2, torch.device("cpu"))
        return *update(0, batches), model.state_dict()

    half = (tokens[:2], tokens[:2])
    loss, norm, finite, weights = updated(half, half)
    again, same_norm, _, same = updated((tokens[2:], unscored), half)
    assert finite and again == pytest.approx(loss) and same_norm == pytest.approx(norm)
    for key, value in weights.items():
        torch.testing.assert_close(same[key], value, rtol=1e-4, atol=1e-6)
    assert updated((tokens[2:], unscored), (tokens[2:], unscored))[:3] == (0.0, 0.0, True)


def test_memory_is_known_where_linux_does_not_say_the_peak(monkeypatch):
    """As in some sandboxes, whose /proc/self/status has no VmHWM."""
    monkeypatch.setattr(Path, "read_text", lambda file: "VmRSS:\t    2048 kB\n")
    assert memory_mib(torch.device("cpu")) == 2.0 < peak_memory_mib(torch.device("cpu"))
