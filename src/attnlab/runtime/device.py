"""Which device a run uses, and how the process is set up for it."""

import contextlib
import ctypes
import gc
import os
import sys

import torch

from attnlab.config.schema import Runtime
from attnlab.errors import BadInput, first_line
from attnlab.runtime.torchrun import local_rank

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4  # of glibc's malloc.h


def choose_device(runtime: Runtime, precision: str = "fp32") -> torch.device:
    """The device of runtime.device, set up for deterministic results and for trainer.precision;
    auto prefers cuda. Errors: `BadInput` if it cannot be had, or has no TF32.
    """
    name = runtime.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise BadInput(f"runtime.device=cuda: {cuda_obstacle()}; available: cpu")
    if precision == "tf32" and (name != "cuda" or torch.cuda.get_device_capability() < (8, 0)):
        raise BadInput(
            "trainer.precision=tf32: needs an NVIDIA GPU of compute capability 8.0 or more; "
            f"on this {name} device use fp32 or bf16"
        )
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    set_up(torch.device(name))
    if name == "cuda" and (number := local_rank()) is not None:  # one device each
        if number >= torch.cuda.device_count():
            raise BadInput(
                f"torchrun: process {number + 1} on this machine, which has "
                f"{torch.cuda.device_count()} GPUs; --nproc-per-node must be at most that"
            )
        torch.cuda.set_device(number)
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(name)


def set_up(device: torch.device) -> None:
    """What a process does before it trains on a device: the same results each time, and on a CPU
    no waiting for memory.
    """
    if device.type == "cpu":
        keep_freed_memory()
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to repeat
    torch.use_deterministic_algorithms(True)
    # No kernel here reads what it has not written, and filling every buffer costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False
    torch.backends.cudnn.benchmark = False
    # Otherwise cuBLAS may add up parts of a product in the 16 bits of its inputs.
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False


def cuda_obstacle() -> str:
    """Why torch cannot use CUDA here: no device, a driver that is too old, a build without it."""
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        return first_line(error).partition(". ")[0]
    return "no CUDA device here"


def chosen_because(runtime: Runtime, device: torch.device) -> str:
    """Why a run is on its device."""
    if runtime.device != "auto":
        return f"runtime.device={runtime.device}"
    return "CUDA is usable" if device.type == "cuda" else f"CUDA is unavailable: {cuda_obstacle()}"


def keep_freed_memory() -> None:
    """Let glibc keep large freed blocks for the next step instead of giving them back each time.

    Otherwise every large activation is mapped and zeroed anew: a training step with a score
    network of 64 hidden units over 128 x 128 pairs took 2.0 s instead of 0.4 s. Results do not
    change.
    """
    _glibc("mallopt", M_MMAP_MAX, 0)
    _glibc("mallopt", M_TRIM_THRESHOLD, 2**31 - 1)


def give_back_freed_memory() -> None:
    """Let glibc give large freed blocks back at once, so that resident memory is that of tensors;
    it undoes `keep_freed_memory`.

    By itself it learns to keep blocks of up to 32 MiB, in pieces that no tensor fits: a peak of
    634 MiB of tensors then took 816 MiB.
    """
    _glibc("mallopt", M_MMAP_MAX, 2**16)
    _glibc("mallopt", M_MMAP_THRESHOLD, 2**17)
    _glibc("mallopt", M_TRIM_THRESHOLD, 2**17)


def release_freed_memory() -> None:
    """Return memory that preparing data has freed, so that it does not count in a run's peak."""
    gc.collect()
    _glibc("malloc_trim", 0)


def _glibc(function: str, *arguments: int) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library
            getattr(ctypes.CDLL(None), function)(*arguments)
