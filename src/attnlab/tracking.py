"""Weights & Biases as a mirror of metrics.jsonl and timing.jsonl; training goes on without it."""

import logging
import netrc
import os
import secrets
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from attnlab.config import Config
from attnlab.net import reachable

log = logging.getLogger(__name__)


class Tracker:
    """One W&B run for one run folder: the same metric names, the configuration and the git state.

    mode auto: online if an API key is configured and the server answers, offline otherwise.
    There is never a login prompt. Offline runs lie in <folder>/wandb and go up with `wandb
    sync`.
    """

    def __init__(self, cfg: Config, folder: Path, environment: dict[str, Any]):
        self._run = None
        if cfg.logger.mode == "disabled":
            return
        try:
            self._run = _start(cfg, folder, environment)
        except Exception as error:  # whatever W&B raises must not stop a run
            log.warning("W&B is off for this run: %s", error)

    def log(self, row: dict[str, Any]) -> None:
        """Mirror one row of metrics.jsonl or timing.jsonl."""
        if self._run is None:
            return
        values = {key: value for key, value in row.items() if key != "step"}
        try:
            self._run.log(values, step=row["step"])
        except Exception as error:
            log.warning("W&B is off from step %d: %s", row["step"], error)
            self._run = None

    def finish(self, result: dict[str, Any]) -> None:
        """Close the run, with result.json as its summary."""
        if self._run is None:
            return
        try:
            self._run.summary.update(result)
            self._run.finish(exit_code=0 if result["status"] == "finished" else 1)
        except Exception as error:
            log.warning("W&B did not finish: %s", error)
        self._run = None


def _start(cfg: Config, folder: Path, environment: dict[str, Any]):
    os.environ.setdefault("WANDB_SILENT", "true")
    import wandb

    mode = cfg.logger.mode
    if mode != "offline":
        settings = wandb.Settings()
        key = os.environ.get("WANDB_API_KEY") or _stored_key(settings.base_url)
        online = bool(key) and reachable(settings.base_url)
        if mode == "online" and not online:
            why = "its server does not answer" if key else "no API key is configured"
            log.warning("logger.mode=online: %s; W&B runs offline", why)
        mode = "online" if online else "offline"
    id_file = folder / "wandb_id.txt"
    if not id_file.is_file():
        id_file.write_text(secrets.token_hex(8))
    return wandb.init(
        project=cfg.logger.project,
        id=id_file.read_text(),
        name=f"{cfg.data.name}-{cfg.model.name}-seed{cfg.seed}",
        group=f"{cfg.data.name}-{cfg.scale}-{cfg.protocol}",
        dir=folder,
        mode=mode,
        resume="allow" if mode == "online" else None,
        config={**cfg.model_dump(), "environment": environment},
        settings=wandb.Settings(init_timeout=30, console="off", x_disable_stats=True),
    )


def _stored_key(server: str) -> str | None:
    """The key that `wandb login` stored for this server in the user's netrc file."""
    try:
        found = netrc.netrc(os.environ.get("NETRC")).authenticators(urlsplit(server).hostname)
    except (OSError, netrc.NetrcParseError):
        return None
    return found[2] if found else None
