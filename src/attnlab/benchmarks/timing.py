"""Time and memory of one function beside another.

Every sample of a contender is taken right after one of the baseline, and the ratio of the two is
what counts: a neighbour's load moves both.
"""

import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from attnlab.runs.environment import processor
from attnlab.training.meter import memory_mib, peak_memory_mib, reset_peak_memory

SAMPLES, SECONDS = 15, 5.0  # of one measurement: as many samples, or as long, and 3 at least
HOST = torch.device("cpu")  # whose clock times what waits for a device itself, as training does
AHEAD = 10_000_000  # cycles, about 5 ms: longer than Python takes to launch attention's kernels


def measured_on(device: torch.device) -> dict[str, Any]:
    """Where a row was measured: device, threads and versions. Part of every row."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    capability = "" if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{name} {capability}".strip(),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def paired(
    ours: Callable[[], None],
    base: Callable[[], None],
    device: torch.device,
    limit: float = SECONDS,
) -> dict[str, Any]:
    """Median ms, and median and quartiles of the ratio of paired samples, for about `limit`
    seconds.
    """
    for function in (base, ours):
        seconds(function, device)  # warm-up
    times, ratios = [], []
    began = time.perf_counter()
    while len(ratios) < SAMPLES:
        below, above = seconds(base, device), seconds(ours, device)
        times.append(1000 * above)
        ratios.append(above / below)
        if len(ratios) >= 3 and time.perf_counter() - began > limit:
            break
    low, _, high = statistics.quantiles(ratios, n=4)
    return {
        "ms": round(statistics.median(times), 3),
        "ratio_to_sdpa": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(low, 3), round(high, 3)],
        "samples": len(ratios),
    }


def seconds(function: Callable[[], None], device: torch.device) -> float:
    """Duration of one call; on CUDA that of its work on the device, between two events."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(AHEAD)  # so that the device does not wait for the host in between
        start.record()
        function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000
    began = time.perf_counter()
    function()
    return time.perf_counter() - began


def extra_memory(function: Callable[[], None], device: torch.device) -> float:
    """Peak MiB during a call above what was in use before it."""
    function()
    reset_peak_memory(device)
    before = memory_mib(device)
    function()
    return round(peak_memory_mib(device) - before, 1)
