"""The program `attnlab` and what an installed package holds, without a checkout around it."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT

import attnlab
from attnlab import commands
from attnlab.errors import BadInput
from attnlab.report.collect import collect
from attnlab.report.frame import ALWAYS, frame

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def call(monkeypatch, *words: str) -> int:
    """The exit code of `attnlab <words>`, in this process."""
    monkeypatch.setattr(sys, "argv", ["attnlab", *words])
    try:
        commands.main()
    except SystemExit as ended:
        return ended.code or 0
    return 0


def test_what_is_refused_does_not_wait_for_torch(tmp_path):
    """Which takes seconds to import."""
    code = (
        "import sys\n"
        "from attnlab.commands import start\n"
        "try: start('train', ['model=nueral_d2'])\n"
        "except SystemExit as ended: sys.exit(f'{ended.code} {\"torch\" in sys.modules}')"
    )
    words = [sys.executable, "-c", code]
    found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=False)
    said, ended = found.stderr.splitlines()
    assert "did you mean neural_d2?" in said and ended == "2 False"


def test_the_package_is_a_program_too(tmp_path):
    """So torchrun can start it: torchrun -m attnlab train ..."""
    words = [sys.executable, "-m", "attnlab", "--version"]
    found = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, check=True)
    assert found.stdout == f"{attnlab.__version__}\n"


def test_help_lists_every_command_and_each_explains_itself(monkeypatch, capsys):
    assert PROJECT["project"]["scripts"] == {"attnlab": "attnlab.commands:main"}
    assert call(monkeypatch, "--help") == 0
    listed = re.findall(r"^  (\w+) +\w.*$", capsys.readouterr().out, re.MULTILINE)
    modules = {p.stem for p in Path(commands.__file__).parent.glob("*.py")}
    assert listed == list(commands.COMMANDS)
    assert set(listed) == modules - {"__init__", "arguments"}
    for name in listed:
        script = "train.py" if name == "train" else f"scripts/{name}.py"
        assert f'start("{name}")' in (ROOT / script).read_text()
        if name != "train":  # Hydra's help
            assert call(monkeypatch, name.replace("_", "-"), "--help") == 0
            assert f"attnlab {name}" in capsys.readouterr().out
    assert call(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"{attnlab.__version__}\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "explains one."),  # as in a script whose variable is empty
        (["sumary"], "sumary: unknown command; did you mean summary?; allowed: train, "),
        (["collect", "runs=x", "out=y", "speeds=2"], "speeds=2: must be yes or no"),
        (["collect", f"runs={ROOT}", f"out={ROOT}/x/runs.jsonl"], "in a subfolder of runs="),
        (["compare_arms", "seed=1"], "1 arms: must be two"),
        (["export", "run=x"], "out=: missing"),
        (["export", "out=x"], "run=: missing; without it, push="),
        (["export", "out=x", "push=me/x"], "x: no exported model there"),
        (["summary", str(ROOT / "results/mini"), "out=a.xls"], "must end in .csv or .parquet"),
    ],
)
def test_wrong_words_are_refused(monkeypatch, capsys, words, message):
    assert call(monkeypatch, *words) == 2
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder like site-packages, with what pyproject.toml puts into a wheel."""
    wheel, site = (
        PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"],
        tmp_path_factory.mktemp("site"),
    )
    ignore = shutil.ignore_patterns("__pycache__")
    for package in wheel["packages"]:
        shutil.copytree(ROOT / package, site / Path(package).name, ignore=ignore)
    for source, target in wheel["force-include"].items():
        shutil.copytree(ROOT / source, site / target)
    return site


def test_an_installed_package_trains_and_exports_anywhere(installed, tmp_path, cache):
    train = ["train", "data=nt", "model=additive", "scale=smoke", "logger=none"]
    train += [f"runtime.cache={cache}", "hydra.run.dir=run", "runtime.device=cpu"]
    lines = [train, ["export", "run=run", "out=model"], ["summary", "run", "out=runs.csv"]]
    program = "import sys\nfrom attnlab.commands import start\n" + "\n".join(
        f"start({name!r}, {words!r})" for name, *words in lines
    )
    env = {**os.environ, "PYTHONPATH": str(installed)}
    done = subprocess.run(
        [sys.executable, "-P", "-c", program],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()[-3:]
    assert said == ["run: run", "exported: model", "1 runs: runs.csv"]
    recorded = json.loads((tmp_path / "run" / "env.json").read_text())
    # the folder may lie in a repository of something else, whose commit it is not
    assert recorded["git_commit"] is None and recorded["attnlab"] == attnlab.__version__
    assert attnlab.load(tmp_path / "model").training is False
    assert len(pd.read_csv(tmp_path / "runs.csv")) == 1


def test_a_wheel_holds_what_is_read_at_run_time(installed):
    """Everything in the package that is no Python: C++ sources, templates, configurations."""
    assert (installed / "attnlab/configs/train.yaml").is_file()
    assert list(installed.glob("attnlab/kernels/cpp/*.cpp"))
    assert (installed / "attnlab/report/page.html").is_file()
    assert (installed / "attnlab/py.typed").is_file()
    assert set(attnlab.__all__) <= set(dir(attnlab)) and attnlab.BadInput is BadInput
    ignored = subprocess.run(  # hatchling leaves out what git ignores
        ["git", "-C", str(ROOT), "ls-files", "-oi", "--exclude-standard", "src", "configs"],
        capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    assert [f for f in ignored if not re.search(r"__pycache__|egg-info", f)] == []


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_summary_has_one_row_a_run(monkeypatch, tmp_path, ending):
    file = tmp_path / f"runs.{ending}"
    assert call(monkeypatch, "summary", str(ROOT / "results/mini"), f"out={file}") == 0
    table = getattr(pd, f"read_{ending}")(file)
    runs = collect(ROOT / "results/mini")
    assert list(table["folder"]) == [str(run.folder) for run in runs]
    keys = {key for run in runs for key in run.config}
    for key in keys:
        values = {json.dumps(run.config.get(key, "absent")) for run in runs}
        assert (key in table.columns) == (len(values) > 1 or key in ALWAYS), key
    for run, (_, row) in zip(runs, table.iterrows(), strict=True):
        assert row["test/loss"] == pytest.approx(run.result["test/loss"], rel=1e-12)
        assert row["model.name"] == run.config["model.name"] and row["seed"] == run.config["seed"]
    assert frame(runs)["params"].dtype == "Int64"
