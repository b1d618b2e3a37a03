"""Copy and recall tasks against solvers that read the visible prefix alone."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import yaml
from conftest import config, metrics, prepared
from hypothesis import given, settings
from hypothesis import strategies as st

from attnlab.config.symbols import Copy, Recall, suffix
from attnlab.data.loader import train_loader
from attnlab.data.symbols import UNSCORED, SymbolData
from attnlab.errors import BadInput
from attnlab.report.collect import collect
from attnlab.report.compare import comparisons
from attnlab.report.ladder import ladders, note, table
from attnlab.report.render import report
from attnlab.run import run

START, SELECTIVE, RECALL = 10, 11, 12  # of the copy tasks; symbols are 0 to 9
ALLOWED = {
    "delay_copy": {START},
    "selective_copy": {SELECTIVE},
    "random_copy": {START, SELECTIVE},
}
DELAYS = st.lists(
    st.tuples(st.integers(10, 20), st.integers(0, 9)).map(lambda x: [x[0], x[0] + x[1]]),
    min_size=1,
    max_size=3,
)
SIZES = {"kind": "symbols", "train_size": 8, "eval_size": 8, "test_ladder": None}


def copies(ladder, name="random_copy", **more):
    options = SIZES | {"unscored": 18, "vocab_size": 20, "sequence_length": 120} | more
    return Copy(name=name, shortest=15, longest=25, ladder=ladder, **options)


def pairs(ladder, **more):
    options = SIZES | {"power": 0.3, "vocab_size": 41, "sequence_length": 60} | more
    return Recall(name="mqar", pairs=1, length=4, ladder=ladder, **options)


def everything(data, epoch=0, train=True):
    dataset = data.train() if train else data.evaluation("test")
    return dataset.__getitems__([(epoch, i) for i in range(len(dataset))])


def copied(prefix):
    """What follows a prefix of a copy task, or None where only a copy's end, noise or a new
    episode can follow.
    """
    start = max(i for i, token in enumerate(prefix) if token in (START, SELECTIVE))
    episode = prefix[start:]
    if RECALL not in episode:
        return None
    content = []
    for token in episode[1:]:
        if token > 9:
            break
        content.append(token)
    wanted = content if episode[0] == START else [content[i] for i in range(1, len(content), 2)]
    done = len(episode) - 1 - episode.index(RECALL)
    return wanted[done] if done < len(wanted) else None


@settings(max_examples=40)
@given(
    DELAYS, st.sampled_from(sorted(ALLOWED)), st.integers(0, 30), st.integers(0, 99), st.booleans()
)
def test_every_copy_that_the_prefix_determines_is_scored_and_nothing_else(
    ladder, name, unscored, seed, train
):
    options = copies(ladder, name, unscored=unscored)
    inputs, targets, task = everything(SymbolData(options, seed), train=train)
    assert inputs.shape == targets.shape == (8, 120) and 0 <= inputs.min() <= inputs.max() < 20
    for row, expected, level in zip(inputs.tolist(), targets.tolist(), task.tolist(), strict=True):
        found = [copied(row[: t + 1]) for t in range(len(row))]
        wanted = [UNSCORED if s is None or t < unscored else s for t, s in enumerate(found)]
        assert expected == wanted and any(s != UNSCORED for s in expected)
        shortest, longest = ladder[level]
        starts = [t for t, token in enumerate(row) if token in (START, SELECTIVE)]
        assert starts[0] == 0 and {row[t] for t in starts} <= ALLOWED[name]
        for begin, end in pairwise([*starts, None]):
            episode = row[begin:end]
            if RECALL in episode:
                assert shortest <= episode.index(RECALL) <= longest
                assert episode.count(RECALL) == 1
        assert all(s == x for s, x in zip(expected, row[1:], strict=False) if s != UNSCORED)


def test_lengths_are_binomial_and_delays_uniform():
    """Over some 2,800 episodes: means and the chance of both kinds within five standard errors."""
    data = SymbolData(copies(None, sequence_length=1200, train_size=70), 0)
    lengths, delays, selective = [], [], []
    for row in everything(data)[0].tolist():
        starts = [t for t, token in enumerate(row) if token in (START, SELECTIVE)]
        for begin, end in pairwise(starts):
            episode = row[begin:end]
            delays.append(episode.index(RECALL))
            lengths.append(next(i for i, x in enumerate(episode[1:]) if x > 9))
            selective.append(episode[0] == SELECTIVE)
    assert set(lengths) <= set(range(2, 10)) and set(delays) == set(range(15, 26))
    for values, mean, variance in (
        (lengths, 6.0, 2.0), (delays, 20.0, 10.0), (selective, 0.5, 0.25)
    ):  # fmt: skip
        assert abs(np.mean(values) - mean) < 5 * math.sqrt(variance / len(values))


LEVELS = st.lists(
    st.tuples(st.integers(1, 10), st.integers(0, 20)).map(lambda x: [x[0], 4 * x[0] + x[1]]),
    min_size=1,
    max_size=3,
)


@settings(max_examples=40)
@given(LEVELS, st.floats(0.01, 2), st.integers(0, 99))
def test_every_key_is_asked_for_once_and_its_pair_answers(ladder, power, seed):
    options = pairs(ladder, power=power)
    inputs, targets, task = everything(SymbolData(options, seed))
    assert 0 <= inputs.min() <= inputs.max() < 41
    for row, expected, level in zip(inputs.tolist(), targets.tolist(), task.tolist(), strict=True):
        count, length = ladder[level]
        keys, values = row[: 2 * count : 2], row[1 : 2 * count : 2]
        assert len(set(keys)) == len(set(values)) == count
        assert max(keys) < 20 <= min(values)
        asked = [t for t, s in enumerate(expected) if s != UNSCORED]
        assert sorted(row[t] for t in asked) == sorted(keys)
        assert all(2 * count <= t < length and t % 2 == 0 for t in asked)
        assert all(row[row.index(row[t]) + 1] == expected[t] for t in asked)  # the first time


def test_small_powers_ask_early():
    """One query in 50 places: its share of each is proportional to place^(power - 1)."""
    for power in (0.01, 1.0):
        data = SymbolData(pairs([[1, 102]], power=power, sequence_length=102, train_size=1500), 0)
        _, targets, _ = everything(data)
        at = (targets != UNSCORED).int().argmax(1).numpy() // 2 - 1
        share = np.arange(1, 51) ** (power - 1.0)
        share /= share.sum()
        found = np.bincount(at, minlength=50) / len(at)
        assert np.abs(found - share).max() < 5 * math.sqrt(share.max() / len(at))


SHORT = ("scale=smoke", "model=dot_product")
TASKS = {
    "delay_copy": ("data.ladder=[[15,25],[12,12]]",),
    "selective_copy": (),
    "random_copy": (),
    "mqar": ("data.ladder=[[2,32],[5,24]]",),
}


@pytest.mark.parametrize("task", TASKS)
def test_chance_is_what_a_blind_guess_reaches(task):
    """A guess among the symbols to copy, or among the values that the sequence has shown."""
    data = prepared(config(f"data={task}", *SHORT, *TASKS[task], "data.eval_size=600"))
    inputs, targets, level = everything(data, train=False)
    random = np.random.default_rng(0)
    hits: dict[int, list[bool]] = {}
    for row, wanted, number in zip(inputs, targets, level.tolist(), strict=True):
        count = data.options.tasks[number][0]
        answers = row[1 : 2 * count : 2].tolist() if task == "mqar" else range(10)
        guesses = random.choice(answers, size=len(wanted))
        scored = wanted != UNSCORED
        hits.setdefault(number, []).extend((wanted.numpy() == guesses)[scored.numpy()])
    found = data.baselines("test")
    chances = [v for k, v in found.items() if k.startswith("chance_accuracy_")]
    for number, chance in enumerate(chances or [found["chance_accuracy"]]):
        got = hits[number]
        assert abs(np.mean(got) - chance) < 5 * math.sqrt(chance * (1 - chance) / len(got))
    assert found["chance_accuracy"] == pytest.approx(
        sum(len(hits[i]) * c for i, c in enumerate(chances)) / sum(map(len, hits.values()))
        if chances
        else 1 / 10
    )


@pytest.mark.parametrize("task", TASKS)
def test_batches_are_a_function_of_seed_and_step(task):
    """From step 3 on they are the same whether or not steps 0 to 2 came before, across epochs."""
    cfg = config(f"data={task}", *SHORT, *TASKS[task], "data.train_size=10")

    def batches(seed, steps):
        data = prepared(cfg.model_copy(update={"seed": seed}))
        return list(train_loader(data, cfg.trainer, seed, steps))

    whole, rest, other = (batches(seed, range(a, 8)) for seed, a in ((0, 0), (0, 3), (1, 3)))
    same = [all(map(torch.equal, one, two)) for one, two in zip(whole[3:], rest, strict=True)]
    assert all(same) and len(same) == 5
    assert not any(torch.equal(a[0], b[0]) for a, b in zip(rest, other, strict=True))
    assert not torch.equal(whole[0][0], whole[5][0])


@pytest.mark.parametrize("task", ["random_copy", "mqar"])
def test_a_run_measures_every_level(task, cache, tmp_path):
    """Through the whole program, with ALiBi and diagnostics of every layer."""
    words = ("scale=smoke", "model=dagpam", "arch.positions=alibi", "trainer.diagnostics=true")
    ladder = {"random_copy": ("data.ladder=[[15,25],[12,12]]",)}.get(task, TASKS[task])
    cfg = config(f"data={task}", *words, *ladder, "logger=none", f"runtime.cache={cache}")
    result = run(cfg, tmp_path)
    ends = [suffix(cfg.data.level, level) for level in cfg.data.tasks]
    assert len(ends) == 2 and all(0 <= result[f"test/accuracy{end}"] <= 1 for end in ends)
    last = [row for row in metrics(tmp_path) if "attention/1/row_sum" in row][-1]
    assert last["step"] == 4 and last["attention/1/row_sum"] == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("data=delay_copy data.shortest=9", "data.shortest=9: must be more than the longest"),
        ("data=delay_copy data.longest=14", "shortest=15: must be at most the longest delay, 14"),
        ("data=random_copy data.longest=115", "data.longest=115: needs data.sequence_length=256"),
        ("data=mqar data.vocab_size=7", "data.pairs=4: must be at most half of data.vocab_size=7"),
        ("data=mqar data.length=15", "data.length=15: must be at least 4 * pairs = 16"),
        ("data=mqar data.length=65", "data.length=65: must be at most data.sequence_length=64"),
        ("data=mqar data.ladder=[[4,64],[1,2]]", "[pairs, length]=[1, 2]: length=2: must be"),
        ("data=mqar data.test_ladder=[[4,65]]", "test_ladder=[[4, 65]]: [pairs, length]=[4, 65]:"),
        ("data=nt data.ladder=[[2,4],[2,4]]", "[[2, 4], [2, 4]]: a level is named twice"),
        ("data=nt data.ladder=[[2,4],[4,4]] data.eval_size=1", "needs data.eval_size=1 to be at"),
        ("data=nt data.test_ladder=[[16,5]]", "[16, 5] must be in data.ladder too"),
        ("data=mqar +data.tau=3", "data.tau: unknown key for this choice of data"),
        ("data=mqar data.name=mqra", "did you mean mqar?"),
        ("data=mqar data.power=0.0", "data.power=0.0: must be greater than 0"),
    ],
)  # fmt: skip
def test_impossible_tasks_are_one_clear_line(overrides, message):
    with pytest.raises(BadInput) as error:
        config(*overrides.split())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_levels_of_the_test_need_not_be_those_of_training(cache, tmp_path):
    """Only the test split has them, and the report tells their ladder from one that trained on
    them.
    """
    base = ("data=delay_copy", "scale=smoke", "model=dot_product", "logger=none")
    base += (f"runtime.cache={cache}", "data.shortest=12", "data.longest=14")
    longer = "data.test_ladder=[[12,14],[15,20],[20,25]]"
    cfg, plain = config(*base, longer), config(*base)
    assert cfg.hash != plain.hash
    data, other = prepared(cfg), prepared(plain)
    assert data.fingerprint != other.fingerprint
    for split, same in (("validation", True), ("test", False)):
        keys = [(0, i) for i in range(12)]
        one, two = (d.evaluation(split).__getitems__(keys) for d in (data, other))
        assert all(map(torch.equal, one, two)) == same
        delays = {row.index(RECALL) for row in one[0].tolist()}  # of each sequence's first episode
        assert max(delays) > 14 if split == "test" else max(delays) <= 14
    ends = ("_shortest12_longest14", "_shortest15_longest20", "_shortest20_longest25")
    for name, words in (("new", (longer,)), ("known", ("data.ladder=[[12,14],[15,20]]",))):
        result = run(config(*base, *words), tmp_path / name)
        assert [f"test/accuracy{end}" in result for end in ends] == [True, True, name == "new"]
    new, known = sorted(ladders(comparisons(collect(tmp_path))), key=lambda x: x.trained is None)
    assert new.trained == [(12, 14)] and new.levels == [(12, 14), (15, 20), (20, 25)]
    assert "training had shortest = 12, longest = 14." in note(new)
    assert known.trained is None and known.levels == [(12, 14), (15, 20)]
    report(tmp_path, tmp_path / "page")
    assert "training had shortest = 12" in (tmp_path / "page/report.md").read_text()


def test_a_ladder_has_the_levels_of_its_task(tmp_path):
    """Two levels in one stream, and each of them in a run of its own, of one arm."""
    base = ("data=mqar", "model=dot_product")
    for i, words in enumerate((["data.ladder=[[4,64],[8,64]]"], ["data.pairs=2"])):
        cfg = config(*base, *words)
        (folder := tmp_path / str(i)).mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg.model_dump()))
        result = {"status": "finished", "test/accuracy": 0.5, "data_fingerprint": str(i)}
        for n, task in enumerate(cfg.data.tasks):
            end = f"_pairs{task[0]}_length{task[1]}" if len(cfg.data.tasks) > 1 else ""
            result |= {f"test/accuracy{end}": 1 - 0.1 * n, f"test/chance_accuracy{end}": 0.25}
            result |= {f"test/copy_accuracy{end}": 0.0}
        (folder / "result.json").write_text(json.dumps(result))
    found = {
        name: ladder for ladder in ladders(comparisons(collect(tmp_path))) for name in ladder.names
    }
    assert found.keys() == {f"pairs = {n}, length = 64" for n in (2, 4, 8)}
    one = found["pairs = 4, length = 64"]
    assert one.accuracy["dot_product"] == {(4, 64): [1.0], (8, 64): [0.9]}
    rows = table(one).rows
    assert rows[0][:4] == ["4", "64", "25.00", "0.00"] and rows[-1][-1] == "none"
    assert "Task mqar" in note(one) and "n^tau" not in note(one)
