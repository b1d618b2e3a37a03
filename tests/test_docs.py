"""What README and docs name is there."""

import itertools
import re
import shlex
from pathlib import Path

import pytest
from conftest import MODELS, ROOT, config

import attnlab
from attnlab import cli
from attnlab.config.compose import flatten

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
LINK = re.compile(r"(?:\]\(|src=\")([^)\s\"]+)[)\"]")
# A path from the root; the page on a mechanism of one's own names files that do not exist yet.
PATH = re.compile(
    r"(?<![\w/.<])(?:src|configs|scripts|tests|docs|results|train\.py|\.ci)(?:/[\w./-]+)?(?![\w<*])"
)
EXAMPLE = re.compile(r"\w+/(cosine|model/cosine|data/my_books)\.|cosine\.")
COMMAND = re.compile(r"^(?: {4}|\$ )python (train\.py .*?)(?:  +#.*| #.*)?$", re.MULTILINE)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_and_paths_exist(page: Path):
    text = page.read_text()
    for link in LINK.findall(text):
        target, _, anchor = link.partition("#")
        if re.match(r"\w+:", target):
            continue
        file = page.parent / target if target else page
        assert file.is_file(), link
        if anchor:
            assert anchor in anchors(file.read_text()), link
    for path in PATH.findall(text):
        path = path.rstrip("./")
        if EXAMPLE.search(path):
            continue
        assert (ROOT / path).exists(), path


def test_reliability_names_tests_that_exist():
    page = (ROOT / "docs" / "reliability.md").read_text()
    code = {file.stem: file.read_text() for file in (ROOT / "tests").glob("test_*.py")}
    named = set(re.findall(r"(?<!\w)(?:(test_\w+)::)?(test_\w+)", page))
    assert len(named) > 40
    for file, test in named:
        defined = code[file] if file else "\n".join(code.values())
        assert (not file and test in code) or f"def {test}(" in defined, test


def anchors(text: str) -> set[str]:
    """Of the headings, as GitHub and MkDocs make them."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


def test_commands_compose():
    commands = {c for page in PAGES for c in COMMAND.findall(page.read_text())}
    checked = 0
    for command in sorted(commands):
        words = [w for w in shlex.split(command)[1:] if w not in ("-m", "--cfg", "job")]
        if any(w in command for w in ("nueral", "cosine", "...", "<")):
            continue  # a mistake on purpose, the worked example, a placeholder
        for job in cli.jobs(words, sweep="-m" in command)[:1]:
            config(*job)
        checked += 1
    assert checked >= 10


def test_every_key_of_a_run_is_named_somewhere():
    """The README says that the docs have all of them."""
    data = sorted(file.stem for file in (ROOT / "configs" / "data").glob("*.yaml"))
    chosen = [f"data={name}" for name in data if name not in ("text", "images", "translation")]
    chosen += [f"model={name}" for name in MODELS]
    keys = {key for word in chosen for key in flatten(config(word).model_dump())}
    code = (re.findall(r"`[^`\n]+`|^    .*$", page.read_text(), re.MULTILINE) for page in PAGES)
    named = set(re.findall(r"\w+", " ".join(itertools.chain.from_iterable(code))))
    own = {"code_version", *(key for key in keys if key.startswith("data.augment."))}
    assert sorted(key for key in keys - own if key.rpartition(".")[2] not in named) == []


def test_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_changelog_knows_the_version():
    assert f"\n## {attnlab.__version__}" in (ROOT / "CHANGELOG.md").read_text()
