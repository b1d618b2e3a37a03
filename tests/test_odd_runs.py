"""The report on runs that are unfinished, damaged, collected into a file or of other code."""

import json
import math
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from made_runs import pairs, row, written

from attnlab.report.archive import thinned
from attnlab.report.collect import collect, pack
from attnlab.report.render import report


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
    make(97.0, "model=neural_d2", seed=40, name="again")  # and a repeated seed once
    root = tmp_path / "runs"
    before = written(root)
    assert pack(root, root / "runs.jsonl", speeds=True) == []
    text = written(root)
    assert text == before
    assert row(text, "neural_d2", section="Saturation")["runs"] == "3"


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


def test_files_of_wandb_are_no_runs(make, tmp_path):
    files = make(1.0, "model=dot_product") / "wandb" / "run-1" / "files"
    files.mkdir(parents=True)
    (files / "config.yaml").write_text("wandb_version: 1\n")
    assert "\n1 run: 1 finished." in written(tmp_path / "runs")
