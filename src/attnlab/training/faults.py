"""What to say when training cannot go on: values not finite, memory or disk that ended, another
process that is gone.
"""

import contextlib
import errno
import math
import re
import shutil
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnlab.config.schema import Config, Trainer
from attnlab.data.loader import Order
from attnlab.errors import OutOfResources, PeerLost, first_line
from attnlab.runs.folder import RunFolder
from attnlab.runtime import distributed
from attnlab.training import checkpoint
from attnlab.training.meter import peak_memory_mib

SPIKE = 4  # times the running mean of the loss
NO_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
NO_MEMORY = (
    *("out of memory", "not enough memory", "can't allocate memory"),
    *("CUBLAS_STATUS_ALLOC_FAILED", "cublasCreate"),  # a card that others have filled
)
# How torch says that a process that loads data has ended, other than by an error of its own.
LOADER_ENDED = re.compile(r"DataLoader worker \(pid|DataLoader timed out")


def nonfinite(
    cfg: Config, step: int, loss: float, norm: float, size: int, model: nn.Module, inputs: Tensor
) -> str:
    """Step, loss, gradient norm, the samples of the batch, and where activations are largest.

    step: from 0. size: of the training set. inputs: the step's last micro-batch.
    """
    value, layer = largest_activation(model, inputs)
    return (
        f"step {step + 1}: loss {loss}, gradient norm {norm}; nothing was updated. "
        f"Training samples of the batch: {_samples(cfg, step, size)}. "
        f"Largest activation in its last micro-batch: {value:.3g} in layer {layer}."
    )


@torch.no_grad()
def largest_activation(model: nn.Module, inputs: Tensor) -> tuple[float, int]:
    """Absolute value, and the layer that put it out; the first one with a value that is not
    finite, if there is one.
    """
    found: list[float] = []

    def see(module, args, out):
        found.append(out.abs().max().item())

    with contextlib.ExitStack() as hooks:
        for block in model.blocks:
            hooks.enter_context(block.register_forward_hook(see))
        model(inputs)
    broken = [layer for layer, value in enumerate(found) if not math.isfinite(value)]
    layer = broken[0] if broken else max(range(len(found)), key=found.__getitem__)
    return found[layer], layer


def spike(cfg: Config, step: int, loss: float, loss_ema: float, size: int) -> str | None:
    """What to say if a loss is far above its running mean (0 if there is none yet): the step (from
    0) and its samples.
    """
    if not loss_ema or loss <= SPIKE * loss_ema:
        return None
    return (
        f"step {step + 1}: loss {loss:.4g}, {loss / loss_ema:.0f} times its running mean "
        f"{loss_ema:.4g}. "
        f"Training samples of the batch: {_samples(cfg, step, size)}."
    )


def _samples(cfg: Config, step: int, size: int) -> str:
    """Indices of the samples of a step's batch, and of which epoch (from 0) they are."""
    batch = cfg.trainer.batch_size
    keys = Order(size, cfg.seed).keys(step * batch, (step + 1) * batch)
    epochs = " and ".join(map(str, dict.fromkeys(epoch for epoch, _ in keys)))
    return f"{[index for _, index in keys]} (epoch {epochs})"


def explain(
    error: Exception, cfg: Config, device: torch.device, folder: RunFolder, params: int
) -> Exception:
    """The error itself, or what the user can do about it. params: values in the model."""
    if isinstance(error, OSError) and error.errno in NO_WRITE:
        return OutOfResources(
            f"{error.filename or folder.path}: cannot be written ({error.strerror}); "
            f"{_free(folder.path)}. {_saved(folder.checkpoints)}"
        )
    if isinstance(error, checkpoint.Damaged):
        return OutOfResources(
            f"{error}: the file reads back differently from what was written. "
            f"{_saved(folder.checkpoints)}"
        )
    processes = distributed.world_size()
    if processes > 1 and (isinstance(error, dist.DistError) or "gloo" in str(error)):
        return PeerLost(
            f"another of the {processes} processes ended. {_saved(folder.checkpoints)}"
        )
    ended = isinstance(error, MemoryError | torch.OutOfMemoryError)
    ended |= isinstance(error, OSError) and error.errno == errno.ENOMEM  # of a fork
    if ended or any(text in str(error) for text in NO_MEMORY):
        trainer, peak = cfg.trainer, peak_memory_mib(device)
        if not params:
            return OutOfResources(
                f"out of {device.type} memory, peak {peak:,.0f} MiB, before the model was there: "
                "a smaller arch.width, arch.ffn_width, arch.layers or data.vocab_size needs less. "
                f"{_saved(folder.checkpoints)}"
            )
        return OutOfResources(
            f"out of {device.type} memory, peak {peak:,.0f} MiB; "
            f"trainer.micro_batch_size={distributed.micro_batch(trainer)} at "
            f"trainer.precision={trainer.precision}: {smaller_micro_batch(trainer, peak, params)}"
            f"{_lower_precision(trainer)}for text a smaller data.sequence_length and for "
            "translation a smaller data.group_tokens need less; each makes another run. "
            f"{_saved(folder.checkpoints)}"
        )
    broken_pipe = cfg.runtime.workers and isinstance(error, ConnectionError | EOFError)
    if broken_pipe or (isinstance(error, RuntimeError) and LOADER_ENDED.search(str(error))):
        return OutOfResources(
            f"a process that loads data (runtime.workers={cfg.runtime.workers}) ended or hangs: "
            f"{first_line(error).strip('. ')}. {_saved(folder.checkpoints)}"
        )
    return error


def _lower_precision(trainer: Trainer) -> str:
    return "trainer.precision=bf16, " if trainer.precision in ("fp32", "tf32") else ""


def smaller_micro_batch(trainer: Trainer, peak: float, params: int) -> str:
    """The micro-batch to try after one that reached `peak` MiB and did not fit: at most half as
    large, because how much it still lacked is not known. Empty if there is none.

    Weights, gradients and Adam's two moments stay; the rest of the peak is taken as proportional.
    """
    micro, batch = distributed.micro_batch(trainer), trainer.batch_size
    processes = distributed.world_size()
    fits = [m for m in range(1, micro // 2 + 1) if batch % (m * processes) == 0]
    if not fits:
        return ""
    fixed = min(4 * 4 * params / 2**20, peak)
    need = fixed + (peak - fixed) * fits[-1] / micro
    return (
        f"try trainer.micro_batch_size={fits[-1]}, which draws other dropout masks, rounds "
        f"otherwise, and needs about {need:,.0f} MiB; "
    )


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(path).free / 2**20:,.1f} MiB are free there"


def _saved(checkpoints: Path) -> str:
    if checkpoint.newest_first(checkpoints):
        return f"The last whole checkpoint is in {checkpoints}; the same command continues from it"
    return "Nothing was saved yet"
