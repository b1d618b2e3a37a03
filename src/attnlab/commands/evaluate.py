"""Repeat a run's test metrics from its folder alone:  attnlab evaluate run=<folder>."""

import sys

from attnlab.commands.arguments import RunArgument
from attnlab.runs.files import read_json


def main(run: RunArgument, device: str = "same") -> None:
    """Print each test metric beside result.json's; exit code 1 if they are not the same number."""
    from attnlab import run as program
    from attnlab.data.loader import build_data
    from attnlab.runs.environment import other_source
    from attnlab.runtime.device import choose_device
    from attnlab.training.model import build

    cfg = run.config(device)
    model_device = choose_device(cfg.runtime, cfg.trainer.precision)
    data = build_data(cfg.data, cfg.seed, cfg.runtime.cache)
    model = build(cfg, data).to(model_device)
    metrics, _ = program.test(cfg, data, model, run.path)
    stored = read_json(run.path / "result.json")
    differs = False
    for key, value in metrics.items():
        then = stored.get(key, "not recorded")
        same = repr(value) == repr(then)  # as text, NaN equals itself
        differs |= not same
        print(f"{key}: {value!r}  result.json: {then!r}  {'same' if same else 'differs'}")
    if differs:
        if changed := other_source(run.path):
            print(changed, file=sys.stderr)
        sys.exit(1)
