"""Runs as the report reads them, made without training."""

import functools
from pathlib import Path

from conftest import config

from attnlab.report.collect import Run
from attnlab.runs.files import flatten

LADDER = ("experiment=ladder_fair", "arch.norm=pre")


def finished(value: float, *overrides: str, seed: int, commit: str | None = None, **more) -> Run:
    """A finished run as the report reads it. more: of result.json."""
    result = {"status": "finished", "test/perplexity": value} | more
    composed_ = composed(*overrides) | {"seed": seed}
    folder = Path(*overrides, str(seed))
    return Run(folder, folder, composed_, result, {"git_commit": commit}, status="finished")


@functools.cache
def composed(*overrides: str) -> dict:
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
