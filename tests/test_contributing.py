"""What docs/your-mechanism.md shows works as it stands there."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BLOCK = re.compile(
    r"^[\w ]+`([\w/.]+)`(?:, (in|before) (\w+))?\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
TYPES = re.compile(r"^from attnlab\.config\.types import .*$", re.MULTILINE)


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The project with the mechanism of the page added."""
    page = (ROOT / "docs" / "your-mechanism.md").read_text()
    blocks = BLOCK.findall(page)
    assert len(blocks) == 5
    copy = tmp_path_factory.mktemp("copy")
    for part in ("src", "configs", "tests"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    for part in ("train.py", "pyproject.toml"):
        shutil.copy(ROOT / part, copy)
    for name, where, table, text in blocks:
        file = copy / name
        assert file.exists() == bool(table)
        if where == "in":  # a line of a table
            head, opening, tail = re.split(rf"(^{table} = {{.*\n)", file.read_text(), flags=re.M)
            text = head + opening + text + tail
        elif where == "before":  # a section, and its name in the union
            head, union, tail = re.split(rf"(^{table} = .*)", file.read_text(), flags=re.M)
            text = TYPES.sub(TYPES.search(page)[0], f"{head}{text}\n\n{union} | Cosine{tail}")
        file.write_text(text)
    return copy


def test_a_mechanism_is_a_file_a_section_and_a_yaml(start, copy, cache):
    words = "model.layers=all", "model.layers=[1] model.scale=2.0", "model.per_head=true"
    for data, options in zip(("pydocs", "digits", "nt"), words, strict=True):
        words = f"model=cosine data={data} scale=smoke hydra.run.dir={data} {options}"
        process = start(
            *words.split(), f"runtime.cache={cache}", "logger=none", "trainer.diagnostics=true",
            script=str(copy / "train.py"), PYTHONPATH=str(copy / "src"),
        )  # fmt: skip
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert "  model: cosine\n" in out


def test_the_mechanism_passes_the_tests_of_all_mechanisms(copy):
    def python(*words: str) -> str:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=copy,
            env={**os.environ, "PYTHONPATH": str(copy / "src")},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    values = (copy / "tests" / "golden.json").read_text().splitlines()
    python("tests/test_golden.py")
    written = (copy / "tests" / "golden.json").read_text().splitlines()
    new = [line for line in written if line not in values]
    assert len(new) == 3  # data sets
    assert all(" cosine " in line for line in new)
    files = [f"tests/test_{name}.py" for name in ("attention", "models", "golden")]
    stdout = python(*["-m", "pytest", "-n", "0", "-p", "no:cacheprovider", "-k", "cosine"], *files)
    # every test over VARIANTS or MODELS, among them 12 in three precisions
    assert int(re.search(r"(\d+) passed", stdout)[1]) >= 28, stdout


def test_an_option_without_a_section_is_told_where_it_goes(start, copy):
    yaml = copy / "configs" / "model" / "warm_cog.yaml"
    yaml.write_text((copy / "configs" / "model" / "cog.yaml").read_text() + "warmth: 2.0\n")
    process = start("model=warm_cog", script=str(copy / "train.py"), PYTHONPATH=str(copy / "src"))
    _, err = process.communicate()
    yaml.unlink()  # the copy is shared
    assert process.returncode == 2
    assert err == (
        "error: model.warmth: mechanism=cog has no option but model.layers; options of its own "
        "need a section in src/attnlab/config/mechanisms.py, named in WithSection\n"
    )
