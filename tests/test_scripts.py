"""The scripts around a run."""

import json
import re
import shutil
import signal
import subprocess
import sys

import pytest
from conftest import ROOT

from attnlab.commands import benchmark, match_time
from attnlab.errors import BadInput


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture
def lm(shared, train):
    folder = shared / "lm"
    if not folder.exists():
        code, _, err = train("scale=smoke", f"hydra.run.dir={folder}")
        assert code == 0, err
    return folder


def test_evaluate_repeats_the_test_metrics(lm, train):
    code, out, err = train(f"run={lm}", script="scripts/evaluate.py")
    assert code == 0, err
    assert len(out.splitlines()) == 5 and all(line.endswith("same") for line in out.splitlines())


def test_evaluate_tells_a_metric_that_differs(lm, train, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "copy")
    result = json.loads((folder / "result.json").read_text())
    result["test/loss"] += 0.1
    (folder / "result.json").write_text(json.dumps(result))
    code, out, _ = train(f"run={folder}", script="scripts/evaluate.py")
    assert code == 1 and sum(line.endswith("same") for line in out.splitlines()) == 4


def test_generate_is_a_function_of_its_seed(lm, train):
    call = (f"run={lm}", "prompt=The statement", "tokens=12", "temperature=1.5")
    texts = [train(*call, f"seed={s}", script="scripts/generate.py")[1] for s in (0, 0, 1)]
    assert texts[0].startswith("The statement") and texts[0] == texts[1] != texts[2]


def test_generate_writes_what_another_kind_of_tokenizer_means(train, tmp_path):
    """Byte-level, as GPT-2's: its tokens are no words."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(["The statement of the language"] * 9, 300, show_progress=False)
    tokenizer.save(str(tmp_path / "bytes.json"))
    words = ("scale=smoke", "data.tokenizer=./bytes.json", "hydra.run.dir=run")
    code, _, err = train(*words)
    assert code == 0, err
    call = ("run=run", "prompt=The statement of", "tokens=0")
    code, out, err = train(*call, script="scripts/generate.py")
    assert (code, out) == (0, "The statement of\n"), err


def test_time_matched_steps_take_as_long(lm, tmp_path, capsys):
    """Four steps of 200 ms are eight of 100 ms; other sizes and other machines are refused."""
    for name, ms in (("slow", 200.0), ("fast", 100.0)):
        shutil.copytree(lm, tmp_path / name)
        file = tmp_path / name / "result.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"step_ms_median": ms}))
    match_time.main(tmp_path / "slow", tmp_path / "fast")
    assert capsys.readouterr().out.splitlines()[-1] == "trainer.max_steps=8"
    config = tmp_path / "fast" / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("width: 32", "width: 64", 1))
    with pytest.raises(BadInput, match=r"arch\.width is 64, and 32 in"):
        match_time.main(tmp_path / "slow", tmp_path / "fast")
    config.write_text(before.replace("ffn_width: 64", "ffn_width: 4096", 1))
    with pytest.raises(BadInput, match=r"arch\.ffn_width is 4096, and 64 in"):
        match_time.main(tmp_path / "slow", tmp_path / "fast")
    config.write_text(before)
    file = tmp_path / "fast" / "env.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"threads": 99}))
    with pytest.raises(BadInput, match="threads is 99"):
        match_time.main(tmp_path / "slow", tmp_path / "fast")


@pytest.mark.parametrize(
    ("script", "words"),
    [("evaluate", []), ("generate", ["prompt=x"]), ("show_attention", ["text=The statement"])],
)
def test_a_configuration_that_no_longer_fits_the_checkpoint_is_one_line(
    lm, train, tmp_path, script, words
):
    shutil.copytree(lm, tmp_path / "edited")
    file = tmp_path / "edited" / "config.yaml"
    file.write_text(re.sub(r"\bwidth: 32", "width: 64", file.read_text(), count=1))
    code, _, err = train("run=edited", *words, script=f"scripts/{script}.py")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and "edited: its checkpoint does not fit its config.yaml: size mis" in line
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("script", "name", "content", "said"),
    [
        ("evaluate", "result.json", '{"status": "fin', "result.json: is damaged; delete it"),
        ("upload", "metrics.jsonl", '{"step": 0}\n{"ste\n', "metrics.jsonl, line 2: is damaged"),
        ("generate", "config.yaml", "- a\n", "cannot be read: it holds no mapping"),
    ],
)
def test_a_damaged_file_of_a_run_is_one_line(script, name, content, said, lm, train, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "run")
    (folder / name).write_text(content)
    more = {"upload": ["mode=offline"], "generate": ["prompt=The"]}.get(script, [])
    code, _, err = train("run=run", *more, script=f"scripts/{script}.py")
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and said in line and "Traceback" not in err


def test_a_damaged_tokenizer_is_one_line(lm, train):
    file = lm / "tokenizer.json"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[: len(whole) // 2])
        code, _, err = train(f"run={lm}", "prompt=x", "tokens=1", script="scripts/generate.py")
    finally:
        file.write_bytes(whole)
    assert code == 2 and err.startswith(f"error: {file}: not a tokenizer.json: ")
    assert "Traceback" not in err


def test_summary_lists_finished_and_unfinished_runs(lm, shared, train):
    (shared / "other").mkdir(exist_ok=True)
    (shared / "other" / "config.yaml").write_text((lm / "config.yaml").read_text())
    code, out, _ = train(f"runs={shared}", script="scripts/summary.py")
    assert code == 0 and "| finished" in out and "| unfinished" in out


def test_output_that_nobody_reads_any_more_is_no_error():
    words = [sys.executable, ROOT / "scripts/summary.py", ROOT / "results/mini"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=900) == 128 + signal.SIGPIPE


@pytest.mark.parametrize(
    ("script", "words", "message"),
    [
        ("evaluate", ["run=nowhere"], "no run folder there"),
        ("evaluate", [], "run=: missing"),
        ("evaluate", ["run={lm}/config.yaml"], "is a file; name its folder"),
        ("restore", ["runs=nowhere"], "runs=nowhere: no such file; it must be a file"),
        ("generate", ["run={lm}", "prompt=x", "tokns=3"], "did you mean tokens?"),
        (
            "generate",
            ["run={lm}", "prompt=x", "tokens=many"],
            "tokens=many: must be a whole",
        ),
        ("generate", ["run={lm}", "prompt=x", "top_k=0"], "top_k=0: must be at least 1"),
        ("generate", ["run={lm}", "prompt="], "must hold at least one token"),
        ("summary", ["runs=nowhere"], "no run folder there"),
        ("benchmark", ["n=0"], "n=0: must be whole numbers from 1"),
        ("benchmark", ["device=gpu"], "device=gpu: must be cpu"),
        ("benchmark", ["model=yes", "d=32"], "d=: has no effect on whole training steps"),
        ("benchmark", ["json=nowhere/rows.json"], "there is no folder nowhere"),
        ("benchmark", ["plot=rows.txt"], "plot=rows.txt: must end in .png, .svg or .pdf"),
        (
            "compare_arms",
            ["experiment=table1 data=wikitext2", "seed=0"],
            "is 12 runs; must be one",
        ),
        ("compile_triton", ["archs=abc"], "archs=abc: must be numbers such as 90, not 'abc'"),
    ],
)
def test_bad_arguments_are_one_clear_line(lm, train, script, words, message):
    words = [word.format(lm=lm) for word in words]
    code, _, err = train(*words, script=f"scripts/{script}.py")
    assert code == 2 and message in err and "Traceback" not in err


def test_benchmark_writes_comparable_rows(train, tmp_path):
    options = ("case=released_d2", "n=64", "threads=1", "json=rows.json")
    code, out, err = train(*options, script="scripts/benchmark.py")
    assert code == 0, err
    rows = json.loads((tmp_path / "rows.json").read_text())
    backends = {row["backend"] for row in rows if row["pass"] == "forward_backward"}
    assert backends >= {"sdpa", "algorithm_1", "eager", "chunked"}
    for row in rows:
        assert row["ms"] > 0 and row["ratio_to_sdpa"] > 0 and row["device"] and row["torch"]
        assert (row["n"], row["threads"], row["dtype"], row["causal"]) == (64, 1, "float32", True)
    assert sum(line.startswith("| 64 |") for line in out.splitlines()) == len(rows) / 2


def test_benchmark_of_whole_steps(monkeypatch, tmp_path, capsys):
    """At a size that a test has time for."""
    arms = {name: [f"model={name}", "scale=smoke"] for name in ("dot_product", "neural_d2")}
    monkeypatch.setattr(benchmark, "ARMS", arms)
    benchmark.main(model=True, device="cpu", json=tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    bodies = [(body, arm) for body in ("lm", "vit") for arm in arms]
    assert [(row["body"], row["arm"]) for row in rows] == bodies
    table = capsys.readouterr().out
    assert all(f"| {body} | {arm} | " in table for body, arm in bodies)


def test_benchmark_of_an_unknown_case(train):
    code, _, err = train("case=d3", script="scripts/benchmark.py")
    assert code == 2 and err.startswith("error: case=d3: must be among released_d2")
