"""Batches of sentence pairs: two padded matrices of token ids that go through the program as one.

Shapes: B pairs, S source tokens, T target tokens.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

PAD = 0  # the id of [PAD], which stands behind the shorter sentences of a batch


@dataclass
class Pairs:
    """source (B, S); target (B, T), what the decoder reads: [BOS] and all tokens but the last."""

    source: Tensor
    target: Tensor

    @property
    def source_mask(self) -> Tensor:
        """(B, S): True where there is no padding."""
        return self.source != PAD

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index) -> "Pairs":
        """Rows as of a tensor; a single pair comes without padding, [None] makes a batch of it."""
        source, target = self.source[index], self.target[index]
        if isinstance(index, int):
            source, target = source[source != PAD], target[target != PAD]
        return Pairs(source, target)

    def to(self, *args, **options) -> "Pairs":
        """As of a tensor."""
        return Pairs(self.source.to(*args, **options), self.target.to(*args, **options))

    def pin_memory(self) -> "Pairs":
        """As of a tensor; torch's DataLoader calls it."""
        return Pairs(self.source.pin_memory(), self.target.pin_memory())

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """As of a tensor."""
        self.source.record_stream(stream)
        self.target.record_stream(stream)


def padded(rows: list[np.ndarray], value: int) -> Tensor:
    """Rows of ids as one matrix, with `value` behind the shorter ones."""
    ids = [torch.from_numpy(row.astype(np.int64)) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=value)
