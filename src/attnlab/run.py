"""The whole program on one page: data, model, training, test, result."""

import contextlib
import logging
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from attnlab.config import Config
from attnlab.data.loader import Data, build_data
from attnlab.data.text import TextData
from attnlab.device import choose_device
from attnlab.errors import BadInput, Interrupted
from attnlab.folder import Ledger, RunFolder, environment
from attnlab.models.transformer import Transformer, build_model, parameter_counts, try_mechanism
from attnlab.tracking import Tracker
from attnlab.training import checkpoint
from attnlab.training.evaluate import evaluate
from attnlab.training.faults import explain
from attnlab.training.trainer import fit, precision, total_steps

log = logging.getLogger(__name__)


def run(cfg: Config, path: Path) -> dict[str, Any]:
    """Train and test one configuration in its folder; the last line on stdout is `run: <folder>`.

    A finished run is not repeated, an unfinished one continues. Returns what result.json holds.
    Errors: those of `errors`; `failed.txt` in the folder then says why.
    """
    folder = RunFolder(path, cfg)
    folder.check()
    result = folder.result
    if result is not None:
        print("already finished:")
    else:
        try:
            device, data = choose_device(cfg), build_data(cfg)
            total_steps(cfg, len(data.train()))  # an impossible budget is refused here
            try_mechanism(cfg, device)  # and a backend that cannot serve
            with folder:
                result = train_and_test(cfg, data, device, folder)
        except BadInput:
            folder.discard_if_empty()
            raise
    for key, value in result.items():
        print(f"  {key}: {value:.6g}" if isinstance(value, float) else f"  {key}: {value}")
    print(f"run: {path}")
    return result


def train_and_test(cfg: Config, data: Data, device: torch.device, folder: RunFolder) -> dict:
    """Fit, then measure the best checkpoint on the test split, once; what result.json holds."""
    state = checkpoint.load_newest(folder.checkpoints)
    if state:
        same_data(state, data, folder.path)  # before anything in the folder is touched
    env = environment(device)
    folder.write_json("env.json", env)
    if isinstance(data, TextData):
        shutil.copyfile(data.tokenizer_file, folder.path / "tokenizer.json")
    failed = folder.path / "failed.txt"
    failed.unlink(missing_ok=True)
    tracker = Tracker(cfg, folder.path, env)
    result: dict[str, Any] = {"status": "failed", **identity(cfg)}
    try:
        model = build(cfg, data).to(device)
        summary = fit(cfg, data, model, folder, tracker, state)
        began = time.perf_counter()
        tested = test(cfg, data, model, folder.path)
        row = {"step": summary["steps"], **tested}
        metrics = Ledger(folder.path / "metrics.jsonl")
        if metrics.rows()[-1] != row:  # a kill after this row, before result.json, leaves it there
            metrics.append(row, sync=True)
        tracker.log(row)
        summary["wall_s"] = round(summary["wall_s"] + time.perf_counter() - began, 1)
        result |= {
            "status": "finished",
            "data_fingerprint": data.fingerprint,
            **parameter_counts(model),
            **tested,
            **summary,
        }
        folder.write_json("result.json", result)
        return result
    except Interrupted:
        result["status"] = "interrupted"
        raise
    except Exception as error:
        result["status"] = "failed"
        explained = explain(error, cfg, device, folder)
        with contextlib.suppress(OSError):  # the disk may be full
            failed.write_text(f"{type(explained).__name__}: {explained}\n")
        if explained is error:
            raise
        raise explained from error
    finally:
        if result["status"] != "finished":
            with contextlib.suppress(OSError):
                folder.write_json("result.json", result)
        tracker.finish(result)


def identity(cfg: Config) -> dict[str, Any]:
    """What says which run a result belongs to."""
    return {
        "model": cfg.model.name,
        "data": cfg.data.name,
        "seed": cfg.seed,
        "scale": cfg.scale,
        "protocol": cfg.protocol,
        "hash": cfg.hash,
    }


def same_data(state: dict[str, Any], data: Data, path: Path) -> None:
    """Errors: `BadInput` if a checkpoint was made with other data than there is now."""
    if state["data"] != data.fingerprint:
        raise BadInput(
            f"run folder {path}: was trained on data with fingerprint {state['data']}, which is "
            f"now {data.fingerprint}; restore the data, or start in another folder"
        )


def build(cfg: Config, data: Data) -> Transformer:
    """The configured model for this data set, on the CPU."""
    return build_model(cfg, **data.shape(cfg.arch))


def test(cfg: Config, data: Data, model: torch.nn.Module, path: Path) -> dict[str, float]:
    """Test metrics of the run's best checkpoint, and what a trivial predictor reaches."""
    device = next(model.parameters()).device
    best = checkpoint.load_best(path / "checkpoints")
    same_data(best, data, path)
    model.load_state_dict(best["model"])
    metrics = evaluate(model, data, "test", cfg.trainer.micro, precision(cfg, device))
    return metrics | {f"test/{key}": value for key, value in data.baselines("test").items()}
