"""The training loop, top to bottom.

What makes it exact: the order of samples, their augmentation, the learning rate and every micro-
step's random numbers are pure functions of (seed, step). A checkpoint therefore needs no random
state, and evaluation, logging, saving and the number of workers cannot change a run.
"""

import logging
import math
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from attnlab.config.schema import Config, Trainer
from attnlab.data.loader import Data, train_loader
from attnlab.errors import BadInput, Interrupted, NonFinite
from attnlab.runs.files import Ledger
from attnlab.runs.folder import RunFolder
from attnlab.runs.log import PROGRESS
from attnlab.runs.tracking import Tracker
from attnlab.runtime import distributed
from attnlab.runtime.signals import stop_signals
from attnlab.training import checkpoint
from attnlab.training.assess import Assessment
from attnlab.training.faults import nonfinite, spike
from attnlab.training.meter import Meter
from attnlab.training.optim import build_optimizer, set_learning_rate
from attnlab.training.prefetch import Prefetch
from attnlab.training.update import Update

log = logging.getLogger(__name__)

LOSS_EMA_STEPS = 50  # steps over which the running mean of the loss reaches


@dataclass
class Progress:
    """The state of a run beside its weights and optimizer; every checkpoint holds all of it."""

    step: int = 0
    loss_sum: float = 0.0  # since the last metrics row
    loss_steps: int = 0
    loss_ema: float = 0.0  # exponential moving average of the loss
    skipped: int = 0  # steps without an update: loss or gradient not finite, overflow in fp16
    best: dict[str, float] = field(default_factory=dict)  # best evaluation's metrics and step

    def add_loss(self, loss: float) -> None:
        """Count the loss of an update."""
        self.loss_sum += loss
        self.loss_steps += 1
        self.loss_ema += (loss - self.loss_ema) / LOSS_EMA_STEPS if self.loss_ema else loss

    def take_mean_loss(self) -> float | None:
        """Mean loss of the updates since the last call; None if there were none."""
        mean = self.loss_sum / self.loss_steps if self.loss_steps else None
        self.loss_sum, self.loss_steps = 0.0, 0
        return mean

    def summary(self, options: Trainer) -> dict[str, Any]:
        """What result.json says of it."""
        return {
            "steps": self.step,
            "samples_seen": self.step * options.batch_size,
            **{f"best/{key}": value for key, value in self.best.items()},
            **({"skipped_steps": self.skipped} if may_skip(options) else {}),
        }


def may_skip(options: Trainer) -> bool:
    """Whether a step may end without an update."""
    return options.on_nonfinite == "skip" or options.precision == "fp16"


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
    dataset_size, batch_size = len(data.train()), options.batch_size
    total, micro_size = total_steps(options, dataset_size), distributed.micro_batch(options)
    micro_batches = batch_size // micro_size // distributed.world_size()  # of a process in a step
    eval_every = options.eval_every or math.ceil(dataset_size / batch_size)
    optimizer = build_optimizer(model, options)
    scaler = torch.amp.GradScaler(device.type, enabled=options.precision == "fp16")
    progress = restore(state, model, optimizer, scaler)
    if state:
        log.info("continuing %s from step %d", folder.path, progress.step)
    metrics, timing = folder.ledger("metrics.jsonl"), folder.ledger("timing.jsonl")
    last = max(progress.step // every * every for every in (options.log_every, eval_every))
    start = progress.step or -1  # from step 0, the row of step 0 comes again too
    metrics.rewind(start, last)
    timing.rewind(start)  # its rows are not synced: a machine that stops may lose some
    tracker.replay(metrics.rows() + timing.rows())
    tokens = batch_size * data.sample_tokens
    meter = Meter(device, batch_size, tokens, timing.rows(), data.even_samples)
    compiled = torch.compile(model) if cfg.runtime.compile else model
    update = Update(distributed.wrap_ddp(compiled), optimizer, scaler, options, cfg.seed)
    assessment = Assessment(model, compiled, data, options, micro_size, update.autocast, meter)

    def record(ledger: Ledger, row: dict[str, Any], sync: bool = False) -> None:
        ledger.append(row, sync)
        tracker.log(row)

    made_by = {"data": data.fingerprint, "processes": distributed.world_size()}

    def save() -> None:
        parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
        state = {name: part.state_dict() for name, part in parts.items()} | made_by
        began = time.perf_counter()
        size = checkpoint.save(folder, state | vars(progress), keep=cfg.runtime.keep_checkpoints)
        meter.saved(size, time.perf_counter() - began)

    if progress.step == 0 and (health := assessment.at_start()):
        record(metrics, {"step": 0, **health}, sync=True)

    steps = range(progress.step, total)
    pin = device.type == "cuda"
    loader = train_loader(data, options, cfg.seed, steps, cfg.runtime.workers, pin)
    batches = Prefetch(meter.waiting_for(loader), micro_batches, device)
    bar = tqdm(total=total, initial=progress.step, disable=None if cfg.runtime.progress else True)
    model.train()
    spiking = False
    with stop_signals(second_acts=distributed.world_size() == 1) as stop, bar:
        for step in steps:
            meter.start()
            epoch = step * batch_size / dataset_size
            lr = set_learning_rate(optimizer, step, total, epoch, options)
            loss, norm, finite = update(step, batches)
            if finite:
                said = spike(cfg, step, loss, progress.loss_ema, dataset_size)
                if said and not spiking:  # once until the loss is back
                    log.warning(said)
                spiking = bool(said)
                progress.add_loss(loss)
                progress.skipped += not math.isfinite(norm)
            else:
                said = nonfinite(cfg, step, loss, norm, dataset_size, model, update.inputs)
                if options.on_nonfinite == "stop":
                    raise NonFinite(said)
                log.warning("%s Skipped (trainer.on_nonfinite=skip).", said)
                progress.skipped += 1
            progress.step = step + 1
            due = partial(_due, progress.step, progress.step == total)
            meter.stop(pause=any(map(due, (options.log_every, eval_every, options.save_every))))
            row = {}
            if due(options.log_every):
                row["train/loss"] = progress.take_mean_loss()
                row["train/lr"] = lr
                row["train/grad_norm"] = norm if math.isfinite(norm) else None
                if may_skip(options):
                    row["train/skipped"] = progress.skipped  # since the run began
                PROGRESS.info("step %d of %d: %s", progress.step, total, _brief(row))
            if due(eval_every):
                found = assessment.evaluate(progress.step)
                if assessment.selection.better(found, progress.best):
                    progress.best = {**found, "step": progress.step}
                    weights = {"model": model.state_dict()}
                    checkpoint.save_best(folder, weights | made_by | progress.best)
                row |= found
                log.info("step %d of %d: %s", progress.step, total, _brief(row))
                row |= assessment.details()
            if row:
                record(metrics, {"step": progress.step, **row}, sync=True)
                record(timing, meter.row(progress.step))
            bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            bar.update()
            signum = distributed.all_reduce_max(stop.signum, device)
            if due(options.save_every) or signum:
                save()
            if signum:
                raise Interrupted(signum, _interrupted(signum, progress.step, total, folder))
        if signum := distributed.all_reduce_max(stop.signum, device):  # during the last save
            raise Interrupted(signum, _interrupted(signum, progress.step, total, folder))
    return {**progress.summary(options), **meter.summary(), "wall_s": meter.wall_s()}


def total_steps(options: Trainer, dataset_size: int) -> int:
    """Updates in the budget: trainer.max_steps or trainer.epochs, whichever ends first."""
    steps = options.max_steps or math.inf
    if options.epochs:
        steps = min(steps, math.ceil(options.epochs * dataset_size / options.batch_size))
    if options.warmup_steps > steps:
        raise BadInput(
            f"trainer.warmup_steps={options.warmup_steps}: must be at most the {steps} steps of "
            f"trainer.epochs={options.epochs}"
        )
    return int(steps)


def restore(
    state: dict[str, Any] | None,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Progress:
    """Load a checkpoint into model, optimizer and scaler; without one, stay at step 0."""
    if state is None:
        return Progress()
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    scaler.load_state_dict(state["scaler"])
    return Progress(**{key: state[key] for key in vars(Progress()) if key in state})


def _due(step: int, last: bool, every: int) -> bool:
    return last or step % every == 0


def _interrupted(signum: int, step: int, total: int, folder: RunFolder) -> str:
    name = signal.Signals(signum).name
    return f"{name}: saved at step {step} of {total} in {folder.path}; the same command continues"


def _brief(row: dict[str, float]) -> str:
    return ", ".join(f"{k} {v:.4g}" for k, v in row.items() if v is not None)
