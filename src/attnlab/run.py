"""The whole program on one page: data, model, training, test, result."""

import contextlib
import json
import logging
import os
import time
from pathlib import Path
from typing import Any

import torch

from attnlab.config.compose import load
from attnlab.config.schema import Config
from attnlab.data.loader import Data, build_data
from attnlab.data.translation import TranslationData
from attnlab.errors import FolderInUse, Interrupted
from attnlab.models.transformer import parameter_counts, try_mechanism
from attnlab.runs.environment import environment, other_source
from attnlab.runs.folder import RunFolder
from attnlab.runs.log import PROGRESS, LogFile
from attnlab.runs.tracking import Tracker, check_trackers
from attnlab.runtime import distributed
from attnlab.runtime.device import choose_device, chosen_because
from attnlab.runtime.signals import ignore_children
from attnlab.training import checkpoint
from attnlab.training.evaluate import evaluate
from attnlab.training.faults import explain
from attnlab.training.flops import arithmetic
from attnlab.training.model import build
from attnlab.training.resume import (
    check_same_data,
    check_same_processes,
    other_masks,
    take_best,
    with_history,
)
from attnlab.training.trainer import fit, total_steps
from attnlab.training.translate import samples, translated
from attnlab.training.update import precision

log = logging.getLogger(__name__)


def run(cfg: Config, path: Path) -> dict[str, Any]:
    """Train and test one configuration in its folder; the last line on stdout is `run: <folder>`.

    A finished run is not repeated, and an unfinished one continues. Returns the content of
    result.json. Errors: those of `errors`; if training had begun, failed.txt gives the reason.
    """
    device = choose_device(cfg.runtime, cfg.trainer.precision)
    with distributed.process_group(device):
        result, before = _run(distributed.quiet_unless_main(cfg), path, device)
        speaks = distributed.rank() == 0
        others = [other_source(path), other_masks(path, cfg)] if before else []
    if speaks:
        if before:
            for said in filter(None, others):
                log.warning("%s", said)
            if load(path).runtime.tuning and not cfg.runtime.tuning:
                log.warning("%s: is a trial of tune=lr, which reports leave out of effects", path)
            print("already finished:")
        for key, value in result.items():
            if isinstance(value, list):
                continue  # sample translations: too long for a line
            print(f"  {key}: {value:.6g}" if isinstance(value, float) else f"  {key}: {value}")
        print(f"run: {path}")
    return result


def _run(cfg: Config, path: Path, device: torch.device) -> tuple[dict[str, Any], bool]:
    """The result, and whether it was there before."""
    folder = RunFolder(path, cfg, writes=distributed.rank() == 0)
    folder.check_usable()
    result = distributed.broadcast_from_main(folder.result)
    if result is not None and not folder.moved:
        return result, True
    check_trackers(cfg.logger)
    distributed.check_micro_batches(cfg.trainer)
    with distributed.main_process_first():
        data = build_data(cfg.data, cfg.seed, cfg.runtime.cache)
    if result is not None:
        check_same_data(result["data_fingerprint"], data, path)
        return result, True
    total_steps(cfg.trainer, len(data.train()))  # an impossible budget is refused here
    try_mechanism(cfg.arch, cfg.model, device)  # and a backend that cannot serve
    with folder:
        # another process may have held the folder until now and finished the run
        if (result := distributed.broadcast_from_main(folder.result)) is not None:
            return result, True
        with LogFile(folder):
            return train_and_test(cfg, data, device, folder), False


def train_and_test(cfg: Config, data: Data, device: torch.device, folder: RunFolder) -> dict:
    """Train, then test the best checkpoint once; returns the content of result.json, which is
    written however it ends.
    """
    state = to_continue(data, folder)
    env = environment(device, cfg.runtime)
    env = with_history(env, folder.path) if state else env
    announce(cfg, device, env["device_name"], env["threads"])
    tracker = Tracker(cfg, folder.path, env)
    for name, place in tracker.places.items():
        log.info("%s: %s", name, place)
    result: dict[str, Any] = {"status": "failed", **identity(cfg)}
    model = None
    try:
        folder.write_json("env.json", env)
        if data.tokenizer_file:
            folder.write("tokenizer.json", data.tokenizer_file.read_bytes())
        model = build(cfg, data)
        model.to(device)
        found = trained_and_tested(cfg, data, model, folder, tracker, state)
        speed = arithmetic(cfg, data, found["step_ms_median"], env["device_name"])
        finished = result | {"status": "finished", **found, **speed}
        folder.write_json("result.json", finished)
        return finished
    except (Interrupted, KeyboardInterrupt) as stopped:
        result["status"] = "interrupted"
        PROGRESS.info("%s", str(stopped) or "interrupted")
        raise
    except Exception as error:
        ignore_children()
        params = parameter_counts(model)["params"] if model else 0
        explained = explain(error, cfg, device, folder, params)
        PROGRESS.info("%s: %s", type(explained).__name__, explained)
        with contextlib.suppress(OSError, FolderInUse):  # the disk may be full
            folder.write("failed.txt", f"{type(explained).__name__}: {explained}\n")
        if explained is error:
            raise
        raise explained from error
    finally:
        # result.json decides whether a run is finished, whatever happens after it
        if folder.result is None:
            with contextlib.suppress(OSError, FolderInUse):
                folder.write_json("result.json", result)
        tracker.finish(folder.result or result)


def to_continue(data: Data, folder: RunFolder) -> dict[str, Any] | None:
    """The newest checkpoint, if there is one. Errors: `BadInput`, before anything in the folder is
    touched, if it was made with other data or by another number of processes.
    """
    with distributed.main_process_first():
        state = checkpoint.load_newest(folder.checkpoints)
    if state:
        check_same_data(state["data"], data, folder.path)
        check_same_processes(state, folder.path)
        take_best(state, folder)
    folder.write_config()
    if folder.writes:
        (folder.path / "failed.txt").unlink(missing_ok=True)
    return state


def announce(cfg: Config, device: torch.device, name: str, threads: int) -> None:
    """Log where and how precisely the run computes."""
    computes = f"{name}, {threads} threads" if device.type == "cpu" else name
    load, cores = os.getloadavg()[0], os.cpu_count()
    if device.type == "cpu" and threads > 1 and load > cores:  # its threads wait for each other
        computes += f"; busy with other work: load {load:.1f} on {cores} cores, where "
        computes += "runtime.threads=1 can be many times faster"
    log.info("device: %s (%s); %s", device, computes, chosen_because(cfg.runtime, device))
    log.info("precision: %s", cfg.trainer.precision)


def trained_and_tested(
    cfg: Config,
    data: Data,
    model: torch.nn.Module,
    folder: RunFolder,
    tracker: Tracker,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    """What result.json says of a finished run."""
    summary = fit(cfg, data, model, folder, tracker, state)
    distributed.barrier()  # for best.pt
    began = time.perf_counter()
    tested, texts = test(cfg, data, model, folder.path)
    for name, text in texts.items():
        folder.write(name, text)
    row = {"step": summary["steps"], **tested}
    metrics = folder.ledger("metrics.jsonl")
    # a kill between this row and result.json leaves the row; as text, NaN equals itself
    if json.dumps(metrics.rows()[-1]) != json.dumps(row):
        metrics.append(row, sync=True)
    tracker.log(row)
    summary["wall_s"] = round(summary["wall_s"] + time.perf_counter() - began, 1)
    found = {
        "data_fingerprint": data.fingerprint,
        "test_samples": len(data.evaluation("test")),
        **parameter_counts(model),
        **tested,
        **summary,
    }
    if texts:
        found["samples"] = samples(texts)
        found["test_samples"] = texts["test.source.txt"].count("\n")  # not groups of them
    return found


def identity(cfg: Config) -> dict[str, Any]:
    """The keys that identify the run of a result."""
    return {
        "model": cfg.model.name,
        "data": cfg.data.name,
        "seed": cfg.seed,
        "scale": cfg.scale,
        "protocol": cfg.protocol,
        "hash": cfg.hash,
    }


def test(
    cfg: Config, data: Data, model: torch.nn.Module, path: Path
) -> tuple[dict[str, float | str], dict[str, str]]:
    """Test metrics of the run's best checkpoint, with those of a trivial predictor; and the files
    of a translation (see `translated`), by name.
    """
    device = next(model.parameters()).device
    best = checkpoint.load_best(path / "checkpoints")
    check_same_data(best["data"], data, path)
    checkpoint.load_weights(model, best, path)
    # as many at a time as in training: one process may have less memory than all of them
    batch = distributed.micro_batch(cfg.trainer, best.get("processes"))
    autocast = precision(cfg.trainer, device)
    metrics: dict[str, float | str] = {**evaluate(model, data, "test", batch, autocast)}
    metrics |= {f"test/{key}": value for key, value in data.baselines("test").items()}
    if not isinstance(data, TranslationData):
        return metrics, {}
    measured, files = translated(model, data, autocast)
    return metrics | measured, files
