"""NT tasks: sequences by their definition, keyed, scored only where they can be predicted; and the
ladder made of them.
"""

import json

import numpy as np
import pytest
import torch
from conftest import config
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnlab.config.symbols import NT
from attnlab.data.symbols import UNSCORED, SymbolData
from attnlab.errors import BadInput
from attnlab.report.collect import collect
from attnlab.report.compare import comparisons
from attnlab.report.ladder import ladders, table
from attnlab.report.render import report

TASKS = st.lists(
    st.lists(st.integers(1, 9), min_size=2, max_size=2).filter(lambda task: task[0] > 1),
    min_size=1,
    max_size=4,
    unique_by=tuple,
)


def symbols(tasks, length, **sizes):
    fixed = {"name": "nt", "kind": "symbols", "n": 2, "tau": 1}
    sizes = {"train_size": 8, "eval_size": 12, "test_ladder": None} | sizes
    return NT(**fixed, ladder=tasks, sequence_length=length, **sizes)


@settings(max_examples=50)
@given(TASKS, st.integers(2, 20), st.integers(0, 99), st.booleans())
def test_sequences_follow_the_recurrence(tasks, length, seed, train):
    assume(all(tau < length for _, tau in tasks))
    data = SymbolData(symbols(tasks, length), seed)
    dataset = data.train() if train else data.evaluation("test")
    inputs, targets, task = dataset.__getitems__([(1, i) for i in range(len(dataset))])
    assert inputs.shape == targets.shape == (len(dataset), length)
    assert task.tolist() == [i % len(tasks) for i in range(len(dataset))]
    for row, expected, number in zip(
        inputs.tolist(), targets.tolist(), task.tolist(), strict=True
    ):
        n, tau = tasks[number]
        assert row[0] == max(m for m, _ in tasks) + number  # which task it is
        x = row[1:]
        assert expected[:tau] == [UNSCORED] * tau
        assert expected[tau:-1] == x[tau:]  # a target is the next input
        assert all(0 <= symbol < n for symbol in (*x, expected[-1]))
        x.append(expected[-1])
        assert all(x[t] == (x[t - 1] + x[t - tau]) % n for t in range(tau, length))


def test_a_level_keeps_its_token_in_a_test_of_some_levels():
    data = SymbolData(symbols([[2, 1], [4, 3], [3, 2]], 6, test_ladder=[[3, 2], [4, 3]]), seed=0)
    inputs, _, _ = data.evaluation("test").__getitems__([(0, 0), (0, 1)])
    assert inputs[:, 0].tolist() == [4 + 2, 4 + 1]


def test_a_key_decides_a_sequence():
    data = SymbolData(symbols([[16, 5]], 12), seed=3)
    whole = data.train().__getitems__([(0, i) for i in range(8)])[0]
    assert torch.equal(data.train().__getitems__([(0, 6), (0, 2)])[0], whole[[6, 2]])
    others = {
        "epoch": data.train().__getitems__([(1, i) for i in range(8)])[0],
        "seed": SymbolData(data.options, 4).train().__getitems__([(0, i) for i in range(8)])[0],
        "split": data.evaluation("validation").__getitems__([(0, i) for i in range(8)])[0],
    }
    assert all(not torch.equal(other, whole) for other in others.values())
    for split in ("validation", "test"):  # the same for all seeds
        both = (SymbolData(data.options, seed).evaluation(split) for seed in (0, 1))
        assert torch.equal(*(part.__getitems__([(0, 0)])[0] for part in both))


def test_metrics_count_predicted_symbols_of_each_task():
    data = SymbolData(symbols([[2, 1], [4, 3]], 5, eval_size=4), seed=0)
    _, targets, task = data.evaluation("test").__getitems__([(0, i) for i in range(4)])
    logits = torch.full((4, 5, data.options.vocab_size), -9.0)
    logits[torch.arange(4)[:, None], torch.arange(5), targets.clamp(min=0)] = 9.0  # all right ...
    wrong = (targets[1, 3] + 1) % 4
    logits[1, 3] = -9.0
    logits[1, 3, wrong] = 9.0  # ... but one of the second task's 4
    found = data.metrics("test", data.sums(logits, targets, task))
    assert found["accuracy_n2_tau1"] == 1
    assert found["accuracy_n4_tau3"] == 3 / 4
    assert found["accuracy"] == 11 / 12
    assert found["loss"] == pytest.approx(18 / 12, abs=1e-3)


def test_trivial_predictors_by_hand():
    data = SymbolData(symbols([[2, 1], [4, 3]], 5, eval_size=6), seed=0)
    inputs, targets, _ = data.evaluation("test").__getitems__([(0, i) for i in range(6)])
    found = data.baselines("test")
    copies = [
        int(before) == int(after)
        for row, wanted in zip(inputs[1::2], targets[1::2], strict=True)
        for before, after in zip(row, wanted, strict=True)
        if after != UNSCORED
    ]
    assert found["copy_accuracy_n4_tau3"] == np.mean(copies)
    assert (found["chance_accuracy_n2_tau1"], found["chance_accuracy_n4_tau3"]) == (0.5, 0.25)
    assert found["chance_accuracy"] == pytest.approx((12 * 0.5 + 6 * 0.25) / 18)


def test_untrained_model_is_scored_at_chance_level(train, tmp_path):
    """Through train.py: what is unpredictable is not scored, and neither is the task's token."""
    overrides = ("data.n=2", "data.tau=3", "data.eval_size=400", "trainer.lr=1e-9")
    code, _, err = train("data=nt", "scale=smoke", "hydra.run.dir=run", *overrides)
    assert code == 0, err
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert 0.3 < result["test/accuracy"] < 0.7
    assert result["test/chance_accuracy"] == 0.5 and 0.3 < result["test/copy_accuracy"] < 0.6


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.tau=64"], "tau=64: must be less than data.sequence_length=64"),
        (["data.ladder=[[4,2],[1,3]]"], "[n, tau]=[1, 3]: n=1: must be at least 2"),
        (["data.ladder=[[4,2],[4]]"], "data.ladder.1=[4]: must have at least 2 items"),
    ],
)
def test_bad_tasks_are_one_clear_line(overrides, message):
    with pytest.raises(BadInput) as error:
        config("data=nt", *overrides)
    assert message in str(error.value)


def levels(root, accuracies):
    """Run folders with these test accuracies: (model, tau, seed) -> accuracy."""
    import yaml

    for (model, tau, seed), accuracy in accuracies.items():
        cfg = config("data=nt", f"model={model}", f"data.tau={tau}", f"seed={seed}", "data.n=16")
        folder = root / f"{model}_{tau}_{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump()))
        result = {"status": "finished", "test/accuracy": accuracy, "data_fingerprint": str(tau)}
        result |= {"test/chance_accuracy": 1 / 16, "test/copy_accuracy": 0.07}
        (folder / "result.json").write_text(json.dumps(result))


def test_ladder_ends_below_the_first_level_that_a_seed_misses(tmp_path):
    solved = dict.fromkeys(
        [("dot_product", tau, seed) for tau in (2, 4, 8) for seed in (0, 1)], 1.0
    )
    found = solved | {("dot_product", 4, 1): 0.9985, ("expressive", 2, 0): 0.9991}
    levels(tmp_path, found)
    (ladder,) = ladders(comparisons(collect(tmp_path)))
    assert ladder.levels == [(16, 2), (16, 4), (16, 8)]
    assert ladder.solved("dot_product", (16, 8)) and not ladder.solved("dot_product", (16, 4))
    assert ladder.reached("dot_product", 16) == 2 and ladder.reached("expressive", 16) == 2
    assert not ladder.solved("expressive", (16, 4))  # was not run
    rows = table(ladder).rows
    assert rows[1] == ["16", "4", "6.25", "7.00", "99.92 (lowest of 2: 99.85)", "—"]
    assert rows[-1] == ["16", "reached", "", "", "tau = 2", "tau = 2"]


def test_ladder_is_in_the_report(tmp_path):
    levels(tmp_path, {("dot_product", tau, 0): 1 / tau for tau in (1, 2)})
    report(tmp_path, tmp_path / "report")
    page = (tmp_path / "report" / "index.html").read_text()
    assert "Ladder: nt" in page and "100.00" in page
    text = (tmp_path / "report" / "report.md").read_text()
    assert "figures/ladder_1.png" in text
    assert (tmp_path / "report" / "figures" / "ladder_1.png").stat().st_size > 10_000
