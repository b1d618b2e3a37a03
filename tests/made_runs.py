"""Runs as the report reads them, in memory or as folders like those of real runs; and what their
report holds.
"""

import copy
import functools
import html.parser
import json
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import config

from attnlab.config.compose import flatten
from attnlab.report.collect import Run
from attnlab.report.render import report
from attnlab.run import run

LADDER = ("experiment=ladder_fair", "arch.norm=pre")


def finished(value: float, *overrides: str, seed: int, commit: str | None = None, **more) -> Run:
    """A finished run as the report reads it. more: of result.json."""
    result = {"status": "finished", "test/perplexity": value} | more
    composed_ = _flat(*overrides) | {"seed": seed}
    folder = Path(*overrides, str(seed))
    return Run(folder, folder, composed_, result, {"git_commit": commit}, status="finished")


@functools.cache
def _flat(*overrides: str) -> dict:
    return flatten(config(*overrides).model_dump())


def tuned(model: str, rates: dict[float, float], seeds=(100, 101, 102)) -> list[Run]:
    """Trials of an arm, and its fresh runs at every rate, with this accuracy at each."""
    runs = []
    for rate, value in rates.items():
        at = (*LADDER, f"model={model}", f"trainer.lr={rate}")
        for seed in seeds:
            measured = {"best/val/accuracy": value}
            runs.append(finished(1, *at, "runtime.tuning=true", seed=seed, **measured))
        for seed in range(10, 15):
            measured = {"test/accuracy": value + seed / 1e4, "test_samples": 10_000}
            runs.append(finished(1, *at, seed=seed, **measured))
    return runs


def is_trial(run: Run) -> bool:
    return run.config["runtime.tuning"]


@pytest.fixture(scope="session")
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


def pairs(make, *overrides: str, arm: str = "model=neural_d2") -> None:
    """The three seeds of the tables, with effects of 2, 3 and 2 percent: mean 2.33, sd 0.577."""
    for seed, (dot, neural) in enumerate([(100, 98), (110, 106.7), (120, 117.6)], 40):
        make(dot, "model=dot_product", *overrides, seed=seed)
        make(neural, arm, *overrides, seed=seed)


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
