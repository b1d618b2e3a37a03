"""scripts/reproduce.py: what it says before it starts, and one experiment from start to report."""

import json
import shutil
import subprocess

import pytest
from conftest import ROOT, config

from attnlab import cli
from attnlab.commands.reproduce import YES, overrides

SMOKE = ("scale=smoke", "logger=none", "runtime.progress=false")


def reproduce(start, cache, *words):
    process = start(*SMOKE, f"runtime.cache={cache}", *words, script="scripts/reproduce.py")
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


@pytest.mark.skipif(shutil.which("make") is None, reason="no make here")
@pytest.mark.parametrize("target", ["reproduce-paper", "reproduce-mini", "ablations"])
def test_what_make_starts_is_there(target):
    """Every experiment that the Makefile names, with its overrides."""
    dry = subprocess.run(["make", "-n", target], capture_output=True, text=True, cwd=ROOT)
    (line,) = (line for line in dry.stdout.splitlines() if "scripts/reproduce.py" in line)
    words = [w for w in line.split("scripts/reproduce.py")[1].split() if w not in YES]
    jobs = overrides(words)
    for job in jobs:
        cli.check_overrides(job)
    started = {word for job in jobs for word in job if word.startswith("experiment=")}
    assert started == {f"experiment={word}" for word in words if "=" not in word} != set()


def test_what_takes_long_is_estimated_and_not_started(start, cache, tmp_path):
    long = ("trainer.max_steps=10000000", "trainer.epochs=null", "model=dot_product,neural_d2")
    code, out, err = reproduce(start, cache, "table3", "data=digits", *long, "seed=0,1")
    assert code == 2 and "hours: add yes=true to start" in err.splitlines()[-1]
    assert "arms: 2; they differ only in attention" in out
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| digits")]
    assert [row[1] for row in rows] == ["dot_product", "neural_d2"]
    for row in rows:
        assert row[3:5] == ["2", "20,000,000"] and float(row[7]) > 0.1  # GiB: python with torch
        hours = 20_000_000 * float(row[5]) / 3600
        assert float(row[6].replace(",", "")) == pytest.approx(hours, rel=0.01, abs=0.1)
    assert not (tmp_path / "outputs").exists()


def test_an_experiment_from_start_to_report(start, cache, tmp_path):
    words = ("ablate_score_scale", "data=digits", "seed=0", "model.score_scale=false")
    code, out, err = reproduce(start, cache, *words)
    assert code == 0, err
    results = [json.loads(p.read_text()) for p in tmp_path.glob("outputs/*/*/*/result.json")]
    assert sorted(r["model"] for r in results) == ["dot_product", "neural_d2"]  # and its baseline
    assert "sweep: 2 of 2 finished" in out
    assert "single run" in (tmp_path / "outputs/report/report.md").read_text()
    code, out, _ = reproduce(start, cache, *words)
    assert code == 0 and out.count(": finished before") == 2 and "measuring" not in out


def test_experiments_that_share_a_run(start, cache, tmp_path):
    """figure1 asks for one of table1's runs, so the arms' first runs have other seeds."""
    common = ("data=pydocs", "trainer.max_steps=10000000")
    words = ("table1", *common, "model=dot_product,neural_d2", "figure1", *common)
    code, out, err = reproduce(start, cache, *words)
    assert code == 2 and "hours: add yes=true to start" in err.splitlines()[-1]
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| pydocs")]
    assert [(row[1], row[3]) for row in rows] == [("dot_product", "3"), ("neural_d2", "3")]


def test_epochs_and_kept_checkpoints_count(start, cache, image_rows, tmp_path):
    """In the estimate, of text and of images, whose number the data itself says."""
    many = ("trainer.max_steps=null", "trainer.epochs=1000000", "runtime.keep_checkpoints=10000")
    images = ("data=cifar10", f"data.path={image_rows}", "data.validation_size=20", "seed=0")
    words = ("figure1", "data=pydocs", *many, "table3", *images, *many, "model=dot_product")
    code, out, err = reproduce(start, cache, *words)
    assert code == 2 and "hours: add yes=true to start" in err.splitlines()[-1], err
    rows = [line.split(" | ") for line in out.splitlines() if line.startswith("| ")]
    (image,) = (row for row in rows if row[0] == "| cifar10")
    text = next(row for row in rows if row[0] == "| pydocs")  # another one is its baseline
    batch = config("data=cifar10", "scale=smoke").trainer.batch_size
    assert image[4] == f"{100 * 10**6 // batch:,}" and int(text[4].replace(",", "")) > 10**6
    assert all(float(row[8].strip(" |")) > 1 for row in (text, image))  # GiB of disk


def test_missing_data_is_said_before_anything_is_measured(start, cache):
    code, out, err = reproduce(start, cache, "table3", "data.path=/nowhere/cifar")
    assert code == 2 and "measuring" not in out
    assert err == "error: data.path=/nowhere/cifar: no such folder\n"


def test_a_wrong_word_is_one_line(start, cache, tmp_path):
    code, out, err = reproduce(start, cache, "tabel1")
    assert (code, out) == (2, "")
    assert err.startswith("error: experiment=tabel1: unknown experiment; did you mean table1?")
    code, _, err = reproduce(start, cache, "table1", "launcher=joblib")
    assert code == 2 and err.startswith("error: launcher=joblib: reproduce runs its jobs here")
    code, _, err = reproduce(start, cache, "table1", "arch.layers=0", "table3", "arch.heads=0")
    assert code == 2 and "error: arch.layers=0: " in err and "error: arch.heads=0: " in err
    assert list(tmp_path.iterdir()) == []
