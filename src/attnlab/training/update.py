"""One update of the weights: micro-batches, loss, gradients, clipping, optimizer."""

import contextlib
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.config.schema import Trainer
from attnlab.data.pairs import Pairs
from attnlab.data.symbols import UNSCORED
from attnlab.functional import Autocast
from attnlab.runtime import distributed
from attnlab.runtime.seeding import reseed
from attnlab.training.prefetch import Prefetch

DTYPE = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Update:
    """Updates of a model by the micro-batches of one step after another.

    The random numbers of a micro-batch depend on the seed, its step and its place in the step. The
    loss of a step is the mean over all its targets, however these are divided into micro-batches
    and among processes. inputs: those of the last micro-batch.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        options: Trainer,
        seed: int,
    ):
        self.model, self.optimizer, self.scaler = model, optimizer, scaler
        self.options, self.seed = options, seed
        self.parameters = list(model.parameters())  # once: walking the modules takes time
        self.device = self.parameters[0].device
        self.autocast = precision(options, self.device)
        self.inputs: Tensor | Pairs | None = None

    def __call__(self, step: int, batches: Prefetch) -> tuple[float, float, bool]:
        """Take this process's micro-batches of a step from `batches` and update the weights. The
        host waits for the device once, before the optimizer, and fetches the next step's batches
        while the device computes. One of several processes also waits for how many targets the
        others have.

        Returns the loss, the norm of its gradient before clipping, and whether both are finite:
        otherwise nothing was updated. In fp16 the norm may overflow, which counts as finite,
        lowers the scale of the loss, and updates nothing either.
        """
        per_step = self.options.batch_size // distributed.micro_batch(self.options)
        processes = distributed.world_size()
        mine = range(distributed.rank(), per_step, processes)
        fetched = batches.take()
        total = distributed.all_reduce_count(sum(batch.scored for batch in fetched), self.device)
        loss = torch.zeros((), device=self.device)
        for micro, batch in zip(mine, fetched, strict=True):
            self.inputs = batch.inputs
            reseed(self.device, self.seed, "dropout", step, micro)
            more = micro != mine[-1]
            with distributed.accumulate_gradients(self.model, more):
                with self.autocast():
                    # where nothing is scored the mean is 0 / 0, and the sum 0 with gradients of 0
                    reduction = "mean" if batch.scored else "sum"
                    # no name for the logits: it would keep them in memory during the backward
                    part = training_loss(
                        self.model(batch.inputs),
                        batch.targets,
                        reduction,
                        self.options.label_smoothing,
                    )
                if total > batch.scored > 0:
                    # where micro-batches score equally many this is mean / per_step, to the bit
                    part = part / (total / batch.scored)
                # gradients become their mean over processes, and are to be their sum
                whole = part * processes if processes > 1 else part
                self.scaler.scale(whole).backward()
            loss += part.detach()
        self.scaler.unscale_(self.optimizer)
        limit = self.options.grad_clip or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        both = torch.stack((distributed.all_reduce_sum(loss), norm.to(loss)))
        batches.fetch()
        value, norm = both.tolist()
        overflow = self.scaler.is_enabled() and self.scaler.get_scale() > 1
        finite = math.isfinite(value) and (math.isfinite(norm) or overflow)
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return value, norm, finite


def training_loss(
    logits: Tensor, targets: Tensor, reduction: str = "mean", smoothing: float = 0.0
) -> Tensor:
    """Mean (or "sum") of the cross-entropy in nats over the scored tokens (B, N, V) or the images
    (B, C).

    smoothing: share of each target that is spread evenly over all classes, the right one among
    them (Szegedy et al., arXiv 1512.00567, section 7).
    """
    logits, targets = logits.float().flatten(0, -2), targets.flatten()
    return F.cross_entropy(
        logits, targets, ignore_index=UNSCORED, reduction=reduction, label_smoothing=smoothing
    )


def precision(options: Trainer, device: torch.device) -> Autocast:
    """A factory of autocast contexts for trainer.precision; fp32 and tf32 have none (for tf32 see
    `choose_device`).
    """
    if options.precision in DTYPE:
        return partial(torch.autocast, device.type, DTYPE[options.precision])
    return contextlib.nullcontext
