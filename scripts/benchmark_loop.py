"""What a training step of ours costs beside a bare loop:  python scripts/benchmark_loop.py

The same model, batches, optimizer and clipping, at the default logging interval: once bare, once
with random numbers keyed by step, a learning rate, measures, checks for values not finite,
metrics.jsonl and timing.jsonl. Both take turns in one process; medians [quartiles] over the turns.
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
from pathlib import Path

from attnlab.commands.arguments import main_with
from attnlab.errors import BadInput

TINY = [
    *("data=nt", "scale=smoke", "model=dot_product", "arch.layers=1", "arch.width=16"),
    *("trainer.batch_size=2", "trainer.warmup_steps=0", "trainer.log_every=50", "logger=none"),
    *("runtime.threads=1", "runtime.progress=false", "runtime.device=cpu"),
]


def main(steps: int = 2000, turns: int = 11) -> None:
    """Print milliseconds a step of both, and the difference in microseconds."""
    if steps < 150 or turns < 2:
        raise BadInput(f"steps={steps} turns={turns}: must be at least 150 and 2")
    from attnlab.config.compose import compose_config, plain
    from attnlab.config.messages import validate
    from attnlab.runtime.device import choose_device

    logging.getLogger("attnlab").setLevel(logging.WARNING)
    ends = (f"trainer.{key}={steps}" for key in ("max_steps", "eval_every", "save_every"))
    cfg = validate(plain(compose_config([*TINY, *ends])))
    choose_device(cfg.runtime)
    times = [(bare(cfg), ours(cfg)) for _ in range(turns)]
    alone, whole = zip(*times, strict=True)
    costs = [1e6 * (b - a) for a, b in times]
    print(f"bare loop: {_spread([1e3 * t for t in alone])} ms a step")
    print(f"train.py:  {_spread([1e3 * t for t in whole])} ms a step")
    print(f"cost:      {_spread(costs)} microseconds a step, {steps} steps, {turns} turns")


def bare(cfg) -> float:
    """Seconds a step of what cannot be left out."""
    from torch import nn

    from attnlab.data.loader import build_data, train_loader
    from attnlab.training.model import build
    from attnlab.training.optim import build_optimizer
    from attnlab.training.update import training_loss

    data, options = build_data(cfg.data, cfg.seed, cfg.runtime.cache), cfg.trainer
    model = build(cfg, data).train()
    optimizer = build_optimizer(model, options)
    batches = iter(train_loader(data, options, cfg.seed, range(options.max_steps)))
    began = time.perf_counter()
    for inputs, targets, *_ in batches:
        training_loss(model(inputs), targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), options.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return (time.perf_counter() - began) / options.max_steps


def ours(cfg) -> float:
    """Seconds a step of a whole run, without its start, its one evaluation and its one save."""
    from attnlab.run import run
    from attnlab.runs.files import Ledger

    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(io.StringIO()):
            run(cfg, Path(folder))
        first, *_, last, _ = Ledger(Path(folder, "timing.jsonl")).rows()
    return (last["wall_s"] - first["wall_s"]) / (last["step"] - first["step"])


def _spread(values: list[float]) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.3g} [{low:.3g}, {high:.3g}]"


if __name__ == "__main__":
    main_with(main)
