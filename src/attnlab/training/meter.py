"""Time and memory of training steps, measured in windows with synchronisation, without warm-up,
evaluation and saving.
"""

import contextlib
import resource
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch

from attnlab.runtime.device import release_freed_memory

T = TypeVar("T")

WARM_UP = 5  # first steps of a process: allocation, compilation


class Meter:
    """Call `start` before and `stop` after each step of so many `samples` and `tokens`.

    earlier: timing rows of this run's earlier processes; the summary covers them too. even:
    whether all samples have as many tokens; if not, those of an evaluation are not counted.
    """

    def __init__(
        self,
        device: torch.device,
        samples: int,
        tokens: int,
        earlier: list[dict[str, Any]],
        even: bool = True,
    ):
        self.device, self.samples, self.tokens, self.even = device, samples, tokens, even
        self.rows = list(earlier)
        self._before = earlier[-1]["wall_s"] if earlier else 0.0
        self._window: list[float] = []
        self._evaluation: dict[str, float] = {}
        self._saves: dict[str, float] = {}
        self._waited = self._seen = 0
        self._began = time.perf_counter()
        reset_peak_memory(device)

    def start(self) -> None:
        """Call before a step."""
        self._t = time.perf_counter()
        self._waited_now = 0.0

    def waiting_for(self, batches: Iterable[T]) -> Iterator[T]:
        """The batches; the time until each arrives counts as the step's waiting for data."""
        batches = iter(batches)
        while True:
            began = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited_now += time.perf_counter() - began
            yield batch

    def stop(self, pause: bool) -> None:
        """Call after the update. pause: whether something else than a step follows; then the
        device is waited for, so that all of its work for these steps, and nothing else, is timed.
        """
        self._seen += 1
        if self.device.type == "cuda" and (pause or self._seen == WARM_UP):
            torch.cuda.synchronize(self.device)
        if self._seen > WARM_UP:
            self._window.append(time.perf_counter() - self._t)
            self._waited += self._waited_now

    def evaluated(self, samples: int, seconds: float) -> None:
        """Call after an evaluation of so many samples; its time includes loading."""
        self._evaluation = {"eval_samples": samples, "eval_s": round(seconds, 6)}
        self._evaluation |= self._throughput(samples, seconds, "throughput/eval_")

    def saved(self, size: int, seconds: float) -> None:
        """Call after a checkpoint of so many bytes."""
        spent = self._saves.get("save_s", 0) + seconds
        self._saves = {"checkpoint_mib": round(size / 2**20, 3), "save_s": round(spent, 6)}

    def wall_s(self) -> float:
        """Seconds since the run began, in all its processes, not counting pauses between them."""
        return round(self._before + time.perf_counter() - self._began, 3)

    def row(self, step: int) -> dict[str, Any]:
        """The timing row of the steps since the last one."""
        row = {
            "step": step,
            "wall_s": self.wall_s(),
            "memory/peak_mib": peak_memory_mib(self.device),
            "memory/steady_mib": memory_mib(self.device),  # between two steps
            **self._evaluation,
            **self._saves,
        }
        if self._window:
            n, spent = len(self._window), sum(self._window)
            row |= {
                "timed_steps": n,
                "timed_s": round(spent, 6),
                "step_ms_median": round(1000 * statistics.median(self._window), 3),
                "data_wait": round(self._waited / spent, 4),  # share of the time
                **self._throughput(n * self.samples, spent, "throughput/"),
            }
        self._window, self._waited, self._evaluation, self._saves = [], 0.0, {}, {}
        self.rows.append(row)
        return row

    def _throughput(self, samples: int, seconds: float, prefix: str) -> dict[str, float]:
        per_s = {f"{prefix}samples_per_s": round(samples / seconds, 2)}
        if self.tokens and (self.even or not prefix.endswith("eval_")):
            tokens = samples * self.tokens / self.samples
            per_s[f"{prefix}tokens_per_s"] = round(tokens / seconds, 1)
        return per_s

    def summary(self) -> dict[str, Any]:
        """What result.json says of the whole run; None where nothing was timed.

        step_ms_median is the median of the rows' medians, steady_memory_mib that of what is in use
        between steps, peak_memory_mib the largest peak.
        """
        medians = [row["step_ms_median"] for row in self.rows if "step_ms_median" in row]
        steady = [row["memory/steady_mib"] for row in self.rows if "memory/steady_mib" in row]
        return {
            **self._speed("timed_steps", "timed_s", self.samples, ""),
            **self._speed("eval_samples", "eval_s", 1, "eval_"),
            "step_ms_median": round(statistics.median(medians), 2) if medians else None,
            "peak_memory_mib": max((row["memory/peak_mib"] for row in self.rows), default=None),
            "steady_memory_mib": statistics.median(steady) if steady else None,
            **self._saving(),
        }

    def _saving(self) -> dict[str, float]:
        saves = [row for row in [*self.rows, self._saves] if "save_s" in row]
        return {
            "checkpoint_mib": max((row["checkpoint_mib"] for row in saves), default=None),
            "save_s": round(sum(row["save_s"] for row in saves), 3),
        }

    def _speed(self, count: str, seconds: str, samples: int, prefix: str) -> dict[str, Any]:
        """Throughput over all rows that have `seconds`, of `count` times so many samples."""
        timed = [row for row in self.rows if seconds in row]
        keys = (f"{prefix}tokens_per_s", f"{prefix}samples_per_s")
        if not timed:
            return dict.fromkeys(keys)
        done, spent = (sum(row[key] for row in timed) for key in (count, seconds))
        return dict.fromkeys(keys) | self._throughput(done * samples, spent, prefix)


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
    if (known := _status_mib("VmHWM")) is not None:
        return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)


def memory_mib(device: torch.device) -> float:
    """What `peak_memory_mib` is the peak of, now; of a CPU, where that is not known, the peak."""
    if device.type == "cuda":
        return round(torch.cuda.memory_allocated(device) / 2**20, 1)
    known = _status_mib("VmRSS")
    return peak_memory_mib(device) if known is None else known


def _status_mib(field: str) -> float | None:
    """What Linux knows of this process; None elsewhere, and in sandboxes that do not say it."""
    if sys.platform != "linux":
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    found = (int(line.split()[1]) for line in lines if line.startswith(field))
    kib = next(found, None)
    return None if kib is None else round(kib / 1024, 1)
