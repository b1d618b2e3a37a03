"""The report's tables: which runs are compared, over which seeds, and what is said of it."""

import itertools
import json
import shutil

import pytest
from conftest import MODELS
from made_runs import Page, cells, pairs, row, written

from attnlab.report.collect import collect, pack
from attnlab.report.compare import comparisons

PUBLISHED = ("data=wikitext103", "scale=paper")  # the paper's own setting


@pytest.mark.parametrize(
    ("setting", "published", "verdict", "says"),
    [
        (PUBLISHED, "+2.19 % (table 2)", "see question table1", "Effects are paired by seed"),
        (
            ("data=wikitext103", "scale=mini"),
            "(+2.19 %, orientation)",
            "see question table1",
            "This is a miniature (scale=mini)",
        ),
        (
            ("data=wikitext2", "scale=paper"),
            "(+2.19 %, orientation)",
            "better",
            "what stands as published is wikitext103's",
        ),
        (
            (*PUBLISHED, "trainer.max_steps=20000"),
            "(+2.19 %, orientation)",
            "better",
            "trainer.max_steps=20000 instead of 1000000",
        ),
        (
            (*PUBLISHED, "arch.embedding_norm=true", "trainer.lr=0.01"),
            "(+2.19 %, orientation)",
            "better",
            "arch.embedding_norm=true instead of false; trainer.lr=0.01 instead of 0.0003",
        ),
        (("data=pydocs",), "—", "better", "no experiment on pydocs"),
    ],
)
def test_known_effect_stands_beside_the_published_one(
    make, tmp_path, setting, published, verdict, says
):
    pairs(make, *setting)
    text = written(tmp_path / "runs")
    found = row(text, "neural_d2")
    effect = {
        "effect over dot product (95 % interval)": "+2.33 % [+0.90, +3.77]",
        "p (Holm)": "0.020",
    }
    if verdict.startswith("see question"):  # which has the interval
        effect = {"effect over dot product": "+2.33 %", "p (Holm)": ""}
    assert found == effect | {
        "model": "neural_d2",
        "test perplexity": "107.43 [83.04, 131.83]",
        "published effect": published,
        "verdict": verdict,
        "n": "3",
    }
    assert says in text


def test_a_whole_table_is_judged_against_the_published_effect(make, tmp_path):
    """While an arm is missing, the question alone judges: its intervals count on all arms."""
    for seed, dot in enumerate((100, 110, 120), 40):
        make(dot, "model=dot_product", *PUBLISHED, seed=seed)
        for arm in ("neural_full", "neural_d16", "neural_d2"):
            value = dot * (0.974 + seed / 1e4)
            last = make(value, f"model={arm}", *PUBLISHED, seed=seed)
    text = written(tmp_path / "runs")
    assert row(text, "neural_d2", section="wikitext103")["verdict"] == "reproduced"
    shutil.rmtree(last)
    text = written(tmp_path / "runs")
    assert row(text, "neural_d2", section="wikitext103")["verdict"] == "see question table1"


def test_accuracy_is_compared_in_points(make, tmp_path):
    sizes = {"steps": 200, "test_samples": 10_000}
    for seed, (dot, neural) in enumerate([(0.50, 0.53), (0.51, 0.54), (0.52, 0.55)], 40):
        make(dot, "model=dot_product", "data=cifar10", seed=seed, **sizes)
        make(neural, "model=neural_d2", "data=cifar10", seed=seed, **sizes)
    found = row(written(tmp_path / "runs"), "neural_d2")
    assert found["test accuracy"] == "54.00 [51.52, 56.48] %"
    assert found["effect over dot product (95 % interval)"] == "+3.00 points [+2.25, +3.75]"
    assert found["published effect"] == "+3.00 points (table 5)"
    page = Page(tmp_path / "runs" / "report" / "index.html")
    effects, curves = (plot["layout"]["xaxis"]["title"]["text"] for plot in page.plots[:2])
    assert effects == "effect, points of accuracy (95 % intervals)" and curves == "epoch"
    assert (
        tmp_path / "runs" / "report" / "figures" / "figure10_cifar10_paper_paper.svg"
    ).is_file()


def test_two_images_the_same_on_two_seeds_are_no_finding(make, tmp_path):
    for seed, hits in enumerate((19, 45)):
        make(hits / 359, "model=dot_product", "data=digits", seed=seed)
        make((hits + 2) / 359, "model=neural_d2", "data=digits", seed=seed)
    found = row(written(tmp_path / "runs"), "neural_d2")
    assert found["verdict"] == "no difference shown"
    assert found["effect over dot product (95 % interval)"] == "+0.56 points [-4.45, +5.56]"
    assert found["test accuracy"] == "9.47 [0.00, 55.48] %"


def test_data_of_ones_own_is_not_judged_against_the_paper(make, tmp_path):
    for path in ("mine", "Salesforce/wikitext"):
        pairs(make, *PUBLISHED, f"data.path={path}")
    text = written(tmp_path / "runs")
    titles = [line[3:] for line in text.splitlines() if line.startswith("## wikitext103")]
    found = {
        title.split("data.path=")[1][:-1]: row(text, "neural_d2", section=title)
        for title in titles
    }
    assert found["mine"]["verdict"] == "see question table1"
    assert found["mine"]["published effect"] == "(+2.19 %, orientation)"
    assert found["Salesforce/wikitext"]["verdict"] == "reproduced"
    assert "data.path=mine instead of Salesforce/wikitext" in text


def test_ablations_do_not_change_the_comparison_of_the_papers_arms(make, tmp_path):
    pairs(make, "scale=mini")
    before = row(written(tmp_path / "runs"), "neural_d2")
    for key in ("model.d_prime=4", "model.d_prime=16", "model.activation=gelu"):
        for seed in (40, 41, 42):
            make(60.0 + seed, "model=neural_d2", "scale=mini", key, seed=seed)
    text = written(tmp_path / "runs")
    title = "pydocs, scale mini, protocol paper"
    assert row(text, "neural_d2", section=title) == before
    ablation = f"{title}: ablation of d_prime"
    assert [line for line in text.splitlines() if line.startswith("## pydocs")] == [
        f"## {title}",
        f"## {title}: ablation of activation",
        f"## {ablation}",
    ]
    original = row(text, "neural_d2 (d_prime=2)", section=ablation)  # the value that is shipped
    effect = "effect over dot product (97.5 % interval)"  # two arms, so that both hold with 95 %
    assert (original[effect], original["verdict"]) == ("+2.33 %", "see above")
    for label in ("neural_d2 (d_prime=4)", "neural_d2 (d_prime=16)"):
        assert row(text, label, section=ablation)["published effect"] == "—"


def test_uniform_attention_is_an_ablations_second_baseline(make, tmp_path):
    for seed in range(3):
        for value, arm in (110.0, "dot_product"), (105.0, "neural_d2"), (100.0, "uniform"):
            make(value + seed, f"model={arm}", "scale=mini", seed=seed)
        make(97.0 + seed**2, "model=neural_d2", "scale=mini", "model.d_prime=4", seed=seed)
    text = written(tmp_path / "runs")
    title = "pydocs, scale mini, protocol paper"
    effect = "effect over uniform (95 % interval)"
    assert effect not in row(text, "neural_d2", section=title)
    ablation = f"{title}: ablation of d_prime"
    assert row(text, "neural_d2 (d_prime=4)", section=ablation)[effect].startswith("+2.32 % [")
    assert row(text, "uniform", section=ablation)[effect] == ""


def test_a_sweep_over_two_options_is_one_family(make, tmp_path):
    make(100.0, "model=dot_product")
    for options in itertools.product(("model.d_prime=2", "model.d_prime=4"), ("relu", "gelu")):
        make(99.0, "model=neural_d2", options[0], f"model.activation={options[1]}")
    plain, family = comparisons(collect(tmp_path / "runs"))
    assert [arm.label for arm in plain.arms] == ["dot_product", "neural_d2"]
    assert family.ablation == "activation, d_prime"
    assert [arm.label for arm in family.arms] == [
        "dot_product",
        "neural_d2 (d_prime=2, activation=relu)",
        *(
            f"neural_d2 (d_prime={d}, activation={a})"
            for d, a in ((2, "gelu"), (4, "gelu"), (4, "relu"))
        ),
    ]
    assert len(family.judged) == 3  # whose intervals hold together


def test_every_shipped_mechanism_has_its_row(make, tmp_path):
    for model in MODELS:
        make(100.0, f"model={model}", "scale=mini")
    make(99.0, "model=additive", "model.hidden=7", "scale=mini")
    text = written(tmp_path / "runs")
    assert all(row(text, model)["n"] == "1" for model in MODELS)
    for figure in ("Validation perplexity over iterations", "Saturation of the first layer"):
        caption = next(line for line in text.splitlines() if line.startswith(figure))
        assert "Not drawn: " in caption  # there are more arms than colours
    title = "pydocs, scale mini, protocol paper: ablation of hidden"
    assert row(text, "additive (hidden=7)", section=title)["test perplexity"].startswith("99.00")


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_the_shipped_variant_is_the_original_whatever_its_folder_is_called(make, tmp_path, names):
    make(100.0, "model=expressive", "scale=mini", name=names[0])
    make(90.0, "model=expressive", "model.form=softmax_square", "scale=mini", name=names[1])
    text = written(tmp_path / "runs")
    title = "pydocs, scale mini, protocol paper"
    assert row(text, "expressive", section=title)["test perplexity"] == "100.00"
    found = row(text, "expressive (form=softmax_square)", section=f"{title}: ablation of form")
    assert found["test perplexity"] == "90.00"


def test_a_variant_alone_is_named_by_what_it_changes(make, tmp_path):
    make(90.0, "model=expressive", "model.form=softmax_square")
    make(80.0, "model=neural_d2", "model.d_prime=4", "protocol=released")
    text = written(tmp_path / "runs")
    assert row(text, "expressive (form=softmax_square)")["test perplexity"] == "90.00"
    section = "pydocs, scale mini, protocol released"
    assert row(text, "neural_d2 (d_prime=4)", section=section)["test perplexity"] == "80.00"


def test_any_number_of_arms_has_its_place_in_a_ladder(make, tmp_path):
    """More arms than colours."""
    common = ("data=nt", "arch.layers=4", "arch.heads=2")
    arms = [f"model={model}" for model in MODELS]
    arms += [f"model.d_prime={d}" for d in range(3, 26)]  # of the default, neural_d2
    tasks = {f"test/{kind}": 0.5 for kind in ("accuracy", "chance_accuracy", "copy_accuracy")}
    for arm in arms[:32]:
        make(0.5, *common, arm, **tasks)
    text = written(tmp_path / "runs")
    assert text.count("50.00 (single)") == 32
    plots = (p["data"][0] for p in Page(tmp_path / "runs/report/index.html").plots)
    (ladder,) = (trace for trace in plots if trace["type"] == "heatmap")
    assert len(ladder["x"]) == 32 and ladder["z"] == [[50.0] * 32]


def test_a_level_at_which_a_seed_failed_is_not_solved(make, tmp_path):
    common = ("data=nt", "arch.layers=4", "arch.heads=2", "model=dot_product")
    tasks = {f"test/{kind}": 1.0 for kind in ("accuracy", "chance_accuracy", "copy_accuracy")}
    make(1.0, *common, **tasks)
    failed = make(1.0, *common, seed=1, status="failed")
    (failed / "failed.txt").write_text("NonFinite: step 3: loss nan\n")
    text = written(tmp_path / "runs")
    assert row(text, "16", "|   n |", "Ladder")["dot_product"] == "100.00 (single; 1 failed)"
    assert [cells(line)[-1] for line in text.splitlines() if "| reached |" in line] == ["none"]
    assert "without a result: dot_product seed 1 (NonFinite)" in text


def test_symbols_without_a_finished_run_have_no_ladder(make, tmp_path):
    make(1.0, "data=nt", "model=dot_product", status="interrupted")
    text = written(tmp_path / "runs")
    assert "Ladder" not in text and "Not shown" not in text


def test_copies_of_one_data_set_are_one_comparison(make, tmp_path):
    """On two machines, or as a folder and as a line of a file, which has relative paths."""
    for number, (dot, neural) in enumerate([(100, 98), (110, 106.7), (120, 117.6)]):
        place = f"data.path=/data/copy{number % 2}"
        make(dot, "model=dot_product", "data=wikitext2", place, seed=number)
        make(neural, "model=neural_d2", "data=wikitext2", place, seed=number)
    text = written(tmp_path / "runs")
    assert row(text, "neural_d2")["n"] == "3" and text.count("## wikitext2") == 1
    pack(tmp_path / "runs", tmp_path / "runs" / "runs.jsonl", speeds=True)
    again = written(tmp_path / "runs")
    assert again.count("## wikitext2") == 1 and "6 runs: 6 finished" in again


def test_a_run_that_failed_on_another_machine_is_missed_in_its_comparison(make, tmp_path):
    for seed in range(3):
        for arm in ("dot_product", "neural_d2"):
            place = f"data.path=/data/copy{seed % 2}"
            folder = make(100 + seed, f"model={arm}", "data=wikitext2", place, seed=seed)
    result = json.loads((folder / "result.json").read_text())  # neural_d2, seed 2
    (folder / "result.json").write_text('{"status": "failed"}')
    (folder / "failed.txt").write_text("NonFinite: step 3: loss nan\n")
    assert result["data_fingerprint"]
    make(100, "model=neural_d2", "data=wikitext2", "data.path=/data/copy1", seed=3)
    text = written(tmp_path / "runs")
    assert text.count("## wikitext2") == 1
    assert "without a result: neural_d2 seed 2 (NonFinite)" in text


def test_a_seed_that_failed_and_was_stopped_elsewhere_has_failed(make, tmp_path):
    pairs(make)
    make(1, "model=neural_d2", seed=3, name="y_stopped", status="interrupted")
    failed = make(1, "model=neural_d2", "model.backend=eager", seed=3, name="z", status="failed")
    (failed / "failed.txt").write_text("NonFinite: step 3: loss nan\n")
    assert "without a result: neural_d2 seed 3 (NonFinite)" in written(tmp_path / "runs")


def test_runs_are_compared_only_if_they_agree_in_everything_else(make, tmp_path):
    pairs(make)
    pairs(make, "trainer.lr=0.01")
    text = written(tmp_path / "runs")
    titles = [line for line in text.splitlines() if line.startswith("## pydocs")]
    assert len(titles) == 2 and all("(trainer.lr=" in title for title in titles)
    assert row(text, "neural_d2")["n"] == "3"


def test_a_repeated_seed_is_no_further_evidence(make, tmp_path):
    pairs(make)
    make(50.0, "model=neural_d2", "model.backend=chunked", seed=40, name="z_again")
    text = written(tmp_path / "runs")
    found = row(text, "neural_d2")
    assert found["n"] == "3" and "+2.33 %" in found["effect over dot product (95 % interval)"]
    assert "z_again" in text[text.index("repeat a seed") :].splitlines()[0]


def test_only_common_seeds_are_paired(make, tmp_path):
    pairs(make)
    make(10.0, "model=neural_d2", seed=7)
    found = row(written(tmp_path / "runs"), "neural_d2")
    assert found["n"] == "4 (3 paired)"
    assert found["effect over dot product (95 % interval)"] == "+2.33 % [+0.90, +3.77]"


def test_released_protocol_is_one_comparison_and_says_what_else_differs(make, tmp_path):
    pairs(make, *PUBLISHED, "protocol=released")
    text = written(tmp_path / "runs")
    assert "arch.embedding_residual is 1 in dot_product, 2 in neural_d2" in text
    assert "selected on the test split" in text


def test_different_data_under_one_name_is_not_compared(make, tmp_path):
    make(100.0, "model=dot_product", data_fingerprint="one")
    make(90.0, "model=neural_d2", data_fingerprint="two")
    text = written(tmp_path / "runs")
    assert "**no verdict**: the runs used different data" in text
    assert row(text, "neural_d2")["effect over dot product"] == "—"
