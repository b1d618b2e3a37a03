"""What docs/your-mechanism.md and docs/data.md show works as it stands there."""

import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
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
    words = "model=cosine model.layers=[1] model.scale=2.0 model.per_head=true"
    words += " data=digits scale=smoke trainer.diagnostics=true logger=none"
    process = start(
        *words.split(), f"runtime.cache={cache}",
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
    option = copy / "configs" / "model" / "warm_cog.yaml"
    option.write_text((copy / "configs" / "model" / "cog.yaml").read_text() + "warmth: 2.0\n")
    process = start("model=warm_cog", script=str(copy / "train.py"), PYTHONPATH=str(copy / "src"))
    _, err = process.communicate()
    option.unlink()  # the copy is shared
    assert process.returncode == 2
    assert err == (
        "error: model.warmth: mechanism=cog has no option but model.layers; options of its own "
        "need a section in src/attnlab/config/mechanisms.py, named in WithSection\n"
    )


def test_a_data_set_is_a_yaml_and_a_fault_in_it_is_named(start, copy):
    page = (ROOT / "docs" / "data.md").read_text()
    block = re.search(r"^    # @package _global_\n(?:(?:    .*)?\n)+", page, re.MULTILINE)[0]
    file = copy / "configs" / "data" / "my_books.yaml"

    def asked(text: str) -> tuple[str, str]:
        file.write_text(text)
        words = "--cfg", "job", "data=my_books"
        process = start(*words, script=str(copy / "train.py"), PYTHONPATH=str(copy / "src"))
        out, err = process.communicate()
        file.unlink()  # the copy is shared
        assert process.returncode == (2 if err else 0)
        return out, err

    text = textwrap.dedent(block)
    out, err = asked(text)
    assert (yaml.safe_load(out)["data"]["path"], err) == ("./my_books", "")
    for right, wrong, named in (
        ("_global_", "_global_ (a remark)", "Too many components"),
        ("/kind: text", "/kind: texts", "Could not find 'kind/texts'"),
        ("  path:", "path:", "line "),
        ("./my_books", "${no.key}", "no.key"),
    ):
        out, err = asked(text.replace(right, wrong))
        assert err.startswith(f"error: data=my_books: {file} cannot be composed: "), err
        assert named in err and err.count("\n") == 1 and not out
