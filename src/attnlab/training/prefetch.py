"""Micro-batches on their way to the device while it computes."""

import contextlib
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from attnlab.data.pairs import Pairs
from attnlab.data.symbols import UNSCORED
from attnlab.training.evaluate import to_device


class MicroBatch(NamedTuple):
    """Inputs and targets on the device, and how many of the targets are scored."""

    inputs: Tensor | Pairs
    targets: Tensor
    scored: int


class Prefetch:
    """This process's micro-batches, `per_step` of them for each step.

    On CUDA they are copied by a stream of their own, beside the kernels of the step before: that
    needs pinned memory. Which samples a step gets does not depend on when they are fetched.
    """

    def __init__(self, batches: Iterator, per_step: int, device: torch.device):
        self.batches, self.per_step, self.device = batches, per_step, device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._next: list[MicroBatch] = []

    def fetch(self) -> None:
        """Start copying the next step's micro-batches, if there is another step."""
        side = torch.cuda.stream(self.stream) if self.stream else contextlib.nullcontext()
        with side:
            for inputs, targets, *_ in islice(self.batches, self.per_step):
                scored = int((targets != UNSCORED).sum())  # on the host: no waiting
                self._next.append(MicroBatch(*to_device((inputs, targets), self.device), scored))

    def take(self) -> list[MicroBatch]:
        """The micro-batches of a step, ready for what is launched from now on."""
        if not self._next:
            self.fetch()
        taken, self._next = self._next, []
        if self.stream:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self.stream)
            for tensor in (t for batch in taken for t in batch[:2]):
                tensor.record_stream(current)  # else its memory may be reused too early
        return taken
