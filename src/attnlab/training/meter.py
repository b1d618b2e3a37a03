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

from attnlab.device import release_freed_memory

WARM_UP = 5  # first steps of a process: allocation, compilation


class Meter:
    """Call `start` before and `stop` after each step of so many `samples` and `tokens`.

    earlier: timing rows of this run's earlier processes; the summary covers them too.
    """

    def __init__(
        self, device: torch.device, samples: int, tokens: int, earlier: list[dict[str, Any]]
    ):
        self.device, self.samples, self.tokens = device, samples, tokens
        self.rows = list(earlier)
        self._before = earlier[-1]["wall_s"] if earlier else 0.0
        self._window: list[float] = []
        self._waited = self._seen = 0
        self._began = time.perf_counter()
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
            self._window.append(time.perf_counter() - self._t)
            self._waited += self._waited_now

    def wall_s(self) -> float:
        """Seconds since the run began, in all its processes, not counting pauses between them."""
        return round(self._before + time.perf_counter() - self._began, 3)

    def row(self, step: int) -> dict[str, Any]:
        """The timing row of the steps since the last one."""
        row = {
            "step": step,
            "wall_s": self.wall_s(),
            "memory/peak_mib": peak_memory_mib(self.device),
        }
        if self._window:
            n, spent = len(self._window), sum(self._window)
            row |= {
                "timed_steps": n,
                "timed_s": round(spent, 6),
                "step_ms_median": round(1000 * statistics.median(self._window), 3),
                "data_wait": round(self._waited / spent, 4),  # share of the time
                **self._throughput(n, spent),
            }
        self._window, self._waited = [], 0.0
        self.rows.append(row)
        return row

    def _throughput(self, steps: int, seconds: float) -> dict[str, float]:
        per_s = {"throughput/samples_per_s": round(steps * self.samples / seconds, 2)}
        if self.tokens:
            per_s["throughput/tokens_per_s"] = round(steps * self.tokens / seconds, 1)
        return per_s

    def summary(self) -> dict[str, Any]:
        """What result.json says of the whole run; None where too few steps were timed.

        step_ms_median is the median of the rows' medians, peak_memory_mib the largest peak.
        """
        timed = [row for row in self.rows if "timed_s" in row]
        per_s: dict[str, float] = {}
        if timed:
            per_s = self._throughput(
                sum(row["timed_steps"] for row in timed), sum(row["timed_s"] for row in timed)
            )
        medians = [row["step_ms_median"] for row in timed]
        return {
            "tokens_per_s": per_s.get("throughput/tokens_per_s"),
            "samples_per_s": per_s.get("throughput/samples_per_s"),
            "step_ms_median": round(statistics.median(medians), 2) if medians else None,
            "peak_memory_mib": max(row["memory/peak_mib"] for row in self.rows),
        }


def reset_peak_memory(device: torch.device) -> None:
    """Start the peak anew, where the platform allows it (CUDA; Linux for CPU memory)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        release_freed_memory()
        with contextlib.suppress(OSError):  # where forbidden, the peak includes start-up
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """CUDA: peak allocated by tensors. CPU: peak resident memory of the whole process."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    if sys.platform == "linux":
        return _status_mib("VmHWM")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)


def memory_mib(device: torch.device) -> float:
    """What `peak_memory_mib` is the peak of, now (CPU: on Linux only)."""
    if device.type == "cuda":
        return round(torch.cuda.memory_allocated(device) / 2**20, 1)
    return _status_mib("VmRSS")


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    kib = next(line for line in lines if line.startswith(field)).split()[1]
    return round(int(kib) / 1024, 1)
