"""Learning rates: how they are chosen, what a tuned sweep runs, and what its report says."""

import dataclasses
import json
import math

import numpy as np
import pytest
import yaml
from made_runs import LADDER, finished, is_trial, tuned

from attnlab import cli
from attnlab.config.measures import ACCURACY, PERPLEXITY
from attnlab.config.tuning import Tuning
from attnlab.errors import BadInput
from attnlab.report.answer_text import notes, registered, registered_at_own_rates
from attnlab.report.collect import collect
from attnlab.report.compare import comparisons
from attnlab.report.questions import answers
from attnlab.report.tuning import tunings
from attnlab.report.tuning_text import notes as tuning_notes
from attnlab.report.tuning_text import table
from attnlab.sweeps.jobs import FAILED, compose_jobs
from attnlab.sweeps.tuning import Choice, choose, tune


@pytest.mark.parametrize(
    ("response", "measure", "rate", "at_edge"),
    [
        ({0.1: [30, 32], 0.2: [29, 31], 0.4: [33, 33]}, PERPLEXITY, 0.2, False),
        ({0.1: [0.5, 0.4], 0.2: [0.6, 0.7], 0.4: [0.8, 0.9]}, ACCURACY, 0.4, True),
        ({0.1: [30], 0.2: [29], 0.4: [math.nan]}, PERPLEXITY, 0.2, False),  # tried, so no edge
        ({0.1: [30, 30], 0.2: [20, math.nan]}, PERPLEXITY, 0.1, True),
    ],
)
def test_the_best_mean_is_chosen_among_rates_at_which_nothing_diverged(
    response, measure, rate, at_edge
):
    assert choose(response, measure) == Choice(rate, at_edge)


def test_where_everything_diverges_nothing_is_chosen():
    assert choose({0.1: [math.nan], 0.2: [math.nan]}, ACCURACY) is None


def test_a_tuning_seed_is_never_one_of_the_sweeps():
    jobs = compose_jobs([["scale=smoke", "seed=100"]])
    with pytest.raises(BadInput, match="seed 100 is also a seed of the sweep"):
        tune(jobs, Tuning(seeds=[100, 101], factors=[0.5, 1]), run=lambda jobs: 0)


def test_rates_are_not_swept_and_tuned_at_once():
    jobs = compose_jobs([["scale=smoke", f"trainer.lr={rate}"] for rate in (0.1, 0.2)])
    with pytest.raises(BadInput, match=r"^trainer.lr=0.1, trainer.lr=0.2: tune=lr chooses among"):
        tune(jobs, Tuning(seeds=[100], factors=[0.5, 1]), run=lambda jobs: 0)


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("tune=lr hydra.mode=RUN", "tune=lr: needs a sweep (-m); this is one run"),
        ("tune=lr tune.seeds=[-1] hydra.mode=RUN", "tune.seeds.0=-1: must be greater than"),
        ("tune=lr tune.factors=[1,1] hydra.mode=RUN", "tune.factors=[1.0, 1.0]: must name each"),
        ("tune=lr tune.extend=1 hydra.mode=RUN", "tune.extend=1: must be greater than 1"),
        ("tune=rl hydra.mode=RUN", "tune=rl: unknown tune; allowed: lr"),
    ],
)
def test_bad_tuning_is_one_line(typed, message):
    with pytest.raises(BadInput) as error:
        cli.check_overrides(typed.split())
    assert str(error.value).startswith(message) and len(str(error.value).splitlines()) == 1


def test_arms_get_their_own_rates_and_a_tuning_seed_counts_nowhere(train, tmp_path):
    """The trials choose, the sweep's seed runs at both rates, and again is nothing."""
    words = ("-m", "scale=smoke", "data=nt", "trainer.max_steps=2", "trainer.eval_every=2")
    words += ("model=dot_product,neural_d2", "seed=0")
    words += ("tune=lr", "tune.seeds=[7]", "tune.factors=[0.01,1]")
    code, out, err = train(*words)
    assert code == 0, err
    assert out.count("at the grid's edge") == 2  # of two rates each is an end
    finished = {file: file.stat().st_mtime for file in tmp_path.rglob("result.json")}
    (found,), rest = tunings(collect(tmp_path / "outputs"))
    assert found.seeds == [7] and {r.config["seed"] for r in rest} == {0}
    assert [e.n for e in (*found.at_own.values(), *found.at_common.values())] == [1, 1]
    assert [len(tuned.response) for tuned in found.arms] == [2, 2]
    assert 4 + 2 <= len(finished) <= 4 + 2 + 2
    assert train(*words)[0] == 0
    assert {file: file.stat().st_mtime for file in tmp_path.rglob("result.json")} == finished


def test_an_arm_whose_best_rate_is_at_an_edge_is_tried_beyond_it(tmp_path, capsys):
    """So long as the next rate is better. Then the fresh seed runs, and the other arm is tried at
    no more rates.
    """
    best = {"dot_product": 0.08, "uniform": 0.004}
    words = ("data=nt", "scale=smoke", "trainer.lr=0.004", f"runtime.output_root={tmp_path}")
    jobs = compose_jobs([[*words, f"model={model}", "seed=0"] for model in best])
    done = []

    def run(jobs: list) -> int:
        for job in jobs:
            distance = abs(math.log(job.cfg.trainer.lr / best[job.cfg.model.name]))
            job.path.mkdir(parents=True, exist_ok=True)
            (job.path / "config.yaml").write_text(yaml.safe_dump(job.cfg.model_dump()))
            value = {"best/val/accuracy": 1 - distance / 10, "test/accuracy": 0.5}
            (job.path / "result.json").write_text(json.dumps({"status": "finished"} | value))
            done.append((job.cfg.model.name, job.cfg.seed, job.cfg.trainer.lr))
        return 0

    assert tune(jobs, Tuning(seeds=[100], factors=[0.5, 1, 2], extend=2), run) == 0
    tried = {model: {lr for m, seed, lr in done if m == model and seed == 100} for model in best}
    assert tried["uniform"] == {0.002, 0.004, 0.008}
    assert tried["dot_product"] == {0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128}
    assert capsys.readouterr().out.count("at the grid's edge") == 4
    fresh = [(model, lr) for model, seed, lr in done if seed == 0]
    assert sorted(fresh) == [("dot_product", 0.004), ("dot_product", 0.064), ("uniform", 0.004)]
    assert done.index(("dot_product", 100, 0.128)) < done.index(("dot_product", 0, 0.004))


def test_one_trial_more_of_one_arm_changes_nothing_for_the_others():
    """As a sweep leaves it that was stopped, and started again with fewer factors."""
    arms = ("dot_product", "expressive", "expressive_tempered")
    runs = [run for arm in arms for run in tuned(arm, {0.003: 0.8, 0.006: 0.9, 0.012: 0.7})]
    runs += [run for run in tuned("dot_product", {0.024: 0.6}) if is_trial(run)]
    found, rest = tunings(runs)
    assert [arm.own for arm in found[0].arms] == [Choice(0.006, at_edge=False)] * 3
    (answer,) = answers(rest, found)
    assert len(answer.runs) == 15 and not any("edge" in note for note in notes(answer))
    extended = [r for a in arms[1:] for r in tuned(a, {0.048: 0.5}) if is_trial(r)]
    (of_most,), _ = tunings(runs + extended)
    assert [arm.own for arm in of_most.arms] == [Choice(0.006, at_edge=False)] * 3
    (of_two,), _ = tunings(r for r in runs if r.config["model.name"] != "expressive")
    assert [arm.own for arm in of_two.arms] == [Choice(0.006, at_edge=False)] * 2


def test_a_tuning_says_what_its_effects_leave_out():
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.9, 0.012: 0.7})
    runs += tuned("expressive", {0.003: 0.8, 0.006: 0.9, 0.012: 0.7})
    at_the_last_rate = [run for run in runs[-8:] if not is_trial(run)]
    failed = at_the_last_rate[0]
    failed.status, failed.cause = "failed", "NonFinite: step 3: loss nan"
    (found,), _ = tunings(runs)
    said = " ".join(tuning_notes(found))
    assert "without a result" not in said  # at 0.012, which is no arm's own
    own = [r for r in runs if r.config["trainer.lr"] == 0.006 and not is_trial(r)]
    own[0].status, own[0].cause = "failed", "NonFinite: step 3: loss nan"
    own[1].result["data_fingerprint"] = "other"
    (found,), _ = tunings(runs)
    said = " ".join(tuning_notes(found))
    assert "without a result: dot_product seed 10 (NonFinite)" in said and "different data" in said


def test_a_trial_that_was_collected_without_a_number_has_diverged():
    """A file of runs has null where result.json has NaN."""
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.9, 0.012: 0.7})
    for run in runs:
        if is_trial(run) and run.config["trainer.lr"] == 0.006:
            del run.result["best/val/accuracy"]
    (found,), _ = tunings(runs)
    assert found.arms[0].own == Choice(0.003, at_edge=True)
    assert "diverged" in table(found).markdown()


def test_a_question_about_each_arms_own_rate_is_answered_at_own_rates():
    """At the common rate, 0.003, expressive is worse; at its own it is better."""
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.7})
    runs += tuned("expressive", {0.003: 0.6, 0.012: 0.9})
    runs += tuned("expressive_tempered", {0.003: 0.8, 0.012: 0.8})
    found, rest = tunings(runs)
    (answer,) = answers(rest, found)
    assert not [reason for reason in answer.deviations if "question" not in reason]
    assert {run.config["trainer.lr"] for run in answer.runs} == {0.003, 0.012}
    assert answer.of("expressive", "dot_product", "arch.norm=pre").mean == pytest.approx(10)
    (untuned,) = answers(rest)
    assert "one learning rate for all arms instead of each arm's own" in str(untuned.deviations)


def test_an_arm_without_a_rate_says_why():
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.9, 0.012: 0.7})
    runs += tuned("expressive", {0.003: math.nan, 0.006: math.nan})
    runs += tuned("expressive_tempered", {0.003: 0.9, 0.006: 0.9}, seeds=())
    (found,), _ = tunings(runs)
    rows = {row[0]: row for row in table(found).rows}
    said = {arm: row[len(found.rates) + 1] for arm, row in rows.items()}
    assert said == {
        "dot_product": "0.006",
        "expressive": "diverged at every rate",
        "expressive_tempered": "no trials",
    }


def test_a_question_is_not_lost_where_its_control_has_no_rate_yet():
    """The grid of the dot product was cut short, so the runs at one rate are shown instead."""
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.9})
    for arm in ("expressive", "expressive_tempered"):
        runs += tuned(arm, {0.003: 0.8, 0.006: 0.9, 0.012: 0.7})
    found, rest = tunings(runs)
    assert found[0].arms[0].own is None
    assert "to be tried at more rates" in table(found[0]).markdown()
    said = [deviation for answer in answers(rest, found) for deviation in answer.deviations]
    assert "one learning rate for all arms instead of each arm's own (tune=lr)" in said


def test_an_answer_says_that_a_rate_was_the_last_of_the_grid():
    arms = ("dot_product", "expressive", "expressive_tempered")
    runs = [run for arm in arms for run in tuned(arm, {0.003: 0.8, 0.006: 0.9})]
    found, rest = tunings(runs)
    (answer,) = answers(rest, found)
    assert any("best rate of dot_product, expressive" in note for note in notes(answer))


def test_without_trials_every_learning_rate_is_a_place_of_its_own():
    """Else the path of a run's folder would choose the rate of its seed."""
    arms = ("dot_product", "expressive", "expressive_tempered")
    runs = [run for arm in arms for run in tuned(arm, {0.003: 0.8, 0.006: 0.9}, seeds=())]
    rates = [{r.config["trainer.lr"] for r in answer.runs} for answer in answers(runs)]
    assert rates == [{0.003}, {0.006}]


def test_runs_at_a_rate_of_all_arms_are_compared_at_it_whichever_arm_chose_it():
    runs = [*tuned("dot_product", {0.003: 0.8, 0.006: 0.9})]
    runs += [*tuned("expressive", {0.003: 0.9, 0.006: 0.8})]
    _, rest = tunings(runs)
    assert {(r.config["model.name"], r.config["trainer.lr"]) for r in rest} == {
        (arm, rate) for arm in ("dot_product", "expressive") for rate in (0.003, 0.006)
    }


def test_a_tuning_leaves_other_comparisons_alone():
    """Those at a rate that is no arm's own; the trials and the own rates are shown apart."""
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.7})
    runs += tuned("expressive", {0.003: 0.6, 0.012: 0.9})
    other = [
        finished(
            1, *LADDER, f"model={model}", "trainer.lr=0.05", seed=10, **{"test/accuracy": 0.5}
        )
        for model in ("dot_product", "expressive")
    ]
    (found,), rest = tunings(runs + other)
    rates = {(run.config["model.name"], run.config["trainer.lr"]) for run in rest}
    assert found.common == 0.003
    assert rates == {
        ("dot_product", 0.003), ("dot_product", 0.006), ("dot_product", 0.05),
        ("expressive", 0.003), ("expressive", 0.05),
    }  # fmt: skip


def test_an_interrupted_tuning_chooses_nothing_and_guesses_no_common_rate():
    runs = tuned("dot_product", {0.003: 0.9, 0.006: 0.8})
    runs += [run for run in tuned("expressive", {0.003: 0.6, 0.012: 0.9}) if is_trial(run)]
    last = max(i for i, run in enumerate(runs) if is_trial(run))
    (found,), _ = tunings(runs[:last] + runs[last + 1 :])
    assert [arm.own and arm.own.rate for arm in found.arms] == [0.003, None]
    assert "trials unfinished" in table(found).markdown()
    between = [r for r in runs if r.config["trainer.lr"] != 0.012]  # stopped between two rates
    (found,), _ = tunings(between)
    assert [arm.own and arm.own.rate for arm in found.arms] == [0.003, None]
    fresh = [run for run in runs if not is_trial(run) and run.config["trainer.lr"] == 0.006]
    (found,), _ = tunings([run for run in runs if is_trial(run)] + fresh)
    assert found.at_common == {}  # only one arm has run so far


def test_a_run_that_was_there_before_the_trials_is_one_of_them():
    """The sweep does not repeat it, and chooses by its value too."""
    runs = tuned("dot_product", {0.003: 0.9, 0.006: 0.8, 0.012: 0.7})
    for made in runs:
        if made.config["trainer.lr"] == 0.003:
            made.config = made.config | {"runtime.tuning": False}
    (found,), _ = tunings(runs)
    assert found.arms[0].own == Choice(0.003, at_edge=True)


def test_trials_that_all_diverged_are_said_again(tmp_path, cache, capsys):
    jobs = compose_jobs([[f"runtime.output_root={tmp_path}", "data=nt", "scale=smoke"]])

    def diverge(listed) -> int:
        for job in listed:
            job.path.mkdir(parents=True)
            (job.path / "failed.txt").write_text("NonFinite: step 1: loss nan\n")
        return FAILED

    for _ in range(2):  # the second time nothing is left to run
        assert tune(jobs, Tuning(seeds=[7], factors=[1, 2]), diverge) == FAILED
        assert "tune.factors needs smaller ones" in capsys.readouterr().out


def test_a_registered_effect_at_own_rates_stands_in_the_answer_alone():
    """Two arms have the common rate for their own, the dot product has another one: no comparison
    judges their runs again at a laxer level, and no table shows a narrower interval.
    """
    runs = tuned("dot_product", {0.003: 0.97, 0.006: 0.99})
    for arm in ("expressive", "expressive_tempered"):
        runs += tuned(arm, {0.003: 0.98, 0.006: 0.95})
    (found,), rest = tunings(runs)
    (answer,) = (a for a in answers(rest, [found]) if a.tunings)
    answer.deviations.clear()  # the runs have no commit
    asked = dict.fromkeys(("expressive", "expressive_tempered"), "ladder_fair")
    assert registered_at_own_rates(found, [answer]) == asked
    in_other_units = dataclasses.replace(found, measure=PERPLEXITY)
    answer.tunings.append(in_other_units)
    assert registered_at_own_rates(in_other_units, [answer]) == {}
    at_common = next(c for c in comparisons(rest) if c.config["trainer.lr"] == 0.003)
    assert registered(at_common, [answer], at_common.measure) == asked
    found.registered = asked
    assert [row[-2] for row in table(found).rows[1:]] == ["see question ladder_fair"] * 2


def test_other_tuning_seeds_than_the_registered_ones_are_exploratory():
    runs = tuned("dot_product", {0.003: 0.8, 0.006: 0.7}, seeds=(7,))
    runs += tuned("expressive", {0.003: 0.6, 0.006: 0.9}, seeds=(7,))
    runs += tuned("expressive_tempered", {0.003: 0.6, 0.006: 0.9}, seeds=(7,))
    found, rest = tunings(runs)
    (answer,) = answers(rest, found)
    assert "tune.seeds=[7] instead of [100, 101, 102]" in answer.deviations


def test_tuning_on_seeds_of_its_own_does_not_make_equal_arms_different():
    """Both arms are equal at every rate, but only one has trials that differ by chance, of which
    the best is chosen. On fresh seeds 5 % of comparisons have an interval without 0 (by chance 2
    to 8 % of 400).
    """
    rng = np.random.default_rng(0)
    rates = dict.fromkeys((0.001, 0.002, 0.004, 0.008), 0.5)
    runs = tuned("dot_product", rates) + tuned("expressive", rates)
    different = []
    for _ in range(400):
        for run in runs:
            value = rng.normal(0.5, 0.01)
            same = is_trial(run) and run.config["model.mechanism"] == "dot_product"
            run.result |= dict.fromkeys(
                ("best/val/accuracy", "test/accuracy"), 0.5 if same else value
            )
        (effect,) = tunings(runs)[0][0].at_own.values()
        different.append(not effect.low <= 0 <= effect.high)
    assert 0.02 < np.mean(different) < 0.08
