"""The whole program on one page: data, model, training, test, result."""

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from attnlab import parallel
from attnlab.config import Config
from attnlab.data.loader import Data, build_data
from attnlab.data.text import TextData
from attnlab.device import choose_device, chosen_because
from attnlab.errors import BadInput, FolderInUse, Interrupted
from attnlab.folder import PROGRESS, LogFile, RunFolder, environment
from attnlab.models.transformer import Transformer, build_model, parameter_counts, try_mechanism
from attnlab.tracking import Tracker
from attnlab.training import checkpoint
from attnlab.training.evaluate import evaluate
from attnlab.training.faults import explain
from attnlab.training.flops import arithmetic
from attnlab.training.trainer import fit, precision, total_steps

log = logging.getLogger(__name__)


def run(cfg: Config, path: Path) -> dict[str, Any]:
    """Train and test one configuration in its folder; the last line on stdout is `run: <folder>`.

    A finished run is not repeated, an unfinished one continues. Returns what result.json holds.
    Errors: those of `errors`; `failed.txt` in the folder says why if training had begun.
    """
    try:
        device = choose_device(cfg)
        with parallel.joined(device):
            result, before = _run(parallel.quiet(cfg), path, device)
            speaks = parallel.rank() == 0
    except BadInput:
        RunFolder(path, cfg).discard_if_empty()
        raise
    if speaks:
        if before:
            print("already finished:")
        for key, value in result.items():
            print(f"  {key}: {value:.6g}" if isinstance(value, float) else f"  {key}: {value}")
        print(f"run: {path}")
    return result


def _run(cfg: Config, path: Path, device: torch.device) -> tuple[dict[str, Any], bool]:
    """The result, and whether it was there before."""
    folder = RunFolder(path, cfg, writes=parallel.rank() == 0)
    folder.check()
    result = parallel.of_first(folder.result)
    if result is not None and not folder.moved:
        return result, True
    parallel.check(cfg.trainer)
    with parallel.first_alone():
        data = build_data(cfg)
    if result is not None:
        same_data(result["data_fingerprint"], data, path)
        return result, True
    total_steps(cfg, len(data.train()))  # an impossible budget is refused here
    try_mechanism(cfg, device)  # and a backend that cannot serve
    with folder:
        # another process may have had it until now, and finished the run
        if (result := parallel.of_first(folder.result)) is not None:
            return result, True
        with LogFile(folder):
            return train_and_test(cfg, data, device, folder), False


def train_and_test(cfg: Config, data: Data, device: torch.device, folder: RunFolder) -> dict:
    """Fit, then measure the best checkpoint on the test split, once; what result.json holds."""
    with parallel.first_alone():
        state = checkpoint.load_newest(folder.checkpoints)
    if state:  # before anything in the folder is touched
        same_data(state["data"], data, folder.path)
        same_processes(state, folder.path)
        same_best(state, folder)
        folder.write_config()
    if folder.writes:
        (folder.path / "failed.txt").unlink(missing_ok=True)
    env = with_history(environment(device), folder.path) if state else environment(device)
    threads = f", {env['threads']} threads" * (device.type == "cpu")
    reason = chosen_because(cfg, device)
    log.info("device: %s (%s%s), as %s", device, env["device_name"], threads, reason)
    log.info("precision: %s", cfg.trainer.precision)
    tracker = Tracker(cfg, folder.path, env)
    log.info("W&B: %s", tracker.place)
    result: dict[str, Any] = {"status": "failed", **identity(cfg)}
    try:
        folder.write_json("env.json", env)
        if isinstance(data, TextData):
            folder.write("tokenizer.json", data.tokenizer_file.read_bytes())
        model = build(cfg, data).to(device)
        summary = fit(cfg, data, model, folder, tracker, state)
        parallel.wait()  # for best.pt
        began = time.perf_counter()
        tested = test(cfg, data, model, folder.path)
        row = {"step": summary["steps"], **tested}
        metrics = folder.ledger("metrics.jsonl")
        # a kill after this row, before result.json, leaves it there; NaN equals itself as text
        if json.dumps(metrics.rows()[-1]) != json.dumps(row):
            metrics.append(row, sync=True)
        tracker.log(row)
        summary["wall_s"] = round(summary["wall_s"] + time.perf_counter() - began, 1)
        finished = result | {
            "status": "finished",
            "data_fingerprint": data.fingerprint,
            "test_samples": len(data.evaluation("test")),
            **parameter_counts(model),
            **tested,
            **summary,
            **arithmetic(cfg, data, summary["step_ms_median"], env["device_name"]),
        }
        folder.write_json("result.json", finished)
        return finished
    except (Interrupted, KeyboardInterrupt) as stopped:
        result["status"] = "interrupted"
        PROGRESS.info("%s", str(stopped) or "interrupted")
        raise
    except Exception as error:
        explained = explain(error, cfg, device, folder)
        PROGRESS.info("%s: %s", type(explained).__name__, explained)
        with contextlib.suppress(OSError, FolderInUse):  # the disk may be full
            folder.write("failed.txt", f"{type(explained).__name__}: {explained}\n")
        if explained is error:
            raise
        raise explained from error
    finally:
        # a run is finished when its result.json says so, whatever comes after
        if folder.result is None:
            with contextlib.suppress(OSError, FolderInUse):
                folder.write_json("result.json", result)
        tracker.finish(folder.result or result)


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


def same_data(then: str, data: Data, path: Path) -> None:
    """Errors: `BadInput` if a run was trained on data of another fingerprint than there is now."""
    if then != data.fingerprint:
        raise BadInput(
            f"run folder {path}: was trained on data with fingerprint {then}, which is now "
            f"{data.fingerprint}; restore the data, or start in another folder (hydra.run.dir=)"
        )


def same_processes(state: dict[str, Any], path: Path) -> None:
    """Errors: `BadInput` if a checkpoint was made by another number of processes: sums would be
    rounded differently from there on.
    """
    then, now = state.get("processes", 1), parallel.size()
    if then != now:
        start = f"torchrun --nproc-per-node={then} train.py" if then > 1 else "python train.py"
        raise BadInput(
            f"run folder {path}: was trained by {then} process(es), now there are {now}; "
            f"continue with {start}, or start in another folder"
        )


def same_best(state: dict[str, Any], folder: RunFolder) -> None:
    """Errors: `BadInput` if the best checkpoint so far is lost: before training goes on."""
    if state.get("best"):
        try:
            checkpoint.load_best(folder.checkpoints)
        except BadInput as error:
            raise BadInput(f"{error}; move the run folder away to start from step 0") from None


def with_history(env: dict[str, Any], path: Path) -> dict[str, Any]:
    """The environment, and under `before` those of earlier starts in other ones. Says what is not
    as when the run began and may round sums differently.
    """
    try:
        then = json.loads((path / "env.json").read_text())
    except (OSError, ValueError):
        return env
    before = then.pop("before", [])
    if any(then.get(key) != env[key] for key in env if key != "command"):
        before = [*before, then]
    if not before:
        return env
    for key in ("torch", "device_name", "threads"):
        if before[0].get(key) != env[key]:
            log.warning(
                "%s: began with %s %s, goes on with %s: no longer the same to the last bit",
                *(path, key, before[0].get(key), env[key]),
            )
    return {**env, "before": before}


def build(cfg: Config, data: Data) -> Transformer:
    """The configured model for this data set, on the CPU."""
    return build_model(cfg, **data.shape(cfg.arch))


def test(cfg: Config, data: Data, model: torch.nn.Module, path: Path) -> dict[str, float]:
    """Test metrics of the run's best checkpoint, and what a trivial predictor reaches."""
    device = next(model.parameters()).device
    best = checkpoint.load_best(path / "checkpoints")
    same_data(best["data"], data, path)
    checkpoint.fill(model, best, path)
    batch = parallel.micro_batch(cfg.trainer)
    metrics = evaluate(model, data, "test", batch, precision(cfg, device))
    return metrics | {f"test/{key}": value for key, value in data.baselines("test").items()}
