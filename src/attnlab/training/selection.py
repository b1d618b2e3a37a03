"""Which checkpoint of a run is its best."""

import math

import torch
from torch import Tensor

from attnlab.data.loader import Data
from attnlab.training.diagnostics import SEQUENCES
from attnlab.training.evaluate import PREFIX, to_device


class Selection:
    """On which split and by which metric the best checkpoint is chosen."""

    def __init__(self, data: Data, split: str):
        self.data = data
        self.split = split
        name, self.sign = data.criterion(self.split)
        self.key = f"{PREFIX[self.split]}/{name}"

    def better(self, row: dict[str, float], best: dict[str, float]) -> bool:
        """Whether an evaluation beats the best one so far; any number beats NaN."""
        if not best or math.isnan(best[self.key]):
            return True
        return self.sign * (row[self.key] - best[self.key]) > 0

    def sample(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a few samples of the split, for diagnostics."""
        dataset = self.data.evaluation(self.split)
        count = min(SEQUENCES, len(dataset))
        batch = dataset.__getitems__([(0, i) for i in range(count)])
        return to_device(batch[:2], device)
