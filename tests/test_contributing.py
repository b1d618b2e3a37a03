"""What CONTRIBUTING shows works as it stands there."""

import re
import shutil

from conftest import ROOT

BLOCK = re.compile(r"^`([\w/.]+)`.*?\n\n```\w+\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_a_mechanism_is_one_file_one_line_and_one_yaml(start, tmp_path, cache):
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## A new attention mechanism")[1]
    blocks = dict(BLOCK.findall(section.split("\n## ")[0]))
    assert len(blocks) == 3
    copy = tmp_path / "copy"
    for part in ("src", "configs"):
        shutil.copytree(ROOT / part, copy / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "train.py", copy)
    for name, text in blocks.items():
        file = copy / name
        if file.exists():  # the line
            head, brace, tail = file.read_text().partition("ATTENTION = {\n")
            assert brace
            text = head + brace + text + tail
        file.write_text(text)
    for data, layers in (("pydocs", "all"), ("digits", "[1]"), ("nt", "inner arch.layers=3")):
        words = f"model=cosine data={data} scale=smoke model.layers={layers} hydra.run.dir={data}"
        process = start(
            *words.split(), f"runtime.cache={cache}", "logger=none", "trainer.diagnostics=true",
            script=str(copy / "train.py"), PYTHONPATH=str(copy / "src"),
        )  # fmt: skip
        out, err = process.communicate(timeout=900)
        assert process.returncode == 0, err
        assert "  model: cosine\n" in out
