"""The whole program on one page: data, model, training, test, result."""

import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch

from attnlab.config import Config
from attnlab.data.loader import build_data
from attnlab.data.text import TextData
from attnlab.device import choose_device
from attnlab.errors import Interrupted
from attnlab.folder import RunFolder, environment
from attnlab.models.transformer import Transformer, build_model, parameter_counts
from attnlab.tracking import Tracker
from attnlab.training import checkpoint
from attnlab.training.evaluate import evaluate
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
    if result is None:
        device = choose_device(cfg)
        data = build_data(cfg)
        total_steps(
            cfg, len(data.train())
        )  # a budget that cannot be is refused before a folder is made
        with folder:
            (path / "failed.txt").unlink(missing_ok=True)
            try:
                result = train_and_test(cfg, data, device, folder)
            except Interrupted:
                folder.write_json("result.json", {"status": "interrupted", **identity(cfg)})
                raise
            except Exception as error:
                (path / "failed.txt").write_text(f"{type(error).__name__}: {error}\n")
                folder.write_json("result.json", {"status": "failed", **identity(cfg)})
                raise
    else:
        print("already finished:")
    for key, value in result.items():
        print(f"  {key}: {value:.6g}" if isinstance(value, float) else f"  {key}: {value}")
    print(f"run: {path}")
    return result


def train_and_test(cfg: Config, data, device: torch.device, folder: RunFolder) -> dict[str, Any]:
    """Fit, then measure the best checkpoint on the test split, once."""
    began = time.perf_counter()
    env = environment(device)
    folder.write_json("env.json", env)
    if isinstance(data, TextData):
        shutil.copyfile(data.tokenizer_file, folder.path / "tokenizer.json")
    model = build(cfg, data).to(device)
    tracker = Tracker(cfg, folder.path, env)
    result: dict[str, Any] | None = None
    try:
        summary = fit(cfg, data, model, folder, tracker)
        tested = test(cfg, data, model, folder.path)
        tracker.log({"step": summary["steps"], **tested})
        result = {
            "status": "finished",
            **identity(cfg),
            "data_fingerprint": data.fingerprint,
            **parameter_counts(model),
            **tested,
            **summary,
            "wall_s": round(time.perf_counter() - began, 1),
        }
        folder.write_json("result.json", result)
    finally:
        tracker.finish(result)
    return result


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


def build(cfg: Config, data) -> Transformer:
    """The configured model for this data set, on the CPU."""
    if isinstance(data, TextData):
        return build_model(cfg, inputs=data.vocab, outputs=data.vocab, tokens=data.block)
    patch = cfg.arch.patch_size
    tokens = 1 + (cfg.data.image_size // patch) ** 2
    return build_model(cfg, inputs=3 * patch**2, outputs=data.classes, tokens=tokens)


def test(cfg: Config, data, model: torch.nn.Module, path: Path) -> dict[str, float]:
    """Test metrics of the run's best checkpoint; for text, the unigram perplexity of the same
    tokens.
    """
    device = next(model.parameters()).device
    model.load_state_dict(checkpoint.load_best(path / "checkpoints")["model"])
    metrics = evaluate(model, data, "test", cfg.trainer.micro, precision(cfg, device))
    if isinstance(data, TextData):
        metrics["test/unigram_perplexity"] = math.exp(data.unigram_loss("test"))
    return metrics
