"""Sequences of symbols, made on the fly: a task of `attnlab.data.tasks`, or several levels of it
in one stream, by turns.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.config.schema import Body
from attnlab.config.symbols import Symbols, suffix
from attnlab.data.cache import digest
from attnlab.data.tasks import TASKS, UNSCORED
from attnlab.runtime.seeding import derive_seed


@dataclass
class SymbolData:
    """Sequences of one task, or of several in turn. See `loader.Data`."""

    options: Symbols
    seed: int

    even_samples = True
    tokenizer_file = None

    @property
    def fingerprint(self) -> str:
        """Of what the sequences are made from."""
        keys = ["tasks", "sequence_length", "train_size", "eval_size", *self.options.content]
        if self.options.test_ladder:
            keys.append("test_ladder")
        return digest(json.dumps([getattr(self.options, key) for key in keys]).encode())[:16]

    @property
    def sample_tokens(self) -> int:
        """Tokens in a training sample."""
        return self.options.sequence_length

    def shape(self, arch: Body) -> dict[str, int]:
        """Inputs, outputs and longest sequence of a model."""
        vocab = self.options.vocab_size
        return {"inputs": vocab, "outputs": vocab, "tokens": self.options.sequence_length}

    def train(self) -> "Sequences":
        """Other sequences in every epoch and for every seed."""
        key = ("train", self.seed)
        return Sequences(self.options, self.options.tasks, self.options.train_size, key)

    def evaluation(self, split: str) -> "Sequences":
        """The same sequences for every seed."""
        tasks = self.options.tasks_of(split)
        return Sequences(self.options, tasks, self.options.eval_size, (split,))

    def criterion(self, split: str) -> tuple[str, int]:
        """The metric that chooses the best checkpoint, and its sign."""
        return "loss", -1

    def sums(self, logits: Tensor, targets: Tensor, task: Tensor) -> Tensor:
        """(tasks, 3): loss, correct and scored symbols of each task. task (B,). Zeros at the end
        where another split has more tasks.
        """
        scored = targets != UNSCORED
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        correct = (logits.argmax(-1) == targets) & scored
        rows = [x.double().sum(-1) for x in (losses.view_as(targets), correct, scored)]
        tasks = max(len(self.options.tasks_of(split)) for split in ("validation", "test"))
        totals = torch.zeros(tasks, 3, dtype=torch.float64, device=logits.device)
        return totals.index_add_(0, task, torch.stack(rows, dim=-1))

    def metrics(self, split: str, totals: Tensor) -> dict[str, float]:
        """loss (nats a symbol) and accuracy over all; accuracy of each of several tasks."""
        loss, correct, scored = totals.unbind(-1)
        return {
            "loss": (loss.sum() / scored.sum()).item(),
            **self._shares("accuracy", correct, scored, split),
        }

    def baselines(self, split: str) -> dict[str, float]:
        """Accuracy by chance (see `Symbols.answers`), and of repeating the last symbol; of each of
        several tasks too.
        """
        dataset = self.evaluation(split)
        inputs, targets, task = dataset.__getitems__([(0, i) for i in range(len(dataset))])
        scored = targets != UNSCORED
        answers = [self.options.answers(task) for task in dataset.tasks]
        answers = torch.tensor(answers, dtype=torch.float64)
        rows = torch.stack((scored.sum(-1) / answers[task], (inputs == targets).sum(-1)))
        chance, copied, count = torch.zeros(3, len(answers), dtype=torch.float64).index_add_(
            1, task, torch.cat((rows, scored.sum(-1)[None]))
        )
        return {
            **self._shares("chance_accuracy", chance, count, split),
            **self._shares("copy_accuracy", copied, count, split),
        }

    def _shares(self, name: str, part: Tensor, whole: Tensor, split: str) -> dict[str, float]:
        """part / whole, both as `sums` has them, over all tasks, and of each where the split has
        several.
        """
        found = {name: (part.sum() / whole.sum()).item()}
        tasks = self.options.tasks_of(split)
        if len(tasks) > 1:
            shares = zip(tasks, (part / whole).tolist(), strict=False)
            found |= {name + suffix(self.options.level, task): share for task, share in shares}
        return found


@dataclass
class Sequences:
    """Item: inputs (B, L), targets (B, L) with UNSCORED where nothing is predicted, task (B,)."""

    options: Symbols
    tasks: list[list[int]]
    size: int
    key: tuple[int | str, ...]

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Sequences of (epoch, index) keys, which alone decide them; tasks come in turn."""
        make = TASKS[self.options.name]
        numbers = [index % len(self.tasks) for _, index in keys]
        made = []
        for number, key in zip(numbers, keys, strict=True):
            random = np.random.default_rng(derive_seed(self.options.name, *self.key, *key))
            made.append(make(random, self.options, self.tasks[number]))
        inputs, targets = (torch.from_numpy(np.stack(part)) for part in zip(*made, strict=True))
        return inputs, targets, torch.tensor(numbers)
