"""Shared by all tests: configurations as shipped, runs through train.py, small data in the hub's
row form.
"""

import gc
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Test processes share the cores, and a thread that spins while it waits keeps others from
# working: 20 times slower. Must be there before torch is.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import pytest
import torch
from forked import ZYGOTE, Program, default_signals
from hypothesis import HealthCheck, settings

from attnlab.config import compose
from attnlab.config.messages import validate
from attnlab.config.schema import Config
from attnlab.data.loader import Data, build_data
from attnlab.kernels.cpp_backend import cache_folder
from attnlab.models.transformer import Transformer, build_model
from attnlab.training import checkpoint

pytest_plugins = ["made_runs"]  # its fixtures
ROOT = Path(__file__).resolve().parents[1]
MODELS = sorted(p.stem for p in (compose.CONFIGS / "model").glob("*.yaml"))
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
READ_AT_START = {"PYTHONPATH", "LC_ALL"}  # of the environment, by python and what it imports first
# The same examples every time, but for `make chaos`, and on a full machine as on an idle one.
settings.register_profile(
    "same",
    derandomize="ATTNLAB_FUZZ" not in os.environ,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("same")


def config(*overrides: str) -> Config:
    """What `python train.py <overrides>` would run."""
    return validate(compose.plain(compose.compose_config(list(overrides))))


def smoke(cache: Path, *overrides: str) -> Config:
    """Of a run of seconds, with this cache."""
    return config("scale=smoke", "logger=none", f"runtime.cache={cache}", *overrides)


def prepared(cfg: Config) -> Data:
    """Its data set."""
    return build_data(cfg.data, cfg.seed, cfg.runtime.cache)


def model_of(cfg: Config, inputs: int, outputs: int, tokens: int) -> Transformer:
    """Its model, of these sizes (see `Transformer`)."""
    sizes = {"inputs": inputs, "outputs": outputs, "tokens": tokens}
    return build_model(cfg.arch, cfg.model, cfg.seed, **sizes)


@pytest.fixture(autouse=True)
def same_start():
    """Each test, whatever ran before it in this process."""
    torch.set_num_threads(2)
    torch.manual_seed(0)


@pytest.fixture(scope="session", autouse=True)
def process():
    """Each test process, before its first test."""
    gc.freeze()  # what was imported: a run collects garbage as fast as outside of tests


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    """Prepared data, shared by all tests of a session."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def command(tmp_path, cache) -> Callable:
    """The words and the environment of a program that starts in an empty folder."""

    def words_and_env(script: str, overrides: tuple[str, ...], env: dict[str, str]) -> tuple:
        fixed = [f"runtime.cache={cache}"] if script == "train.py" else []
        if fixed and not any(o.startswith("logger=") for o in overrides):
            fixed.append("logger=none")
        kept = {
            k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "ATTNLAB", "HF_"))
        }
        kept["ATTNLAB_KERNELS"] = str(cache_folder())
        return [*overrides, *fixed], {**kept, "HOME": str(tmp_path), **env}

    return words_and_env


@pytest.fixture
def start(tmp_path, command, tmp_path_factory):
    """Start train.py in an empty folder, as one process or as several by torchrun; returns what
    subprocess.Popen does. What needs another python environment is started from nothing.
    """

    all_started: list[Program | subprocess.Popen] = []

    def started(
        *overrides: str, script: str = "train.py", processes: int = 1, **env: str
    ) -> Program | subprocess.Popen:
        words, whole_env = command(script, overrides, env)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        words = [*(torchrun if processes > 1 else []), str(ROOT / script), *words]
        if "HALTS" in env or not env.keys() & READ_AT_START:
            process = Program(words, tmp_path, whole_env, tmp_path_factory.mktemp("written"))
        else:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=tmp_path,
                env=whole_env,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                preexec_fn=default_signals,
            )
        all_started.append(process)
        return process

    yield started
    for process in all_started:  # those of a test that failed: one that is halted never ends
        if process.poll() is None:
            for pid in (*children(process.pid), process.pid):
                os.kill(pid, signal.SIGKILL)
            process.wait()


@pytest.fixture
def train(start):
    """Run train.py to its end; returns (exit code, stdout, stderr)."""

    def run(*overrides: str, **options) -> tuple[int, str, str]:
        process = start(*overrides, **options)
        try:
            out, err = process.communicate(timeout=900)
        finally:
            process.kill()
        return process.returncode, out, err

    return run


class Halts:
    """Moments at which a process halts itself: `env` goes into its environment.

    Each is (occasion, count): the process stops just before it does so for the count-th time since
    the moment before. "open a metrics.jsonl" is a row, "open w .step_*" a save. A third value
    names an error (ENOSPC) that it gets from there on, each time, instead of halting; or it is
    "wait": only this thread stands still. If it is the main one it handles a signal there and
    then, while any thread of a halted process may take it later.
    """

    def __init__(self, folder: Path, *moments: tuple):
        self.folder = Path(tempfile.mkdtemp(prefix="halts-", dir=folder))
        self.last = len(moments) - 1
        self.waits = [moment[2:] == ("wait",) for moment in moments]
        paths = [str(Path(__file__).parent / "halting"), os.environ.get("PYTHONPATH")]
        self.env = {
            "HALTS": json.dumps([(*moment, "halt")[:3] for moment in moments]),
            "HALTS_FOLDER": str(self.folder),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }

    def wait(self, process: subprocess.Popen, number: int = 0) -> int:
        """Until it stands still at one of its moments, or one of those that it has started does;
        the id of the one that halted.
        """
        marker = self.folder / str(self.last - number)
        until(process, lambda: marker.is_file() and marker.read_text())
        pid = int(marker.read_text())
        if not self.waits[number]:
            until(process, lambda: state(pid) == "T")
        return pid

    def go_on(self, process: subprocess.Popen, number: int = 0) -> int:
        """Wait for the moment, and let the process that halted go on; its id."""
        pid = self.wait(process, number)
        if self.waits[number]:
            (self.folder / f"{self.last - number}.go").touch()
        else:
            os.kill(pid, signal.SIGCONT)
        return pid


def until(process: Program | subprocess.Popen, condition: Callable[[], object]) -> None:
    """Wait for what a running process is to bring about."""
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)


def state(pid: int) -> str:
    """Of a process, as the kernel has it: R runs, S sleeps, T is halted, Z has ended."""
    return _stat(pid)[0]


def gone(pid: int) -> bool:
    """Whether a process has ended."""
    try:
        return state(pid) == "Z"
    except FileNotFoundError:
        return True


def parent(pid: int) -> int:
    """The process that started a process."""
    return int(_stat(pid)[1])


def _stat(pid: int) -> list[str]:
    """proc(5)'s fields from the third one on."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()


def handles(pid: int, signum: int) -> bool:
    """Whether a process has a handler of its own for a signal."""
    with open(f"/proc/{pid}/status") as file:
        caught = next(line for line in file if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (signum - 1) & 1)


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def rows_written(folder: Path) -> int:
    """Whole lines of a run's metrics.jsonl."""
    file = folder / "metrics.jsonl"
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def children(pid: int) -> list[int]:
    """The processes that a process has started, by any of its threads, and that still run."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    found = sorted(int(child) for file in listed for child in file.read_text().split())
    return [child for child in found if _comm(child) not in ("", ZYGOTE)]


def _comm(pid: int) -> str:
    """What the kernel calls a process; empty if it has just ended."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def newest(folder: Path) -> Path:
    """A run's newest checkpoint."""
    return max((folder / "checkpoints").glob("step_*.pt"))


def same_run(one: Path, other: Path) -> bool:
    """Whether two runs' metrics.jsonl, last weights and best weights are equal bit for bit."""
    ledgers = [folder / "metrics.jsonl" for folder in (one, other)]
    checkpoints = [[newest(f), f / "checkpoints" / "best.pt"] for f in (one, other)]
    return ledgers[0].read_bytes() == ledgers[1].read_bytes() and all(
        same_state(checkpoint.load(a), checkpoint.load(b))
        for a, b in zip(*checkpoints, strict=True)
    )


def same_state(one, other) -> bool:
    """Equal to the last bit, through all nested containers."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other


@pytest.fixture(scope="session")
def text_rows(tmp_path_factory) -> Path:
    """A data set in the row form of the hub's wikitext: three splits, one column."""
    folder = tmp_path_factory.mktemp("wikitext")
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(50)] + ["<unk>"]

    def rows(n: int) -> list[str]:
        text = [" " + " ".join(rng.choice(words, 12)) + " \n" for _ in range(n)]
        return ["", *text[:20], "", "", *text[20:], ""]

    write_rows(
        folder,
        "wikitext-2-v1",
        {split: {"text": rows(n)} for split, n in SIZES["text"].items()},
    )
    return folder


@pytest.fixture(scope="session")
def image_rows(tmp_path_factory) -> Path:
    """A data set in the row form of the hub's cifar10: PNG images and labels."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("cifar10")
    rng = np.random.default_rng(0)

    def png() -> dict:
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    splits = {
        split: {"img": [png() for _ in range(n)], "label": [i % 10 for i in range(n)]}
        for split, n in SIZES["image"].items()
    }
    write_rows(folder, "plain_text", splits)
    return folder


SIZES = {
    "text": {"train": 400, "validation": 60, "test": 60},
    "blank": 4,  # lines of each split of text
    "image": {"train": 120, "test": 40},
}


def write_rows(folder: Path, config_name: str, splits: dict[str, dict]) -> None:
    """Parquet files and the README that names them, as on the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / config_name).mkdir(parents=True)
    listed = []
    for split, columns in splits.items():
        table = pa.table(columns)
        pq.write_table(table, folder / config_name / f"{split}-00000-of-00001.parquet")
        listed.append(f"  - {{split: {split}, path: {config_name}/{split}-*}}")
    head = ["---", "configs:", f"- config_name: {config_name}", "  data_files:", *listed, "---"]
    (folder / "README.md").write_text("\n".join(head) + "\n")
