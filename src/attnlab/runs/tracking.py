"""Trackers, Weights & Biases and TensorBoard, as mirrors of metrics.jsonl and timing.jsonl;
training goes on without them.

The two files are the record. Whoever continues a run replays them, so that a mirror gets what a
crash, a lost network or a start without a server kept from it: W&B online, the rows that the
server lacks; offline and TensorBoard, all of them, as what they have written cannot be resumed.
"""

import contextlib
import importlib.util
import logging
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attnlab.config.schema import Config, Logger
from attnlab.errors import BadInput, first_line
from attnlab.runs.files import write_atomic
from attnlab.runs.tensorboard import TensorBoard
from attnlab.runtime.network import reachable

log = logging.getLogger(__name__)

Row = dict[str, Any]

# What W&B's own environment variables say where the user's do not.
ENVIRONMENT = {
    "WANDB_SILENT": "true",
    "WANDB_CONSOLE": "off",
    "WANDB__DISABLE_STATS": "true",
    "WANDB_ERROR_REPORTING": "false",  # would hold up the end of a process without a network
    "WANDB_INIT_TIMEOUT": "10",
    "WANDB_FINISH_TIMEOUT": "30",
    "WANDB_FINISH_TIMEOUT_RAISES": "true",
}

# How a mirror gets what it lacks.
REMEDY = {
    "W&B": "attnlab upload sends what is missing",
    "TensorBoard": "an unfinished run writes all rows again when it continues",
}

NO_KEY = "no API key is configured"


def check_trackers(logger: Logger) -> None:
    """Errors: `BadInput` if a tracker is asked for that is not installed."""
    if logger.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise BadInput("logger=tensorboard: pip install 'attnlab[tensorboard]'")


class Tracker:
    """A run's mirrors while it trains: nothing here raises, or waits long for a server.

    W&B, logger.mode auto: online if an API key is configured and the server answers, offline
    otherwise. There is never a login prompt. Offline runs lie in <folder>/wandb and go up with
    `wandb sync` or `attnlab upload`.
    """

    def __init__(self, cfg: Config, folder: Path, environment: dict[str, Any]):
        wanted = {
            "W&B": start if cfg.logger.mode != "disabled" else None,
            "TensorBoard": TensorBoard if cfg.logger.tensorboard else None,
        }
        self._mirrors: dict[str, Mirror | TensorBoard] = {}
        for name, begin in wanted.items():
            with self._harmless(name, "is off for this run"):
                if begin is not None:
                    self._mirrors[name] = begin(cfg, folder, environment)

    @property
    def places(self) -> dict[str, str]:
        """Tracker -> where its mirror is; "off" for W&B where there is no mirror at all."""
        return {name: m.place for name, m in self._mirrors.items()} or {"W&B": "off"}

    def replay(self, rows: Iterable[Row]) -> None:
        """Mirror what is in metrics.jsonl and timing.jsonl already."""
        for row in by_step(rows):
            self.log(row)

    def log(self, row: Row) -> None:
        """Mirror one row of metrics.jsonl or timing.jsonl."""
        for name, mirror in list(self._mirrors.items()):
            with self._harmless(name, f"is off from step {row['step']}"):
                mirror.log(row)

    def finish(self, result: dict[str, Any]) -> None:
        """Close the mirrors, with result.json."""
        for name, mirror in list(self._mirrors.items()):
            with self._harmless(name, "did not get all rows"):
                mirror.finish(result)

    @contextlib.contextmanager
    def _harmless(self, name: str, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a tracker raises must not stop a run
            log.warning("%s %s: %s; %s", name, consequence, first_line(error), REMEDY[name])
            self._mirrors.pop(name, None)


class Mirror:
    """The one W&B run of a run folder: same metric names, the configuration and the git state.

    Raises whatever W&B raises.
    """

    def __init__(self, cfg: Config, folder: Path, environment: dict[str, Any], mode: str):
        self.folder = folder
        folder = folder.absolute()  # a W&B service that other runs share has its own folder
        id_file = folder / "wandb_id.txt"
        if not id_file.is_file():
            write_atomic(id_file, secrets.token_hex(8))
        name = id_file.read_text()
        self.run = _wandb().init(
            project=cfg.logger.project,
            id=name,
            name=f"{cfg.data.name}-{cfg.model.name}-seed{cfg.seed}",
            group=f"{cfg.data.name}-{cfg.scale}-{cfg.protocol}",
            dir=folder,
            mode=mode,
            resume="allow" if mode == "online" else None,
            config={**cfg.model_dump(), "environment": environment},
        )
        self._step = None
        for older in (folder / "wandb").glob(f"offline-run-*-{name}"):
            if older != Path(self.run.dir).parent:  # of rows that this run gets all
                shutil.rmtree(older, ignore_errors=True)

    @property
    def place(self) -> str:
        """Where the W&B run is."""
        if self.run.offline:
            return f"offline, in {self.folder / 'wandb' / Path(self.run.dir).parent.name}"
        return f"online, {self.run.url}"

    def log(self, row: Row) -> bool:
        """Send a row; False if the server has one of its step from an earlier process."""
        self._step = row["step"]
        if self._step < self.run.starting_step:
            return False
        values = {key: value for key, value in row.items() if key != "step"}
        self.run.log(values, step=self._step)  # W&B joins rows of one step
        return True

    def finish(self, result: dict[str, Any]) -> None:
        """Close the run, with result.json as its summary, in bounded time."""
        if self._step is not None:  # the last row out first: its wall_s is not the result's
            self.run.log({}, step=self._step, commit=True)
        if samples := result.get("samples"):  # of translations
            rows = [list(sample.values()) for sample in samples]
            self.run.log({"samples": _wandb().Table(columns=list(samples[0]), data=rows)})
        self.run.summary.update({k: v for k, v in result.items() if k != "samples"})
        self.run.finish(exit_code=0 if result["status"] == "finished" else 1)


def start(cfg: Config, folder: Path, environment: dict[str, Any]) -> Mirror:
    """The folder's W&B run as logger.mode wants it; offline if that fails."""
    mode = cfg.logger.mode
    if mode != "offline":
        why = obstacle()
        if why is None:
            try:
                return Mirror(cfg, folder, environment, "online")
            except Exception as error:
                why = first_line(error)
                _wandb().teardown()  # it would keep the run's id to itself
        if mode == "online" or why != NO_KEY:
            log.warning("W&B runs offline: %s", why)
    return Mirror(cfg, folder, environment, "offline")


def obstacle() -> str | None:
    """What keeps W&B from being online, as far as a short look tells."""
    wandb = _wandb()
    try:
        if not wandb.login(prompt=False, verify=False):
            return NO_KEY
    except Exception as error:  # a key in a wrong form
        return first_line(error)
    server = wandb.setup().settings.base_url
    return None if reachable(server, timeout=2.0) else f"{server} does not answer"


def by_step(rows: Iterable[Row]) -> list[Row]:
    """One row for each step, in order: W&B drops what comes after a later step."""
    steps: dict[int, Row] = {}
    for row in rows:
        steps.setdefault(row["step"], {}).update(row)
    return [steps[step] for step in sorted(steps)]


def _wandb():
    """The library, imported where it is used: it takes a second."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import wandb

    return wandb
