"""Weights & Biases as a mirror of metrics.jsonl and timing.jsonl; training goes on without it.

The two files are the record. Whoever continues a run replays them, so that the mirror gets what a
crash, a lost network or a start without a server kept from it: online, the rows that the server
lacks; offline, all of them, as W&B cannot resume an offline run.
"""

import contextlib
import json
import logging
import os
import secrets
import shutil
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from attnlab.config.schema import Config
from attnlab.runs.files import write_atomic
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

NO_KEY = "no API key is configured"


class Tracker:
    """A run's mirror while it trains: nothing here raises, or waits long for a server.

    mode auto: online if an API key is configured and the server answers, offline otherwise.
    There is never a login prompt. Offline runs lie in <folder>/wandb and go up with `wandb sync`
    or scripts/upload.py.
    """

    def __init__(self, cfg: Config, folder: Path, environment: dict[str, Any]):
        self._mirror = None
        if cfg.logger.mode != "disabled":
            with self._harmless("W&B is off for this run"):
                self._mirror = start(cfg, folder, environment)

    @property
    def place(self) -> str:
        """Where the mirror is."""
        if not self._mirror:
            return "off"
        run = self._mirror.run
        return f"offline, in {Path(run.dir).parent}" if run.offline else f"online, {run.url}"

    def replay(self, rows: Iterable[Row]) -> None:
        """Mirror what is in metrics.jsonl and timing.jsonl already."""
        for row in by_step(rows):
            self.log(row)

    def log(self, row: Row) -> None:
        """Mirror one row of metrics.jsonl or timing.jsonl."""
        if self._mirror:
            with self._harmless(f"W&B is off from step {row['step']}"):
                self._mirror.log(row)

    def finish(self, result: dict[str, Any]) -> None:
        """Close the W&B run, with result.json as its summary."""
        if self._mirror:
            with self._harmless("W&B did not get all rows"):
                self._mirror.finish(result)

    @contextlib.contextmanager
    def _harmless(self, consequence: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever W&B raises must not stop a run
            reason = first_line(error)
            log.warning("%s: %s; scripts/upload.py sends what is missing", consequence, reason)
            self._mirror = None


class Mirror:
    """The one W&B run of a run folder: same metric names, the configuration and the git state.

    Raises whatever W&B raises.
    """

    def __init__(self, cfg: Config, folder: Path, environment: dict[str, Any], mode: str):
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
        self.run.summary.update(result)
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


def offline_rows(folder: Path) -> list[Row]:
    """History rows of a run folder's one offline W&B run, whose file is a LevelDB log of protobuf
    records; wandb has no public reader. Errors: ValueError if there is not exactly one.
    """
    from wandb.proto import wandb_internal_pb2

    (file,) = folder.glob(f"wandb/offline-run-*/run-{(folder / 'wandb_id.txt').read_text()}.wandb")
    data, at, parts, rows = file.read_bytes(), 7, b"", []  # 7: the file's own header
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:  # a block's tail too short for a header is padding
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record.FromString(parts)
            parts = b""
            if record.HasField("history"):
                items = record.history.item
                rows.append(
                    {".".join(i.nested_key) or i.key: json.loads(i.value_json) for i in items}
                )
    return rows


def first_line(error: Exception) -> str:
    """Of W&B's long messages."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _wandb():
    """The library, imported where it is used: it takes a second."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    import wandb

    return wandb
