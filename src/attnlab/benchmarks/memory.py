"""Peak memory of training steps without the device: shapes and lifetimes of all tensors, counted
by torch's memory tracker on tensors without data.

PyTorch cannot run a backward pass of such tensors on `cuda` without a CUDA driver, so they are on
`cpu`. Attention is the fused operator there too, and autocast keeps the same tensors. Not counted:
what kernels allocate inside, cuBLAS's workspace, and the rounding of the allocator.
"""

import math

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from attnlab.benchmarks.training_step import random_batch
from attnlab.config.mechanisms import Mechanism
from attnlab.config.schema import Config
from attnlab.models.transformer import build_model
from attnlab.training.optim import build_optimizer
from attnlab.training.update import precision, training_loss

MIB = 2**20


def modelled_peak_mib(cfg: Config, shape: dict[str, int]) -> float:
    """Peak MiB of tensors over two training steps of cfg at its micro-batch; shape: see
    `Transformer`.
    """
    device = torch.device("cpu")
    with FakeTensorMode():
        model = build_model(cfg.arch, fused(cfg.model), cfg.seed, **shape).train()
        optimizer = build_optimizer(model, cfg.trainer)
        batch = random_batch(cfg, shape)
        tracker = MemTracker()
        tracker.track_external(model, optimizer, *batch)
        with tracker:
            for _ in range(2):
                step(model, optimizer, batch, cfg, device)
                tracker.reset_mod_stats()  # it follows one step at a time
        return tracker.get_tracker_snapshot("peak")[device]["Total"] / MIB


def step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: tuple[Tensor, Tensor],
    cfg: Config,
    device: torch.device,
) -> None:
    """One update, as `Update` makes it, without reading loss and norm."""
    inputs, targets = batch
    with precision(cfg.trainer, device)():
        loss = training_loss(model(inputs), targets)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.grad_clip or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def fused(model: Mechanism) -> Mechanism:
    """The mechanism by the fused operator, of which only shapes are asked here."""
    if hasattr(model, "backend"):
        return model.model_copy(update={"backend": "chunked"})
    return model
