"""Data-parallel training by torchrun: one process per device, and the batches of a single process.

The micro-batches of a step are dealt to the processes in turn, each with the random numbers of its
place in the step, and gradients are summed. So W processes train like one process that accumulates
over the same micro-batches, for every W. Without torchrun there is one process, and the functions
here do nothing.
"""

import contextlib
import inspect
import logging
from collections.abc import Iterator
from datetime import timedelta
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from attnlab.config.schema import Config, Trainer
from attnlab.errors import BadInput
from attnlab.runtime.torchrun import local_rank

T = TypeVar("T")

PATIENCE = timedelta(hours=1)  # while the main process prepares the data, the others wait


def rank() -> int:
    """Number of this process among those started together. Process 0, the main one, writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes were started together."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """While open, the processes that torchrun started work together; gloo on CPU, else NCCL."""
    if local_rank() is None:
        yield
        return
    dist.init_process_group(
        "nccl" if device.type == "cuda" else "gloo",
        timeout=PATIENCE,
        device_id=device if device.type == "cuda" else None,
    )
    if rank():
        logging.getLogger("attnlab").setLevel(logging.ERROR)  # the first one says it all
    yield
    dist.destroy_process_group()  # not after an error: another process may no longer answer


def quiet_unless_main(cfg: Config) -> Config:
    """The configuration, without W&B and progress bar in all processes except the main one."""
    if rank() == 0:
        return cfg
    logger = cfg.logger.model_copy(update={"mode": "disabled", "tensorboard": False})
    runtime = cfg.runtime.model_copy(update={"progress": False})
    return cfg.model_copy(update={"logger": logger, "runtime": runtime})


def micro_batch(options: Trainer, processes: int | None = None) -> int:
    """Number of samples that each of the processes computes at a time. None: those of now."""
    return options.micro_batch_size or max(1, options.batch_size // (processes or world_size()))


def check_micro_batches(options: Trainer) -> None:
    """Errors: `BadInput` if the micro-batches of a step do not divide among the processes."""
    micro, processes = micro_batch(options), world_size()
    if options.batch_size % (micro * processes):
        times = f" times trainer.micro_batch_size={micro}" if options.micro_batch_size else ""
        raise BadInput(
            f"trainer.batch_size={options.batch_size}: must be a multiple of the {processes} "
            f"processes{times}"
        )


@contextlib.contextmanager
def main_process_first() -> Iterator[None]:
    """The main process runs the body before the other processes do. Errors: of bad input there, in
    every process.
    """
    if rank() and (failure := broadcast_from_main(None)):
        raise failure
    try:
        yield
    except BadInput as failure:
        if rank() == 0:
            broadcast_from_main(failure)
        raise
    if rank() == 0:
        broadcast_from_main(None)


def barrier() -> None:
    """Wait until all processes have reached this point."""
    if world_size() > 1:
        dist.barrier()


def broadcast_from_main(value: T) -> T:
    """The value of the main process, in every process."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def all_reduce_sum(values: Tensor) -> Tensor:
    """Sum over processes, with the same result in each."""
    if world_size() > 1:
        dist.all_reduce(values)
    return values


def all_reduce_count(count: int, device: torch.device) -> int:
    """Sum of a whole number over processes."""
    if world_size() == 1:
        return count
    return int(all_reduce_sum(torch.tensor(count, device=device)))


def all_reduce_max(signum: int, device: torch.device) -> int:
    """The signal that any process received, or 0, so that all stop at the same step."""
    if world_size() == 1:
        return signum
    largest = torch.tensor(signum, device=device)
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    return int(largest)


def all_reduce_in_order(values: Tensor) -> Tensor:
    """Sum over processes in the order of their ranks; a process without samples contributes a
    scalar 0.
    """
    if world_size() == 1:
        return values
    parts = gather(values.cpu())
    return sum(parts, torch.zeros((), dtype=values.dtype)).to(values.device)


def gather(part: T) -> list[T]:
    """The values of all processes, in the order of their ranks, in each of them."""
    parts = [part] * world_size()
    if world_size() > 1:
        dist.all_gather_object(parts, part)
    return parts


def wrap_ddp(model: nn.Module) -> nn.Module:
    """The model to train; its backward averages gradients over processes."""
    if world_size() == 1:
        return model
    # Buffers are constants (positions), equal in every process, so they need not be sent.
    ddp = nn.parallel.DistributedDataParallel
    newer, older = "forward_sync_buffers", "broadcast_buffers"  # deprecated in torch 2.14
    name = newer if newer in inspect.signature(ddp).parameters else older
    # DDP regroups gradients into other buckets after the first backward, but not where it looks
    # for unused parameters. A resumed run would begin with the first buckets again, and sums of
    # three or more numbers, one from each process, would be rounded otherwise.
    return ddp(model, **{name: False}, find_unused_parameters=world_size() > 2)


def accumulate_gradients(model: nn.Module, more: bool) -> contextlib.AbstractContextManager:
    """A context for a backward pass; with `more` of them to come in this step, gradients are not
    yet averaged over processes.
    """
    return model.no_sync() if more and world_size() > 1 else contextlib.nullcontext()
