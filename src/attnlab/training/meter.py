"""Time and memory of training steps: windowed, synchronised, without warm-up, evaluation and
saving.
"""

import contextlib
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

WARM_UP = 5  # first steps of a process: allocation, compilation


class Meter:
    """Call `start` before and `stop` after each step; `samples` and `tokens` are those of one
    step.
    """

    def __init__(self, device: torch.device, samples: int, tokens: int):
        self.device, self.samples, self.tokens = device, samples, tokens
        self.steps_ms: list[float] = []
        self._window: list[float] = []
        self._waited = self._seen = 0
        self.began = time.perf_counter()
        reset_peak_memory(device)

    def start(self) -> None:
        """Before fetching a step's first batch."""
        self._t = self._fetch = time.perf_counter()
        self._waited_now = 0.0

    def fetching(self) -> None:
        """Before asking for a batch."""
        self._fetch = time.perf_counter()

    def fetched(self) -> None:
        """When the batch has come: what passed since `fetching` was spent waiting for data."""
        self._waited_now += time.perf_counter() - self._fetch

    def stop(self) -> None:
        """After the update."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self._seen += 1
        if self._seen > WARM_UP:
            spent = time.perf_counter() - self._t
            self.steps_ms.append(1000 * spent)
            self._window.append(spent)
            self._waited += self._waited_now

    def row(self, step: int) -> dict[str, Any]:
        """The timing row of the steps since the last one."""
        spent = sum(self._window)
        row = {
            "step": step,
            "wall_s": round(time.perf_counter() - self.began, 3),
            "memory/peak_mib": peak_memory_mib(self.device),
        }
        if spent:
            n = len(self._window)
            row["throughput/samples_per_s"] = round(n * self.samples / spent, 2)
            if self.tokens:
                row["throughput/tokens_per_s"] = round(n * self.tokens / spent, 1)
            row["data_wait"] = round(self._waited / spent, 4)  # share of the time
        self._window, self._waited = [], 0.0
        return row

    def summary(self) -> dict[str, Any]:
        """What result.json says; None where too few steps were timed."""
        median = statistics.median(self.steps_ms) if self.steps_ms else None
        mean = statistics.fmean(self.steps_ms) / 1000 if self.steps_ms else None
        return {
            "tokens_per_s": round(self.tokens / mean, 1) if mean and self.tokens else None,
            "samples_per_s": round(self.samples / mean, 2) if mean else None,
            "step_ms_median": round(median, 2) if median else None,
            "peak_memory_mib": peak_memory_mib(self.device),
        }


def reset_peak_memory(device: torch.device) -> None:
    """Start the peak anew, where the platform allows it (CUDA; Linux for CPU memory)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with contextlib.suppress(OSError):  # where forbidden, the peak includes start-up
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """CUDA: peak allocated by tensors. CPU: peak resident memory of the whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if sys.platform == "linux":
        lines = Path("/proc/self/status").read_text().splitlines()
        kib = next(line for line in lines if line.startswith("VmHWM")).split()[1]
        return round(int(kib) / 1024, 1)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)
