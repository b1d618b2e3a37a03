"""Registered questions: what is refused, what is quoted, what counts, and what the runs answer."""

import dataclasses
import itertools
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml
from conftest import ROOT, config
from made_runs import finished

from attnlab import cli
from attnlab.config import compose
from attnlab.config.question import check_question, question_in, questions
from attnlab.errors import BadInput
from attnlab.report import notes as comparison_notes
from attnlab.report import registration, tables
from attnlab.report.answer_text import notes, planning, quotation, registered, tag, verdicts
from attnlab.report.compare import comparisons, same_data, samples_tested
from attnlab.report.questions import Answer, answers
from attnlab.report.rules import CLAUSES, RULES, conclusion

CONTROLS = ("experiment=controls", "scale=mini")
TRANSLATION = ("experiment=translation", "scale=mini")
SETTINGS = ("as_published", "textbook_embedding", "embedding_norm", "pre_norm", "qk_norm")
REGISTERED = yaml.safe_load((ROOT / "configs/experiment/controls.yaml").read_text())["question"]
NOTHING = "Undecided: the intervals meet none of the conditions of the rule."


# What is registered


@pytest.mark.parametrize("experiment", questions())
def test_a_shipped_experiment_runs_what_its_question_registers(experiment):
    """And no more: arms or seeds beyond it would be exploratory from the start."""
    question = questions()[experiment]
    jobs = cli.jobs([f"experiment={experiment}"])
    typed = [dict(o.split("=", 1) for o in job) for job in jobs]
    assert {job["model"] for job in typed} == set(question.arms)
    assert {int(job["seed"]) for job in typed} == set(question.seeds)
    assert len(jobs) == len(question.arms) * len(question.seeds) * len(question.values)
    cli.check_overrides([f"experiment={experiment}", "hydra.mode=RUN"])


def test_a_question_changes_no_run():
    cli.check_overrides(["experiment=controls", "scale=mini", "seed=10", "hydra.mode=RUN"])
    with_question = config("experiment=controls", "scale=mini", "model=uniform")
    assert with_question.hash == config("data=wikitext2", "scale=mini", "model=uniform").hash


BAD = [
    ({"seeds": [0, 1], "tuning_seeds": [1]}, "question.tuning_seeds=[1]: must not be among"),
    ({"controls": ["unifrom"]}, "question.controls=['unifrom']: must be among question.arms"),
    ({"controls": ["dot_product", "uniform", "neural_d2"]}, "must leave an arm to compare"),
    ({"seeds": [3, 3]}, "question.seeds=[3, 3]: must name each one once"),
    ({"smallest_effect": 0.0}, "question.smallest_effect=0.0: must be greater than 0"),
    ({"primary": "val/loss"}, "question.primary=val/loss: must be 'test/perplexity'"),
    ({"model": "neural_d2"}, "question.model: unknown key"),
    ({"setings": []}, "question.setings: unknown key; did you mean settings?"),
    ({"settings": ["arch.norm=post", "arch.qk_norm=rms"]}, "no value for arch.qk_norm"),
    ({"settings": ["post"]}, "question.settings=post: must be key=value"),
]


@pytest.mark.parametrize(("change", "message"), BAD)
def test_what_is_wrong_with_a_question_is_one_line(change, message):
    with pytest.raises(BadInput) as error:
        question_in(yaml.safe_dump({"question": REGISTERED | change}))
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_question_cannot_be_typed():
    with pytest.raises(BadInput, match="cannot be typed"):
        cli.check_overrides(["experiment=controls", "question.seeds=[0]", "hydra.mode=RUN"])


def test_a_question_asks_for_what_its_data_has():
    """Runs on text have no BLEU, so the question would stay open for ever."""
    arch = compose.plain(compose.compose_config(["experiment=controls"]))["arch"]
    asked = {"question": REGISTERED | {"primary": "test/bleu"}, "arch": arch}
    with pytest.raises(BadInput, match="primary=test/bleu: must be test/perplexity for this data"):
        check_question(asked | {"data": {"kind": "text"}}, [])
    check_question(asked | {"data": {"kind": "translation"}}, [])


def test_settings_are_read_as_the_command_line_reads_them():
    settings = ["trainer.lr=1e-3 arch.qk_norm=none", "arch.qk_norm=rms"]
    question = question_in(yaml.safe_dump({"question": REGISTERED | {"settings": settings}}))
    assert question.values[1] == {"trainer.lr": 0.001, "arch.qk_norm": "rms"}
    blanks = REGISTERED | {"settings": ["model.layers=[0, 1] data.path='a b'"]}
    (values,) = question_in(yaml.safe_dump({"question": blanks})).values
    assert values == {"model.layers": [0, 1], "data.path": "a b"}
    composed_ = compose.plain(compose.compose_config(["experiment=controls"]))
    asked = REGISTERED | {"settings": ["trainer.rate=1"]}
    with pytest.raises(BadInput, match=r"question\.settings: trainer\.rate: unknown key"):
        check_question(composed_ | {"question": asked}, [])


def test_the_rule_in_code_is_the_registered_one():
    """Whoever changes one of them has to change the other."""
    asked = {question.id: question for question in questions().values()}
    for name, rule in RULES.items():
        assert asked[name].rule in " ".join(rule.__doc__.split())
    for name, clause in CLAUSES.items():
        *_, last, else_undecided = asked[name].rule.split(". ")
        assert else_undecided == "Anything else is undecided."
        assert last in " ".join(clause.__doc__.split())


@pytest.mark.parametrize(
    ("experiment", "settings", "values", "said"),
    [
        (
            "ladder_fair",
            ("arch.norm=pre", "arch.norm=post"),
            lambda arm, s: {"expressive": 0.5 + 0.4 * s, "expressive_tempered": 0.9}.get(arm, 0.9),
            "The temperature helps with arch.norm=pre.",
        ),
        (
            "recall_fair",
            ("arch.positions=rotary", "arch.positions=sinusoidal", "arch.positions=alibi"),
            lambda arm, s: 0.5 + 0.2 * (s == 2) * (arm == "neural_d2"),
            "Positions explain part of the distance to the dot product of neural_d2 "
            "(arch.positions=alibi).",
        ),
    ],
    ids=["temperature", "positions"],
)
def test_the_last_clause_of_a_rule_is_concluded(experiment, settings, values, said):
    asked, rng = questions()[experiment], np.random.default_rng(0)
    runs = [
        finished(
            *(0, f"experiment={experiment}", f"model={arm}", setting),
            **{"seed": seed, "test/accuracy": values(arm, s) + rng.normal(0, 1e-4)},
        )
        for s, setting in enumerate(settings)
        for arm in asked.arms
        for seed in asked.seeds
    ]
    (answer,) = answers(runs)
    assert conclusion(answer) == said


# What runs answer


def controls(effects: dict[str, tuple[float, float]], seeds=range(10, 15), noise=0.05) -> Answer:
    """The answer to `controls` where neural_d2 is better than dot_product and than uniform by so
    many percent in each setting.
    """
    rng = np.random.default_rng(0)
    runs = []
    for setting, seed in itertools.product(SETTINGS, seeds):
        over_dot, over_uniform = effects.get(setting, effects["else"])
        base = 100 + seed
        values = {
            "neural_d2": base,
            "dot_product": base / (1 - (over_dot + rng.normal(0, noise)) / 100),
            "uniform": base / (1 - (over_uniform + rng.normal(0, noise)) / 100),
        }
        for model, value in values.items():
            overrides = ("experiment=controls", "scale=mini", f"setting={setting}")
            runs.append(finished(value, *overrides, f"model={model}", seed=seed))
    (answer,) = answers(runs)
    return answer


@pytest.mark.parametrize(
    ("effects", "said"),
    [
        (
            {"as_published": (2.2, 0.0), "else": (0.0, 0.0)},
            "The scores explain nothing beyond the removed saturation: as published, neural_d2 is "
            "better than dot_product and equivalent to uniform attention, and in 4 of 4 other "
            "settings it is equivalent to dot_product; saturation explains part of the gain: over "
            "dot_product it is smaller than as published in 4 of 4 other settings.",
        ),
        (
            {"else": (2.2, 2.0)},
            "The scores have a gain of their own over uniform attention "
            f"({', '.join(SETTINGS)}).",
        ),
        (
            {"as_published": (2.2, 1.5), "else": (1.0, 0.0)},
            "Saturation explains part of the gain: over dot_product it is smaller than as "
            "published in 4 of 4 other settings; the scores have a gain of their own over uniform "
            "attention (as_published).",
        ),
        ({"else": (0.7, 0.3)}, NOTHING),
        (
            dict.fromkeys(("as_published", "pre_norm", "qk_norm"), (2.2, 0)) | {"else": (0, 0)},
            NOTHING,
        ),
    ],
)  # fmt: skip
def test_the_sentence_follows_the_registered_rule(effects, said):
    answer = controls(effects)
    assert not answer.deviations or "question" in answer.deviations[0]
    assert conclusion(answer) == said


def test_missing_runs_leave_it_undecided_however_clear_the_others_are():
    answer = controls({"as_published": (2.2, 0.0), "else": (0.0, 0.0)}, seeds=range(10, 14))
    assert conclusion(answer) == "Undecided: 60 of 75 registered runs have a result."


def test_seeds_are_planned_from_effects_that_can_be_equivalent():
    """A difference of two effects spreads more, and is never called so."""
    answer = controls({"else": (0.0, 0.0)}, noise=0.3)
    spread = [contrast.effect.sd for contrast in answer.contrasts if not contrast.base]
    assert max(spread) < max(contrast.effect.sd for contrast in answer.contrasts)
    (said,) = planning(answer)
    assert f"spread by up to {max(spread):.2g} %" in said


def test_seeds_and_arms_that_were_not_registered_do_not_count():
    runs = [
        finished(value, "experiment=controls", "scale=mini", f"model={model}", seed=seed)
        for seed in (0, 10, 11, 12)
        for model, value in (("dot_product", 100), ("neural_d2", 98 - seed), ("additive", 50))
    ]
    answer = next(answer for answer in answers(runs) if answer.experiment == "controls")
    assert {run.config["seed"] for run in answer.runs} == {10, 11, 12}
    assert len(answer.others) == 4 + 2  # all of additive, and seed 0 of the others
    assert answer.of("neural_d2", "dot_product", "as_published").n == 3


def test_another_configuration_than_the_registered_one_is_exploratory():
    runs = [
        finished(value, "experiment=controls", "scale=mini", f"model={model}", *more, seed=10)
        for model, value in (("dot_product", 100), ("neural_d2", 98), ("uniform", 99))
        for more in (("trainer.lr=0.1",), ("data=pydocs",))
    ]
    assert answers(runs[:4]) == []  # without one of its arms another sweep is not this question
    reasons = [answer.deviations for answer in answers(runs)]
    assert any("trainer.lr=0.1 instead of 0.004" in each for each in reasons)
    assert any("data=pydocs instead of wikitext2" in each for each in reasons)


def test_runs_of_a_commit_without_the_question_are_exploratory():
    git = ["git", "-C", str(ROOT), "log", "--format=%H", "--", "configs/experiment/controls.yaml"]
    commits = subprocess.run(git, capture_output=True, text=True).stdout.split()
    if not commits:
        pytest.skip("not a git checkout")
    with_question = commits[0]
    before = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", f"{commits[-1]}~1"],
        capture_output=True,
        text=True,
    ).stdout.strip()  # the file was made with its question
    if not before:
        pytest.skip("a git checkout without history")
    for commit, early in ((before, True), (with_question, False), ("f" * 40, False)):
        runs = [
            finished(v, "experiment=controls", "scale=mini", f"model={m}", seed=10, commit=commit)
            for m, v in (("dot_product", 100), ("neural_d2", 98), ("uniform", 99))
        ]
        (answer,) = answers(runs)
        if answer.registration.pending:
            pytest.skip("the question is changed and not committed")
        assert any("was changed after" in reason for reason in answer.deviations) == early
        said = {before: "exploratory", with_question: "registered"}
        assert tag(answer) == said.get(commit, "registration not verified")


def test_what_was_registered_is_the_experiment_at_the_runs_commit(tmp_path, monkeypatch):
    """Whoever changes the experiment afterwards does not make its runs registered ones."""
    git = "git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"
    subprocess.run([*git, "init", "-q"], check=True)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    changed = tmp_path / "configs" / "experiment" / "controls.yaml"
    commits = []
    for more in ("", "arch:\n  dropout: 0.3\n"):
        changed.write_text(changed.read_text() + more)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", "configs"], check=True)
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
        commits.append(head.stdout.strip())

    def here(*command: str) -> str | None:
        done = subprocess.run([*git, *command], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    monkeypatch.setattr(registration, "git", here)
    said = []
    for commit in commits:
        runs = [
            finished(v, *CONTROLS, "arch.dropout=0.3", f"model={m}", seed=10, commit=commit)
            for m, v in (("dot_product", 100), ("neural_d2", 98), ("uniform", 99))
        ]
        (answer,) = answers(runs)
        said.append(answer.deviations)
    assert said == [["arch.dropout=0.3 instead of 0.1"], []]


def test_a_question_may_be_asked_of_several_data_sets():
    runs = [
        finished(
            *(0, "experiment=controls_vision", f"data={data}", f"model={model}"),
            **{"seed": 10, "test/accuracy": 0.5},
        )
        for data in ("cifar10", "cifar100", "digits")
        for model in ("dot_product", "neural_d2", "uniform")
    ]
    deviations = {a.place["data.name"]: a.deviations for a in answers(runs)}
    assert not any("data=" in said for said in deviations["cifar10"] + deviations["cifar100"])
    assert "data=digits instead of cifar10 or cifar100" in deviations["digits"]


def test_what_a_question_judges_is_not_judged_again():
    """At the comparison's laxer level it might come out otherwise."""
    runs = [
        finished(value + seed % 3 / 10, "experiment=recall", f"model={model}", seed=seed, **more)
        for model, value in (("dot_product", 100), ("neural_d2", 98), ("uniform", 99))
        for seed in (10, 11, 12)
        for more in [{"test/accuracy": value / 200 + seed % 2 / 100}]
    ]
    (comparison,) = comparisons(runs)
    comparison.registered = registered(comparison, answers(runs), comparison.measure)
    assert comparison.registered == {"neural_d2": "recall"}  # uniform is a control
    said = dict(comparison_notes.verdicts(comparison))
    assert said.pop("registered") == "neural_d2: see question recall"
    assert len(said) == 1 and "uniform: " in said.popitem()[1]
    verdict_of = {row[0]: row[5] for row in tables.results(comparison).rows}
    assert verdict_of["neural_d2"] == "see question recall"


def test_a_registered_run_that_was_made_twice_counts_once_and_is_named():
    runs = [
        finished(98, "experiment=controls", "scale=mini", f"model={model}", seed=10)
        for model in ("dot_product", "neural_d2", "uniform")
    ]
    again = dataclasses.replace(runs[1], folder=Path("x"), result={**runs[1].result})
    (answer,) = answers([*runs, again])
    assert answer.repeated == [again] and len(answer.runs) == 3
    assert any("repeat a seed" in said and "x." in said for said in notes(answer))


def test_a_question_about_bleu_is_answered_in_bleu():
    """Perplexity, which translations are compared in otherwise, decides nothing here."""
    runs = [
        finished(50, *TRANSLATION, f"model={model}", seed=seed, **{"test/bleu": bleu + seed / 100})
        for seed in (10, 11, 12)
        for model, bleu in [
            ("dot_product", 20 + seed % 2 / 10),
            ("dagpam", 21),
            ("neural_d2", 20),
            ("uniform", 5),
        ]
    ]
    (answer,) = answers(runs)
    effect = answer.of("dagpam", "dot_product", "")
    assert (effect.unit, effect.n) == ("BLEU", 3)
    assert effect.mean == pytest.approx(1 - 0.1 / 3)
    assert "test/bleu; smallest effect of interest 0.35 BLEU" in dict(quotation(answer)).values()


def test_a_question_hides_no_verdict_that_it_does_not_give():
    """One in another measure, and one over runs of the baseline that do not count in it."""
    at = ("experiment=translation", "scale=mini")
    runs = [
        finished(value, *at, f"model={model}", seed=seed, **{"test/bleu": value / 3})
        for model, value in (("dot_product", 100), ("neural_d2", 98))
        for seed in (10, 11, 12)
    ]
    (comparison,) = comparisons(runs)
    assert registered(comparison, answers(runs), comparison.measure) == {}
    runs = [
        finished(value, *CONTROLS, f"model={model}", seed=seed)
        for model, value in (("dot_product", 100), ("neural_d2", 98), ("uniform", 99))
        for seed in ((0, 1, 10) if model == "neural_d2" else (0, 1))
    ]
    runs += [finished(99, *CONTROLS, "model=uniform", seed=10)]
    (comparison,) = comparisons(runs)
    found = [a for a in answers(runs) if a.experiment == "controls"]
    assert registered(comparison, found, comparison.measure) == {}


def test_seeds_are_planned_for_equal_arms_whatever_the_effect_that_was_seen():
    """Of 10,000 images, an effect of 3 points needs 173 answered otherwise, equal arms need 1."""
    runs = [
        finished(
            *(0, "experiment=controls_vision", f"model={model}"),
            **{
                "seed": seed,
                "test/accuracy": 0.5 + more + seed % 3 / 1000,
                "test_samples": 10_000,
            },
        )
        for model, more in (("dot_product", 0.0), ("neural_d2", 0.03), ("uniform", 0.001))
        for seed in range(10, 15)
    ]
    runs[-1].result["test/accuracy"] += 0.002
    (answer,) = answers(runs)
    (said,) = planning(answer)
    assert "more than" not in said and "so few test samples" not in said


def test_a_verdict_needs_every_registered_seed():
    """A run that diverged, or is still to come, may be the one that would have changed it."""
    kept = {
        (model, seed): finished(
            0, "experiment=recall", f"model={model}", seed=seed, **{"test/accuracy": value}
        )
        for model, base in (("dot_product", 0.5), ("uniform", 0.4), ("dagpam", 0.8))
        for seed, value in zip((10, 11, 12), (base, base + 0.01, base + 0.02), strict=True)
    }
    last = kept["dagpam", 12]
    last.result |= {"test/accuracy": 0.83}
    (answer,) = answers(kept.values())
    word, _ = next((word, said) for word, said in verdicts(answer) if said.startswith(OVER))
    assert word == "better"
    last.status, last.cause = "failed", "NonFinite: step 3: loss nan"
    (answer,) = answers(kept.values())
    word, said = next((word, said) for word, said in verdicts(answer) if said.startswith(OVER))
    assert word == "undecided" and "2 of 3 registered seeds" in said
    assert any("without a result: dagpam seed 12 (NonFinite)" in note for note in notes(answer))


OVER = "dagpam over dot_product"


def test_verdicts_say_in_which_setting():
    arms = ("dot_product", 0.9), ("expressive", 0.8), ("expressive_tempered", 0.85)
    runs = [
        finished(
            *(0, "experiment=ladder_fair", f"model={model}", f"arch.norm={norm}"),
            **{"seed": 10, "test/accuracy": accuracy},
        )
        for norm in ("pre", "post")
        for model, accuracy in arms
    ]
    (answer,) = answers(runs)
    whole, *of_each = [said.partition(": expressive")[0] for _, said in verdicts(answer)]
    assert whole == "Undecided: 6 of 30 registered runs have a result."
    between = 2  # effects in one setting minus those in the other
    assert of_each == ["arch.norm=pre"] * 2 + ["arch.norm=post"] * (2 + between)
    assert ("Measure", "test/accuracy; smallest effect of interest 1 point") in quotation(answer)


def test_a_run_counts_as_begun_when_it_began():
    """It was made by the code of all its starts, not by that of the last one alone."""
    runs = [
        finished(v, "experiment=controls", "scale=mini", f"model={m}", seed=10, commit="f" * 40)
        for m, v in (("dot_product", 100), ("neural_d2", 98), ("uniform", 99))
    ]
    for made in runs:
        made.env |= {"source": "b", "before": [{"git_commit": "0" * 40, "source": "a"}]}
    (answer,) = answers(runs)
    assert any("(source a, b in env.json)" in said for said in notes(answer))
    assert "2 of 2 commits of the runs are not known here" in quotation(answer)[-1][1]


def test_answers_of_one_question_have_names_of_their_own():
    """Two learning rates: each answer has its own title, and its own picture."""
    runs = [
        finished(value, "experiment=table1", "scale=mini", f"model={model}", *more, seed=40)
        for model, value in zip(questions()["table1"].arms, (100, 99, 98, 97), strict=True)
        for more in ((), ("trainer.lr=0.01",))
    ]
    first, second = answers(runs)
    assert first.slug != second.slug
    assert {"(trainer.lr=0.004)", "(trainer.lr=0.01)"} == {
        f"({answer.title.split('(')[1]}" for answer in (first, second)
    }


def test_symbols_are_right_in_part_so_their_number_bounds_no_error():
    """Sequences of many symbols vary less than right and wrong ones (images)."""
    runs = [
        finished(1, data, seed=seed, test_samples=512)
        for data in ("data=nt", "data=digits")
        for seed in (0, 1)
    ]
    assert (same_data(runs), samples_tested(runs[:2]), samples_tested(runs[2:])) == (
        True,
        None,
        512,
    )


def test_runs_at_another_rate_do_not_answer_the_question_of_other_data():
    """`delay` has the arms of `recall`, on another task."""
    question = questions()["recall"]
    runs = [
        finished(1, "experiment=recall", f"model={arm}", "trainer.lr=0.01", seed=seed,
                 **{"test/accuracy": 0.5, "test_samples": 100})
        for arm in question.arms for seed in question.seeds
    ]  # fmt: skip
    (answer,) = answers(runs)
    assert answer.experiment == "recall" and len(answer.deviations) == 1


def test_an_earlier_code_version_answered_what_was_registered():
    question = questions()["recall"]
    runs = [
        finished(1, "experiment=recall", f"model={arm}", seed=seed, **{"test/accuracy": 0.5})
        for arm in question.arms for seed in question.seeds
    ]  # fmt: skip
    for made in runs:
        made.config = made.config | {"code_version": 1}
    (answer,) = answers(runs)
    assert answer.experiment == "recall" and answer.deviations == []


def test_an_answer_on_the_test_split_or_on_several_data_sets_says_so():
    def asked(**more) -> Answer:
        at = ("experiment=table3", "protocol=released")
        (answer,) = answers(
            finished(1, *at, f"model={arm}", seed=seed, **{"test/accuracy": 0.5 + seed / 100},
                     **(more if arm == "neural_d2" else {}))
            for arm in ("dot_product", "neural_d2") for seed in (40, 41, 42)
        )  # fmt: skip
        return answer

    assert any("selected on the test split" in note for note in notes(asked()))
    said = verdicts(asked(data_fingerprint="other"))
    assert {word for word, _ in said} == {"no verdict"} and "different data" in said[0][1]
