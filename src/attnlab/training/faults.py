"""What to say when training cannot go on: values not finite, memory or disk that ended."""

import errno
import math
import shutil
from pathlib import Path

import torch
from torch import Tensor, nn

from attnlab.config import Config
from attnlab.data.loader import Order
from attnlab.errors import OutOfResources
from attnlab.folder import RunFolder
from attnlab.training.meter import peak_memory_mib

NO_WRITE = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory")


def nonfinite(
    cfg: Config, step: int, loss: float, norm: float, size: int, model: nn.Module, inputs: Tensor
) -> str:
    """Step, loss, gradient norm, the samples of the batch, and where activations are largest.

    step: from 0. size: of the training set. inputs: the step's last micro-batch.
    """
    batch = cfg.trainer.batch_size
    keys = Order(size, cfg.seed).keys(step * batch, (step + 1) * batch)
    value, layer = largest_activation(model, inputs)
    return (
        f"step {step + 1}: loss {loss}, gradient norm {norm}; nothing was updated. "
        f"Training samples of the batch: {[index for _, index in keys]}. "
        f"Largest activation in its last micro-batch: {value:.3g} in layer {layer}."
    )


@torch.no_grad()
def largest_activation(model: nn.Module, inputs: Tensor) -> tuple[float, int]:
    """Absolute value, and the layer that put it out; the first one with a value that is not
    finite, if there is one.
    """
    found: list[float] = []
    hooks = [
        block.register_forward_hook(lambda module, args, out: found.append(out.abs().max().item()))
        for block in model.blocks
    ]
    try:
        model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    broken = [layer for layer, value in enumerate(found) if not math.isfinite(value)]
    layer = broken[0] if broken else max(range(len(found)), key=found.__getitem__)
    return found[layer], layer


def explain(error: Exception, cfg: Config, device: torch.device, folder: RunFolder) -> Exception:
    """The error itself, or what the user can do where memory or disk space ended."""
    if isinstance(error, OSError) and error.errno in NO_WRITE:
        return OutOfResources(
            f"{error.filename or folder.path}: cannot be written ({error.strerror}); "
            f"{_free(folder.path)}. {_saved(folder.checkpoints)}"
        )
    ended = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if ended or any(text in str(error) for text in NO_MEMORY):
        trainer = cfg.trainer
        return OutOfResources(
            f"out of {device.type} memory, peak {peak_memory_mib(device):,.0f} MiB; "
            f"trainer.micro_batch_size={trainer.micro} at trainer.precision={trainer.precision}: "
            "a smaller micro_batch_size (a divisor of trainer.batch_size), precision=bf16 or, for "
            f"text, a smaller data.sequence_length need less. {_saved(folder.checkpoints)}"
        )
    return error


def _free(path: Path) -> str:
    return f"{shutil.disk_usage(path).free / 2**20:,.1f} MiB are free there"


def _saved(checkpoints: Path) -> str:
    if any((checkpoints / f"{name}.pt").is_file() for name in ("last", "previous")):
        return f"The last whole checkpoint is in {checkpoints}; the same command continues from it"
    return "Nothing was saved yet"
