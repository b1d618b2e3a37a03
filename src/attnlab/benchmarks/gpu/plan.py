"""How much `make gpu` measures: on a card, or a little of each stage on the CPU as its test."""

import multiprocessing
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from attnlab.config.schema import Config

GIB = 2**30
CONTEXT = multiprocessing.get_context("forkserver")  # of the stages' processes: see runner


Program = Callable[[Config, Path], Any]


class Limits(NamedTuple):
    """Of a stage: seconds, and processes that share its rows (so that kernels compile beside each
    other; what is timed runs alone).
    """

    seconds: int
    processes: int


# In their order; together less than nine minutes.
STAGES = {
    "correct": Limits(110, 8),
    "fast": Limits(110, 1),
    "tiles": Limits(60, 8),
    "fits": Limits(100, 1),
    "trains": Limits(130, 1),
    "logs": Limits(20, 1),
}


@dataclass(frozen=True)
class Plan:
    """Sizes of all stages. smoke: tiny, on the CPU, with the kernels in Triton's interpreter.

    results: the folder of rows and page; scratch: that of logs and runs; program: trains and tests
    a configuration in a folder.
    """

    device: str
    results: Path
    scratch: Path
    smoke: bool
    program: Program
    memory: int = 45 * GIB // 2  # for whole models: about what a 24 GB card leaves them
    gpus: int = 1  # that may train together
    # correct
    tokens: list[int] = field(default_factory=lambda: [1, 63, 785, 1024, 2047])
    compiler: str = "inductor"
    # fast
    lengths: list[int] = field(default_factory=lambda: [512, 1024, 2048, 4096, 8192])
    batch: int = 16
    heads: int = 8
    width: int = 64
    seconds: float = 0.3  # of one measurement
    # fits
    scale: str = "paper"
    compiled: list[bool] = field(default_factory=lambda: [False, True])
    # trains
    train_s: float = 10.0
    train: list[str] = field(
        default_factory=lambda: [
            *("data=pydocs", "scale=paper", "trainer.precision=bf16", "trainer.log_every=10"),
            *("trainer.eval_every=50", "trainer.save_every=1000000", "runtime.progress=false"),
        ]
    )
    neural: list[str] = field(default_factory=list)  # said of the neural arms besides


def smoke(results: Path, scratch: Path, program: Program) -> Plan:
    """The least of everything."""
    return Plan(
        device="cpu",
        results=results,
        scratch=scratch,
        smoke=True,
        program=program,
        tokens=[5],
        compiler="eager",
        lengths=[16],
        batch=1,
        heads=1,
        width=16,
        seconds=0.0,
        scale="smoke",
        compiled=[False],
        train_s=0.0,
        train=[
            *("data=nt", "data.eval_size=8", "scale=smoke", "trainer.log_every=1"),
            *("trainer.eval_every=5", "trainer.save_every=1000000", "trainer.max_steps=1000000"),
            *("runtime.device=cpu", "runtime.threads=1", "runtime.progress=false"),
        ],
        neural=["model.backend=chunked"],  # nothing is compiled
    )
