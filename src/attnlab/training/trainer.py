"""The training loop, top to bottom.

What makes it exact: the order of samples, their augmentation, the learning rate and every micro-
step's random numbers are pure functions of (seed, step). A checkpoint therefore needs no random
state, and evaluation, logging, saving and the number of workers cannot change a run.
"""

import contextlib
import logging
import math
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from attnlab import parallel
from attnlab.config import Config
from attnlab.data.loader import Data, train_loader
from attnlab.data.symbols import UNSCORED
from attnlab.diagnostics import (
    dead_scorers,
    diagnostics,
    saturation,
    warn_if_dead,
    warn_if_saturated,
)
from attnlab.errors import BadInput, Interrupted, NonFinite
from attnlab.folder import PROGRESS, RunFolder
from attnlab.seeding import reseed
from attnlab.tracking import Tracker
from attnlab.training import checkpoint
from attnlab.training.evaluate import evaluate, to_device
from attnlab.training.faults import nonfinite, spike
from attnlab.training.meter import Meter
from attnlab.training.optim import build_optimizer, learning_rate
from attnlab.training.selection import Selection
from attnlab.training.signals import stop_signals

log = logging.getLogger(__name__)

DTYPE = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Progress:
    """What a run knows beside its weights and optimizer: all of it is in every checkpoint."""

    step: int = 0
    loss_sum: float = 0.0  # since the last metrics row
    loss_steps: int = 0
    usual: float = 0.0  # loss: a running mean over about 50 steps
    skipped: int = 0  # steps without an update, their loss or gradient not being finite
    best: dict[str, float] = field(default_factory=dict)  # best evaluation's metrics and step


def fit(
    cfg: Config,
    data: Data,
    model: nn.Module,
    folder: RunFolder,
    tracker: Tracker,
    state: dict[str, Any] | None,
) -> dict[str, Any]:
    """Train to the end of the budget, from the checkpoint `state` if there is one.

    Returns best/* metrics, steps, samples seen and the timing summary; best.pt holds the weights
    of the best evaluation. Errors: `NonFinite` before an update with a loss or gradient that is
    not finite, `Interrupted` after a signal and a save.
    """
    options, device = cfg.trainer, next(model.parameters()).device
    dataset_size = len(data.train())
    total, micro_size = total_steps(cfg, dataset_size), parallel.micro_batch(options)
    eval_every = options.eval_every or math.ceil(dataset_size / options.batch_size)
    autocast = precision(cfg, device)
    optimizer = build_optimizer(model, options)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    metrics, timing = folder.ledger("metrics.jsonl"), folder.ledger("timing.jsonl")
    progress = restore(state, model, optimizer, scaler)
    if state:
        log.info("continuing %s from step %d", folder.path, progress.step)
    for ledger in (metrics, timing):
        ledger.rewind(progress.step or -1)  # from step 0, the row of step 0 comes again too
    tracker.replay(metrics.rows() + timing.rows())
    compiled = torch.compile(model) if cfg.runtime.compile else model
    shared = parallel.share(compiled)
    selection = Selection(cfg, data)

    def record(row: dict[str, Any]) -> None:
        metrics.append(row, sync=True)
        tracker.log(row)

    def save() -> None:
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "scaler": scaler.state_dict(),
            "data": data.fingerprint,
            "processes": parallel.size(),
            **vars(progress),
        }
        began = time.perf_counter()
        size = checkpoint.save(folder, state, keep=cfg.runtime.keep_checkpoints)
        meter.saved(size, time.perf_counter() - began)

    def assess() -> dict[str, float]:
        began = time.perf_counter()
        row = evaluate(compiled, data, selection.split, micro_size, autocast)
        meter.evaluated(len(data.evaluation(selection.split)), time.perf_counter() - began)
        row |= dead_scorers(model, sample[0])
        warn_if_dead(row, progress.step)
        if not math.isfinite(row[selection.key]):
            log.warning("step %d: %s is %s", progress.step, selection.key, row[selection.key])
        if selection.better(row, progress.best):
            progress.best = {**row, "step": progress.step}
            best = {"model": model.state_dict(), "data": data.fingerprint, **progress.best}
            checkpoint.save_best(folder, best)
        return row

    def details() -> dict[str, float]:
        """Neither in the log's line nor in best/*: many values."""
        row = saturation(model, sample[0])
        return row | diagnostics(model, *sample, training_loss) if options.diagnostics else row

    sample = selection.sample(device)
    if progress.step == 0:
        health = dead_scorers(model, sample[0]) | details()
        warn_if_dead(health, 0)
        warn_if_saturated(health)
        if health:  # not where the weights of all layers are fixed
            record({"step": 0, **health})

    loader = train_loader(data, cfg, progress.step, total, pin=device.type == "cuda")
    batches = iter(loader)
    per_step = options.batch_size // micro_size  # micro-batches, of all processes
    tokens = options.batch_size * data.sample_tokens
    meter = Meter(device, options.batch_size, tokens, timing.rows())
    bar = tqdm(total=total, initial=progress.step, disable=None if cfg.runtime.progress else True)
    model.train()
    with stop_signals(second_acts=parallel.size() == 1) as stop, bar:
        while progress.step < total:
            step = progress.step
            meter.start()
            epoch = step * options.batch_size / dataset_size
            lr = learning_rate(step, total, epoch, options)
            for group in optimizer.param_groups:
                group["lr"] = lr
            loss = torch.zeros((), device=device)
            mine = range(parallel.rank(), per_step, parallel.size())
            meter.fetching()
            fetched = [next(batches) for _ in mine]
            meter.fetched()
            counts = [scored(targets) for _, targets, *_ in fetched]
            total_scored = parallel.add_count(sum(counts), device)
            for micro, count, batch in zip(mine, counts, fetched, strict=True):
                batch = to_device(batch, device)
                reseed(device, cfg.seed, "dropout", step, micro)
                with parallel.accumulating(shared, more=micro != mine[-1]):
                    with autocast():
                        mean = training_loss(shared(batch[0]), batch[1])
                    # the step's loss is the mean over its targets, however they are divided;
                    # where micro-batches score equally many this is mean / per_step, to the bit
                    part = mean / (total_scored / count)
                    # gradients become their mean over processes, and are to be their sum
                    scaler.scale(part * parallel.size()).backward()
                loss += part.detach()
            scaler.unscale_(optimizer)
            limit = options.grad_clip or math.inf
            norm = nn.utils.clip_grad_norm_(model.parameters(), limit).item()
            loss = parallel.add(loss).item()
            overflow = scaler.is_enabled() and math.isfinite(loss) and scaler.get_scale() > 1
            if math.isfinite(loss) and (math.isfinite(norm) or overflow):
                scaler.step(optimizer)
                progress.loss_sum += loss
                progress.loss_steps += 1
                said = progress.usual and spike(cfg, step, loss, progress.usual, dataset_size)
                if said:
                    log.warning(said)
                progress.usual += (loss - progress.usual) / 50 if progress.usual else loss
            else:
                message = nonfinite(cfg, step, loss, norm, dataset_size, model, batch[0])
                if options.on_nonfinite == "stop":
                    raise NonFinite(message)
                log.warning("%s Skipped (trainer.on_nonfinite=skip).", message)
                progress.skipped += 1
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            meter.stop()

            progress.step = step + 1
            last = progress.step == total
            due = partial(_due, progress.step, last)
            row = {}
            if due(options.log_every):
                steps = progress.loss_steps
                row = {
                    "train/loss": progress.loss_sum / steps if steps else None,
                    "train/lr": lr,
                    "train/grad_norm": norm if math.isfinite(norm) else None,
                }
                if options.on_nonfinite == "skip":
                    row["train/skipped"] = progress.skipped  # since the run began
                progress.loss_sum, progress.loss_steps = 0.0, 0
                PROGRESS.info("step %d of %d: %s", progress.step, total, _brief(row))
            if due(eval_every):
                row |= assess()
                log.info("step %d of %d: %s", progress.step, total, _brief(row))
                row |= details()
            if row:
                record({"step": progress.step, **row})
                times = meter.row(progress.step)
                timing.append(times)
                tracker.log(times)
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            signum = parallel.agree(stop.signum, device)
            if due(options.save_every) or signum:
                save()
            if signum and not last:
                name = signal.Signals(signum).name
                text = f"{name}: saved at step {progress.step} of {total} in {folder.path}; "
                raise Interrupted(signum, text + "the same command continues")
    best = {f"best/{key}": value for key, value in progress.best.items()}
    if options.on_nonfinite == "skip":
        best["skipped_steps"] = progress.skipped
    samples = total * options.batch_size
    timed = {**meter.summary(), "wall_s": meter.wall_s()}
    return {"steps": total, "samples_seen": samples, **best, **timed}


def total_steps(cfg: Config, dataset_size: int) -> int:
    """Updates in the budget: trainer.max_steps or trainer.epochs, whichever ends first."""
    options = cfg.trainer
    steps = options.max_steps or math.inf
    if options.epochs:
        steps = min(steps, math.ceil(options.epochs * dataset_size / options.batch_size))
    if options.warmup_steps > steps:
        raise BadInput(
            f"trainer.warmup_steps={options.warmup_steps}: must be at most the {steps} steps of "
            f"trainer.epochs={options.epochs}"
        )
    return int(steps)


def training_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy in nats over the scored tokens (B, N, V) or the images (B, C)."""
    return F.cross_entropy(logits.float().flatten(0, -2), targets.flatten(), ignore_index=UNSCORED)


def scored(targets: Tensor) -> int:
    """How many targets the loss is a mean over."""
    return int((targets != UNSCORED).sum())


def precision(cfg: Config, device: torch.device):
    """A factory of autocast contexts for trainer.precision."""
    if cfg.trainer.precision == "fp32":
        return contextlib.nullcontext
    return partial(torch.autocast, device.type, DTYPE[cfg.trainer.precision])


def restore(state: dict[str, Any] | None, model, optimizer, scaler) -> Progress:
    """Put a checkpoint into model, optimizer and scaler; without one, stay at step 0."""
    if state is None:
        return Progress()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return Progress(**{key: state[key] for key in vars(Progress()) if key in state})


def _due(step: int, last: bool, every: int) -> bool:
    return last or step % every == 0


def _brief(row: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None)
