"""The report as a page and a command: its numbers, figures, links and files."""

import html
import itertools
import json
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from urllib.parse import unquote

import pytest
from made_runs import Page, pairs, row, written

from attnlab.report import figures
from attnlab.report.collect import collect, pack
from attnlab.report.render import report
from attnlab.report.summary import markdown


@pytest.fixture(scope="module")
def reported(trained, tmp_path_factory):
    """The report on the real runs."""
    out = tmp_path_factory.mktemp("reported")
    report(trained, out)
    return out


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


def test_real_runs_say_how_many_test_samples_they_have(trained, reported):
    result = json.loads((trained / "images" / "result.json").read_text())
    assert result["test_samples"] == 359
    hits = 359 * result["test/accuracy"]
    assert hits == pytest.approx(round(hits))


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


def test_a_report_on_a_file_stands_beside_it(make, train, tmp_path):
    pairs(make)
    pack(tmp_path / "runs", tmp_path / "kept" / "runs.jsonl", speeds=True)
    code, _, err = train(str(tmp_path / "kept" / "runs.jsonl"), script="scripts/report.py")
    assert code == 0, err
    assert (tmp_path / "kept" / "report" / "report.md").is_file()


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


def test_the_same_runs_make_the_same_files(make, tmp_path):
    pairs(make)
    contents = []
    for _ in range(2):
        report(tmp_path / "runs", tmp_path / "out")
        contents.append({f.name: f.read_bytes() for f in (tmp_path / "out").rglob("*.*")})
    assert contents[0] == contents[1]


def test_a_thousand_runs_make_a_page_that_opens(make, tmp_path):
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
        (["one", "more"], "more: runs=one is there already, and other arguments are key=value"),
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
