"""The report: what stands in its tables, and that the page works."""

import copy
import functools
import html.parser
import itertools
import json
import math
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from conftest import MODELS, ROOT, config

from attnlab.report import figures
from attnlab.report.archive import thinned
from attnlab.report.collect import collect, pack
from attnlab.report.compare import comparisons
from attnlab.report.render import report
from attnlab.report.summary import markdown
from attnlab.run import run

PUBLISHED = ("data=wikitext103", "scale=paper")  # the paper's own setting


@pytest.fixture(scope="module")
def trained(tmp_path_factory, cache):
    """Real runs: the dot product and neural_d2 on text, the dot product on images."""
    root = tmp_path_factory.mktemp("trained")
    common = ("scale=smoke", "logger=none", f"runtime.cache={cache}")
    for name, overrides in {
        "dot_product": ("model=dot_product",),
        "neural_d2": ("model=neural_d2", "model.backend=eager"),
        "images": ("model=dot_product", "data=digits"),
    }.items():
        run(config(*common, *overrides), root / name)
    return root


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """The report on the real runs."""
    out = tmp_path_factory.mktemp("reported")
    report(trained, out)
    return out


@pytest.fixture
def make(trained, tmp_path):
    """Make a run below `runs` that ended with `value`, in the form of a real one."""
    root = tmp_path / "runs"

    def run_with(value: float, *overrides: str, seed: int = 0, name: str = "", **result) -> Path:
        cfg = composed(overrides)
        cfg["seed"] = seed
        image = cfg["data"]["kind"] == "image"
        neural = cfg["model"]["mechanism"] == "neural"
        real = trained / ("images" if image else "neural_d2" if neural else "dot_product")
        folder = root / (name or f"{len(list(root.glob('*')))}")
        shutil.copytree(real, folder, ignore=shutil.ignore_patterns("checkpoints"))
        (folder / "config.yaml").write_text(yaml.safe_dump(cfg, sort_keys=False))
        metric = "test/accuracy" if image else "test/perplexity"
        old = json.loads((real / "result.json").read_text())
        new = {**old, metric: value, **result}
        (folder / "result.json").write_text(json.dumps(new))
        return folder

    return run_with


@functools.cache
def _composed(overrides: tuple[str, ...]) -> dict:
    return config(*overrides).model_dump()


def composed(overrides: tuple[str, ...]) -> dict:
    return copy.deepcopy(_composed(overrides))


def written(root: Path) -> str:
    """The report's Markdown."""
    report(root, root / "report")
    return (root / "report" / "report.md").read_text()


def row(text: str, label: str, heading: str = "| model", section: str = "") -> dict[str, str]:
    """The first row with this label, below this heading, in the section with this title."""
    lines = iter(text[text.index(f"# {section}") :].splitlines())
    columns = cells(next(line for line in lines if line.startswith(heading)))
    rows = (dict(zip(columns, cells(line), strict=True)) for line in lines if line[:1] == "|")
    return next(r for r in rows if r[columns[0]] == label)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def pairs(make, *overrides: str, arm: str = "model=neural_d2") -> None:
    """Three seeds with effects of 2, 3 and 2 percent: mean 2.33, sd 0.577."""
    for seed, (dot, neural) in enumerate([(100, 98), (110, 106.7), (120, 117.6)]):
        make(dot, "model=dot_product", *overrides, seed=seed)
        make(neural, arm, *overrides, seed=seed)


class Page(html.parser.HTMLParser):
    """Elements, links and embedded plots of a page."""

    def __init__(self, file: Path):
        super().__init__()
        self.tags: list[str] = []
        self.resources: list[str] = []
        self.links: list[str] = []
        self.plots: list[dict] = []
        self.text = ""
        self._plot = self._code = False
        self.feed(file.read_text())

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.tags.append(tag)
        if tag == "a":
            self.links.append(attrs["href"])
        else:
            self.resources += [attrs[key] for key in ("src", "href") if key in attrs]
        self._code = tag in ("script", "style")
        self._plot = attrs.get("type") == "application/json"

    def handle_endtag(self, tag):
        self._code = self._plot = False

    def handle_data(self, data):
        if self._plot:
            self.plots.append(json.loads(data))
        elif not self._code:
            self.text += data


def test_page_needs_no_network_and_its_links_lead_somewhere(trained, reported):
    page = Page(reported / "index.html")
    assert page.resources == [] and not {"link", "img", "iframe"} & set(page.tags)
    assert "url(" not in (reported / "index.html").read_text().partition("</style>")[0]
    files = {reported / unquote(link) for link in page.links if not link.startswith("#")}
    assert all(file.exists() for file in files)
    assert {file.resolve() for file in files} >= {run.resolve() for run in trained.iterdir()}


def test_figures_are_png_and_svg(reported):
    kinds, sets = ("curves", "saturation"), ("pydocs", "digits")
    names = {f"{kind}_{data}_smoke_paper" for kind in kinds for data in sets}
    names.add("figure1_pydocs_smoke_paper")
    files = list((reported / "figures").iterdir())
    assert {file.name for file in files} == {f"{n}.{k}" for n in names for k in ("png", "svg")}
    for file in files:
        if file.suffix == ".svg":
            assert ET.parse(file).getroot().tag.endswith("svg")
        else:
            assert file.read_bytes().startswith(b"\x89PNG")


def test_numbers_of_real_runs_are_those_of_their_files(trained, reported):
    text = (reported / "report.md").read_text()
    section = "pydocs, scale smoke, protocol paper"
    for name in ("dot_product", "neural_d2"):
        result = json.loads((trained / name / "result.json").read_text())
        perplexity = f"{result['test/perplexity']:,.2f}"
        assert row(text, name, section=section)["test perplexity"] == perplexity
        costs = row(text, name, section=f"Cost: {section}")
        assert costs["parameters"] == f"{result['params']:,}"
        assert costs["peak MiB"] == f"{result['peak_memory_mib']:,.0f}"
    assert row(text, "neural_d2", section=section)["verdict"] == "single run"
    assert "single run of one seed" in text and "This is a miniature (scale=smoke)" in text
    env = json.loads((trained / "neural_d2" / "env.json").read_text())
    label = f"[neural_d2]({os.path.relpath(trained / 'neural_d2', reported)})"
    listed = row(text, label, "| run", "All runs")
    assert listed["commit"][:10] == (env["git_commit"] or "—")[:10]
    assert listed["torch"] == env["torch"]


@pytest.mark.parametrize(
    ("setting", "published", "verdict", "says"),
    [
        (PUBLISHED, "+2.19 % (table 2)", "reproduced", "Effects are paired by seed"),
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
    assert found == {
        "model": "neural_d2",
        "test perplexity": "107.43 [83.04, 131.83]",
        "published effect": published,
        "effect over dot product (95 % interval)": "+2.33 % [+0.90, +3.77]",
        "p (Holm)": "0.020",
        "verdict": verdict,
        "n": "3",
    }
    assert says in text


def test_accuracy_is_compared_in_points(make, tmp_path):
    sizes = {"steps": 200, "test_samples": 10_000}
    for seed, (dot, neural) in enumerate([(0.50, 0.53), (0.51, 0.54), (0.52, 0.55)]):
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


def test_real_runs_say_how_many_test_samples_they_have(trained, reported):
    result = json.loads((trained / "images" / "result.json").read_text())
    assert result["test_samples"] == 359
    hits = 359 * result["test/accuracy"]
    assert hits == pytest.approx(round(hits))


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


def test_a_published_trend_goes_by_common_seeds(make, tmp_path):
    for seed, arm, value in ((0, "full", 100), (0, "d2", 99), (1, "d2", 200), (2, "full", 50)):
        make(value, f"model=neural_{arm}", "data=wikitext2", "scale=mini", seed=seed)
    text = written(tmp_path / "runs")
    assert (
        "d' = 2 is better than no projection. Means over the seeds that these arms share do the"
        in text
    )


def test_ablations_do_not_change_the_comparison_of_the_papers_arms(make, tmp_path):
    pairs(make, "scale=mini")
    before = row(written(tmp_path / "runs"), "neural_d2")
    for key in ("model.d_prime=4", "model.d_prime=16", "model.activation=gelu"):
        for seed in range(3):
            make(100.0 + seed, "model=neural_d2", "scale=mini", key, seed=seed)
    text = written(tmp_path / "runs")
    title = "pydocs, scale mini, protocol paper"
    assert row(text, "neural_d2", section=title) == before
    ablation = f"{title}: ablation of d_prime"
    assert [line for line in text.splitlines() if line.startswith("## pydocs")] == [
        f"## {title}",
        f"## {title}: ablation of activation",
        f"## {ablation}",
    ]
    original = row(text, "neural_d2", section=ablation)
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
    assert family.ablation == "activation, d_prime" and len(family.arms) == 5
    assert len(family.judged) == 3  # whose intervals hold together


def test_every_shipped_mechanism_has_its_row(make, tmp_path):
    for model in MODELS:
        make(100.0, f"model={model}", "scale=mini")
    make(99.0, "model=additive", "model.hidden=7", "scale=mini")
    text = written(tmp_path / "runs")
    assert all(row(text, model)["n"] == "1" for model in MODELS)
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


def test_runs_are_compared_only_if_they_agree_in_everything_else(make, tmp_path):
    pairs(make)
    pairs(make, "trainer.lr=0.01")
    text = written(tmp_path / "runs")
    titles = [line for line in text.splitlines() if line.startswith("## pydocs")]
    assert len(titles) == 2 and all("(trainer.lr=" in title for title in titles)
    assert row(text, "neural_d2")["n"] == "3"


def test_a_repeated_seed_is_no_further_evidence(make, tmp_path):
    pairs(make)
    make(50.0, "model=neural_d2", "model.backend=chunked", name="z_again")  # seed 0 again
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
    assert row(text, "neural_d2")["verdict"] == "reproduced"
    assert "arch.embedding_residual is 1 in dot_product, 2 in neural_d2" in text
    assert "selected on the test split" in text


def test_different_data_under_one_name_is_not_compared(make, tmp_path):
    make(100.0, "model=dot_product", data_fingerprint="one")
    make(90.0, "model=neural_d2", data_fingerprint="two")
    text = written(tmp_path / "runs")
    assert "**no verdict**: the runs used different data" in text
    assert row(text, "neural_d2")["effect over dot product"] == "—"
    make(100.0, "model=neural_full", "data=wikitext2", "scale=mini", data_fingerprint="one")
    make(90.0, "model=neural_d2", "data=wikitext2", "scale=mini", data_fingerprint="two")
    assert "Published trend" not in written(tmp_path / "runs")


def test_a_line_of_a_file_with_an_odd_environment_costs_itself(make, tmp_path):
    pairs(make)
    file = tmp_path / "kept" / "runs.jsonl"
    pack(tmp_path / "runs", file, speeds=True)
    for env in (None, {"before": 5}, {"before": [1]}):
        first, *rest = file.read_text().splitlines()
        file.write_text("\n".join([json.dumps(json.loads(first) | {"env": env}), *rest]))
        text = written(tmp_path / "kept")
        assert "env.json: not the environment of a run" in text
        assert "5 finished" in text and "1 unreadable" in text


def test_costs_are_medians_with_ratios(make, tmp_path):
    for seed, ms in enumerate((100.0, 200.0, 900.0)):
        costs = {"step_ms_median": ms, "tokens_per_s": 1e6 / ms, "peak_memory_mib": 1000.0}
        make(100.0, "model=dot_product", seed=seed, **costs)
    faster = {"step_ms_median": 150.0, "tokens_per_s": 6666.7, "peak_memory_mib": 640.0}
    folder = make(99.0, "model=neural_d2", **faster)
    found = row(written(tmp_path / "runs"), "neural_d2", section="Cost")
    assert found["time / dot product"] == "0.75" and found["memory / dot product"] == "0.64"
    assert found["tokens/s"] == "6,667" and found["n"] == "1"
    env = json.loads((folder / "env.json").read_text())
    (folder / "env.json").write_text(json.dumps({**env, "device_name": "another"}))
    assert "WARNING: measured on different machines" in written(tmp_path / "runs")


def test_dead_scorers_are_counted(make, tmp_path):
    shares = ((1.0, 1.0), (1.0, 0.25), (0.0, 0.25))
    for seed, (begin, end) in enumerate(shares):
        folder = make(100.0, "model=neural_d2", seed=seed)
        key = "attention/0/dead_scorer"
        rows = [{"step": 0, key: begin}, {"step": 2, key: 0.5}, {"step": 4, key: end}]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = row(written(tmp_path / "runs"), "neural_d2", section="Health")
    assert found["runs dead at step 0"] == "2 of 3" and found["dead rows at step 0"] == "66.7 %"
    assert found["runs dead at the end"] == "1 of 3" and found["dead rows at the end"] == "50.0 %"


def test_many_runs_give_dead_scorers_an_interval_and_a_picture(make, tmp_path):
    key = "attention/0/dead_scorer"
    for seed in range(12):
        folder = make(100, "model=neural_d2", seed=seed)
        rows = [
            {"step": 0, key: float(seed < 3)},
            {"step": 4, key: float(seed < 1), "val/loss": 5.0},
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = written(tmp_path / "runs")
    found = row(text, "neural_d2", section="Health")
    assert found["runs dead at step 0"] == "3 of 12 [5.5, 57.2] %"  # Clopper-Pearson, from tables
    assert found["runs dead at the end"] == "1 of 12 [0.2, 38.5] %"
    (picture,) = (tmp_path / "runs/report/figures").glob("dead_*.svg")
    assert ET.parse(picture).getroot().tag.endswith("svg")


def test_what_is_not_finished_is_listed_with_its_cause(make, tmp_path):
    pairs(make)
    for name, status in {"a": "failed", "b": "interrupted", "c": "", "d": "finished"}.items():
        folder = make(float("inf"), "model=neural_d2", seed=9, name=name, status=status)
        if not status:
            (folder / "result.json").unlink()
    (tmp_path / "runs" / "a" / "failed.txt").write_text("NonFinite: step 3: loss nan\n")
    (tmp_path / "runs" / "e").mkdir()
    (tmp_path / "runs" / "e" / "config.yaml").write_text("seed: [")
    text = written(tmp_path / "runs")

    def cause(name: str) -> tuple[str, str]:
        found = row(text, f"[{name}](../{name})", "| run", "Not finished")
        return found["status"], found["cause"]

    assert cause("a") == ("failed", "NonFinite: step 3: loss nan (last step 4 of 600)")
    assert cause("b") == ("interrupted", "last step 4 of 600; the same command continues")
    assert cause("c") == ("unfinished", "running or killed, last step 4 of 600")
    assert cause("d") == ("finished", "test/perplexity is inf")
    assert cause("e")[0] == "unreadable" and cause("e")[1].startswith("config.yaml: ")
    assert row(text, "neural_d2")["n"] == "3"
    assert "11 runs: 7 finished, 1 unfinished, 1 interrupted, 1 failed, 1 unreadable" in text


def edited(file: Path, change) -> None:
    """Rewrite a JSON file, or each row of a ledger."""
    content = file.read_text()
    rows = map(json.loads, content.splitlines() if file.suffix == ".jsonl" else [content])
    file.write_text("".join(json.dumps(row | change(row)) + "\n" for row in rows))


def reconfigured(folder: Path, **changes) -> None:
    """Change sections of a run's config.yaml; a value of None deletes the key."""
    file = folder / "config.yaml"
    config = yaml.safe_load(file.read_text())
    for dotted, value in changes.items():
        section, _, key = dotted.partition("__")
        if value is None:
            del config[section][key]
        else:
            config[section][key] = value
    file.write_text(yaml.safe_dump(config, sort_keys=False))


ODD = {
    "heads is a list": lambda f: reconfigured(f, arch__heads=[1]),
    "no heads": lambda f: reconfigured(f, arch__heads=0),
    "another body": lambda f: reconfigured(f, arch__body="rnn"),
    "no d_prime": lambda f: reconfigured(f, model__d_prime="two"),
    "a key is a number": lambda f: reconfigured(f, model__7=1, trainer__epochs="many"),
    "no schedule, of another version": lambda f: reconfigured(f, trainer__lr=None, model__x=[1]),
    "config is a list": lambda f: (f / "config.yaml").write_text("[1, 2]"),
    "config is no text": lambda f: (f / "config.yaml").write_bytes(b"\xff\xfe\x00"),
    "a string": lambda f: edited(f / "result.json", lambda r: {"test/perplexity": "12.5"}),
    "a cost": lambda f: edited(f / "result.json", lambda r: {"peak_memory_mib": "a lot"}),
    "a status": lambda f: edited(f / "result.json", lambda r: {"status": ["finished"]}),
    "below 1": lambda f: edited(f / "result.json", lambda r: {"test/perplexity": 0}),
    "not a number": lambda f: edited(f / "result.json", lambda r: {"test/perplexity": math.nan}),
    "result is null": lambda f: (f / "result.json").write_text("null"),
    "a commit": lambda f: edited(f / "env.json", lambda r: {"git_commit": 7}),
    "a row's step": lambda f: edited(f / "metrics.jsonl", lambda r: {"step": "four"}),
    "a row's value": lambda f: edited(f / "metrics.jsonl", lambda r: {"val/perplexity": [1]}),
    "rows of nan": lambda f: edited(
        f / "metrics.jsonl",
        lambda r: (
            dict.fromkeys(r.keys() - {"step"}, math.nan)
            | {"attention/0/dead_scorer": math.nan, "representation/0/cosine": math.nan}
        ),
    ),
    "a layer": lambda f: edited(f / "metrics.jsonl", lambda r: {"attention/x/dead_scorer": 1.0}),
    "no rows": lambda f: (f / "metrics.jsonl").write_text(""),
    "no metrics": lambda f: (f / "metrics.jsonl").unlink(),
    "no environment": lambda f: (f / "env.json").unlink(),
}


ODD_CAUSES = {
    "heads is a list": "config.yaml is not the configuration of a run: arch.heads=[1]",
    "a string": "result.json: test/perplexity='12.5' is not a number",
    "a status": "result.json: status=['finished']: no such status",
    "a row's value": "metrics.jsonl: step 0: val/perplexity=[1] is not a number",
    "not a number": "test/perplexity is nan",
    "below 1": "test/perplexity is 0",
}


def test_odd_runs_cost_no_more_than_themselves(make, tmp_path):
    pairs(make, "scale=mini")
    for number, change in enumerate(ODD.values()):
        name = f"odd{number}"
        change(make(97.0, "model=neural_d2", "scale=mini", seed=100 + number, name=name))
    text = written(tmp_path / "runs")
    found = row(text, "neural_d2")
    assert "(3 paired)" in found["n"]
    assert found["effect over dot product (95 % interval)"] == "+2.33 % [+0.90, +3.77]"
    for number, odd in enumerate(ODD):
        link = f"[odd{number}](../odd{number})"
        listed, cause = row(text, link, "| run", "All runs"), None
        if listed["test"] in ("unreadable", "finished"):
            cause = row(text, link, "| run", "Not finished")["cause"]
            assert cause, odd
        assert cause == ODD_CAUSES.get(odd, cause), odd
    summary = subprocess.run(
        [sys.executable, ROOT / "scripts/summary.py", tmp_path / "runs"], capture_output=True
    )
    assert summary.returncode == 0, summary.stderr


def test_an_odd_run_alone_is_a_report(make, tmp_path):
    ODD["heads is a list"](make(97.0, "model=neural_d2", name="odd"))
    text = written(tmp_path / "runs")
    assert row(text, "[odd](../odd)", "| run", "Not finished")["status"] == "unreadable"


def test_no_picture_cuts_off_what_it_says(make, tmp_path, monkeypatch):
    """Where names of arms, settings and levels are long."""
    save, whole = figures._save, []

    def measured(figure, stem):
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        inside = min(box.x0, box.y0) > -0.02 and box.x1 < width + 0.02 and box.y1 < height + 0.02
        whole.append((stem.name, inside))
        save(figure, stem)

    monkeypatch.setattr(figures, "_save", measured)
    pairs(make, "scale=mini")
    for seed in range(2):
        for plus, minus in itertools.product((0.0, 0.25, 0.5), repeat=2):
            lambdas = f"model.lambda_plus={plus}", f"model.lambda_minus={minus}"
            make(99.0, "model=dagpam", "scale=mini", *lambdas, "model.trainable=false", seed=seed)
        for model in ("dot_product", "expressive", "expressive_tempered"):
            for norm in ("pre", "post"):
                words = "experiment=ladder_fair", f"model={model}", f"arch.norm={norm}"
                kinds = ("accuracy", "chance_accuracy", "copy_accuracy")
                tested = {f"test/{kind}": 0.9 + 0.01 * seed for kind in kinds}
                make(0.9, *words, seed=seed + 10, **tested)
    written(tmp_path / "runs")
    assert {name.split("_")[0] for name, _ in whole} >= {"curves", "forest", "ladder"}
    assert not [name for name, inside in whole if not inside]


def test_summary_says_in_what_runs_differ(make, tmp_path):
    make(100.0, "model=neural_d2")
    make(101.0, "model=neural_d2", seed=1)
    assert "differs" not in markdown(collect(tmp_path / "runs"))
    make(102.0, "model=neural_d2", "model.d_prime=4", "model.per_head=true")
    text = markdown(collect(tmp_path / "runs"))
    assert "| d_prime=2, hidden=[4], per_head=false |" in text
    assert text.count("| d_prime=4, hidden=[8], per_head=true ") == 1


def test_levels_of_a_ladder_that_lack_an_accuracy_are_left_out(make, tmp_path):
    tasks = {f"test/{kind}": 0.5 for kind in ("accuracy", "chance_accuracy", "copy_accuracy")}
    make(0.5, "data=nt", "model=dot_product", **tasks)
    folder = make(0.5, "data=nt", "model=expressive", **tasks)
    result = json.loads((folder / "result.json").read_text())
    del result["test/copy_accuracy"]
    (folder / "result.json").write_text(json.dumps(result))
    text = written(tmp_path / "runs")
    assert row(text, "16", "|   n", "Ladder")["dot_product"] == "50.00 (single)"


def test_dead_scorers_are_drawn_where_one_arm_lacks_step_0(make, tmp_path):
    for arm, model in enumerate(("neural_d2", "additive")):
        for seed in range(12):
            folder = make(100, f"model={model}", seed=seed)
            rows = [{"step": step, "attention/0/dead_scorer": 0.5} for step in (0, 4)[arm:]]
            (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    text = written(tmp_path / "runs")
    assert "dead scorers is missing" not in text
    assert len(list((tmp_path / "runs").rglob("dead_*.svg"))) == 1


def test_a_torn_last_row_does_no_harm(trained, tmp_path):
    shutil.copytree(trained, tmp_path / "runs")
    report(tmp_path / "runs", tmp_path / "whole")
    for file in (tmp_path / "runs").glob("*/metrics.jsonl"):
        with open(file, "ab") as ledger:
            ledger.write(b'{"step": 6, "val/perplexity": 1.\xff')
    report(tmp_path / "runs", tmp_path / "torn")
    for name in ("index.html", "report.md"):
        assert (tmp_path / "torn" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_missing_checkpoint_costs_one_figure(make, tmp_path):
    folder = make(100.0, "model=neural_d2")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "best.pt").write_bytes(b"damaged" * 100)
    text = written(tmp_path / "runs")
    assert "figure 1) is missing" in text and "best.pt" in text
    assert "![Validation perplexity" in text


def test_runs_of_changed_code_are_said(make, tmp_path):
    pairs(make)
    assert "code that computes results" not in written(tmp_path / "runs")
    file = make(97.0, "model=neural_d2", seed=3) / "env.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"source": "0123abcd"}))
    assert re.search("WARNING: the code that .* 0123abcd", written(tmp_path / "runs"))


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("compile", True, "WARNING: some of these runs were compiled"),
        ("git_commit", "f" * 40, "The runs were made with different commits"),
        ("git_dirty", True, "Some of the runs were made with uncommitted changes"),
    ],
)
def test_runs_of_another_environment_are_said(make, tmp_path, key, value, said):
    for model in ("dot_product", "neural_d2"):
        file = make(100.0, f"model={model}") / "env.json"
        env = json.loads(file.read_text()) | {"git_commit": "0" * 40, "git_dirty": False}
        file.write_text(json.dumps(env))
    assert said not in written(tmp_path / "runs")
    file.write_text(json.dumps(env | {key: value}))
    assert said in written(tmp_path / "runs")


def test_a_file_of_runs_is_read_as_their_folders_are(make, tmp_path):
    pairs(make)
    failed = make(
        97.0, "model=neural_d2", f"runtime.output_root={tmp_path}", seed=5, status="failed"
    )
    (failed / "failed.txt").write_text("no memory")
    folders = written(tmp_path / "runs")
    file = tmp_path / "archived" / "runs.jsonl"
    for root in (tmp_path / "runs", tmp_path / "archived"):  # the second time from the file itself
        assert pack(root, file, speeds=True) == []
        assert len(file.read_text().splitlines()) == 7
        assert f'"{tmp_path}"' not in file.read_text()  # no folder of this machine
    kept = written(tmp_path / "archived").replace("archived", "runs")

    def unlinked(text: str) -> list[str]:
        return re.sub(r"\]\([^)]*\)|[ -]", "", text).splitlines()

    assert unlinked(kept) == unlinked(folders)
    pack(tmp_path / "runs", file, speeds=False)
    assert "tokens/s" in folders and "tokens/s" not in written(tmp_path / "archived")


def test_a_run_in_a_folder_and_in_a_file_counts_once(make, tmp_path):
    pairs(make)
    make(97.0, "model=neural_d2", seed=0, name="again")  # and a repeated seed once
    root = tmp_path / "runs"
    before = written(root)
    assert pack(root, root / "runs.jsonl", speeds=True) == []
    text = written(root)
    assert text == before
    assert row(text, "neural_d2", section="Saturation")["runs"] == "3"


def test_a_report_on_a_file_stands_beside_it(make, train, tmp_path):
    pairs(make)
    pack(tmp_path / "runs", tmp_path / "kept" / "runs.jsonl", speeds=True)
    code, _, err = train(str(tmp_path / "kept" / "runs.jsonl"), script="scripts/report.py")
    assert code == 0, err
    assert (tmp_path / "kept" / "report" / "report.md").is_file()


def test_runs_are_found_whatever_their_folders_are_called(make, tmp_path):
    names = [f"{name}/{i}" for i, name in enumerate(("attention", "wandb", "checkpoints"))]
    for seed, name in enumerate(names):
        make(100.0, "model=dot_product", seed=seed, name=name)
    assert len(collect(tmp_path / "runs")) == len(names)


def test_a_long_curve_keeps_its_ends():
    train = [{"step": step, "train/loss": 1.0} for step in range(1, 1000)]
    rows = [{"step": 0, "val/loss": 2.0}, *train, {"step": 1000, "val/loss": 1.0}]
    found = thinned(rows)
    assert [row["step"] for row in (found[0], found[1], found[-2], found[-1])] == [0, 1, 999, 1000]
    assert len(found) == 52
    assert [row["step"] for row in thinned(rows, 2)] == [0, 1, 999, 1000]  # as of a trial


def test_figure_1_of_an_earlier_report_stays(make, tmp_path):
    make(100.0, "model=neural_d2", "scale=mini")
    figure = tmp_path / "runs/report/figures/figure1_pydocs_mini_paper.png"
    assert "figure 1) is missing" in written(tmp_path / "runs")
    figure.write_bytes(b"drawn before")
    text = written(tmp_path / "runs")
    assert figure.read_bytes() == b"drawn before" and "Drawn by an earlier report" in text


def test_figure_1_shows_the_trained_score_network(trained, reported):
    import torch

    from attnlab.config.compose import load
    from attnlab.models.attention import build_attention
    from attnlab.training.checkpoint import load_best

    plots = [p["data"][0] for p in Page(reported / "index.html").plots]
    dot, neural = (p for p in plots if p["type"] == "surface")
    cfg = load(trained / "neural_d2")
    layer = build_attention(cfg.model, cfg.arch)
    best = load_best(trained / "neural_d2" / "checkpoints")["model"]
    prefix = "blocks.0.attention.mechanism."
    layer.load_state_dict({k.removeprefix(prefix): best[k] for k in best if prefix in k})
    for i, j in ((0, 0), (5, 40), (48, 20)):
        x, y = neural["x"][j], neural["y"][i]
        point = torch.tensor([x, y]).view(1, 1, 1, 2)
        score = layer.score_network(point, point).item()
        assert neural["z"][i][j] == pytest.approx(score, rel=1e-3, abs=1e-5)
        assert dot["z"][i][j] == pytest.approx(x * x + y * y, rel=1e-3)


def test_names_and_causes_cannot_become_markup(make, tmp_path):
    folder = make(1.0, name="a|b <img src=http:x>", status="failed")
    (folder / "failed.txt").write_text("</td><script src='http://evil'></script> & more")
    text = written(tmp_path / "runs")
    page = Page(tmp_path / "runs" / "report" / "index.html")
    assert page.resources == [] and "img" not in page.tags
    assert "<script src='http://evil'></script> & more" in page.text
    assert r"a\|b &lt;img src=http:x>" in text and "<script" not in text


def test_files_of_wandb_are_no_runs(make, tmp_path):
    files = make(1.0, "model=dot_product") / "wandb" / "run-1" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text("wandb_version: 1\n")
    assert "\n1 run: 1 finished." in written(tmp_path / "runs")


def test_the_same_runs_make_the_same_files(make, tmp_path):
    pairs(make)
    contents = []
    for _ in range(2):
        report(tmp_path / "runs", tmp_path / "out")
        contents.append({f.name: f.read_bytes() for f in (tmp_path / "out").rglob("*.*")})
    assert contents[0] == contents[1]


def test_a_thousand_runs_take_seconds_and_a_page_that_opens(make, tmp_path):
    root = tmp_path / "runs"
    for model in ("dot_product", "neural_d2"):
        first = make(100.0, f"model={model}", name=model)
        cfg = (first / "config.yaml").read_text()
        for seed in range(1, 500):
            folder = shutil.copytree(first, root / f"{model}{seed}")
            (folder / "config.yaml").write_text(cfg.replace("seed: 0", f"seed: {seed}", 1))
    text = written(root)
    assert row(text, "neural_d2")["n"] == "500" and "1,000 runs: 1000 finished" in text
    assert (root / "report" / "index.html").stat().st_size < 10e6
    assert len(Page(root / "report" / "index.html").plots[0]["data"]) == 4  # two means, two bands


def test_command_line(trained, train, tmp_path):
    shutil.copytree(trained / "dot_product", tmp_path / "one")
    code, out, err = train("one", script="scripts/report.py")
    assert code == 0, err
    assert (
        out == "report: one/report/index.html\n" and (tmp_path / "one/report/report.md").is_file()
    )
    code, out, err = train("runs=one", "out=elsewhere/deep", script="scripts/report.py")
    assert code == 0 and (tmp_path / "elsewhere/deep/index.html").is_file(), err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "runs=nowhere: no run folder there"),
        ([], "runs=: missing"),
        (["one", "more"], "more: unknown argument"),
        (["one", "out=one/config.yaml"], "out=one/config.yaml: cannot be written"),
    ],
)
def test_bad_arguments_are_one_clear_line(trained, train, tmp_path, words, message):
    shutil.copytree(trained / "dot_product", tmp_path / "one")
    code, _, err = train(*words, script="scripts/report.py")
    assert code == 2 and message in err and "Traceback" not in err


def test_without_the_extra_it_says_what_to_install(trained, train, tmp_path):
    broken = "raise ModuleNotFoundError('No module named plotly', name='plotly')"
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "plotly.py").write_text(broken)
    code, _, err = train(str(trained), script="scripts/report.py", PYTHONPATH="stub")
    assert code == 2 and err == "error: the report needs plotly: pip install 'attnlab[report]'\n"


MEASURE = """<script>
setTimeout(() => parent.postMessage({
  window: window.innerWidth,
  page: document.documentElement.scrollWidth,
  figure: Math.max(...[...document.querySelectorAll(".plot .main-svg")].map(e => e.clientWidth)),
  lines: document.querySelectorAll(".scatterlayer .trace path.js-line").length,
}, "*"), 2000)
</script></body>"""
FRAMES = """<!doctype html><title></title><body>
<iframe src="copy.html" style="border:0" width=1280 height=2000></iframe>
<iframe src="copy.html" style="border:0" width=400 height=2000></iframe>
<script>
const found = [];
onmessage = (event) => { found.push(event.data); document.title = JSON.stringify(found) }
</script>"""


@pytest.mark.skipif(not shutil.which("chromium"), reason="no chromium here")
def test_page_draws_its_curves_and_fits_any_window(make, tmp_path):
    """In frames, as a headless window is never narrower than 500."""
    pairs(make)
    for seed in range(3):
        make(97.0 + seed, "model=neural_d2", "model.neural_layers=all", seed=seed)
    written(tmp_path / "runs")
    page = (tmp_path / "runs" / "report" / "index.html").read_text()
    (tmp_path / "copy.html").write_text(page.replace("</body>", MEASURE))
    (tmp_path / "frames.html").write_text(FRAMES)
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1400,3000"]
    options += ["--hide-scrollbars", "--virtual-time-budget=8000", "--dump-dom"]
    command = ["chromium", *options, f"file://{tmp_path}/frames.html"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    title = re.search(r"<title>(.*)</title>", done.stdout).group(1)
    found = json.loads(html.unescape(title))
    assert {frame["window"] for frame in found} == {1280, 400}
    for frame in found:
        assert frame["page"] == frame["window"] and frame["figure"] <= frame["window"]
        # two comparisons, of two and three arms: of each a mean and three runs
        assert frame["lines"] >= (2 + 3) * (1 + 3)
