"""NT tasks, made on the fly: predict x_t = (x_{t-1} + x_{t-tau}) mod N.

Our definition: arXiv 2407.18601 reports autoregressive tasks of growing difficulty, but what they
were exactly is not known to us. A sequence is a token that names its task, tau random symbols, and
then what follows from them; only what follows is predicted, so accuracy 1 can be reached.
"""

import json
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.config.schema import Symbols
from attnlab.data.cache import digest
from attnlab.runtime.seeding import derive_seed

UNSCORED = -100  # a target that neither loss nor accuracy counts; torch's own default


@dataclass
class SymbolData:
    """Sequences of one task, or of several in turn. See `loader.Data`."""

    options: Symbols
    seed: int

    @property
    def fingerprint(self) -> str:
        """Of what the sequences are made from."""
        keys = ("tasks", "sequence_length", "train_size", "eval_size")
        return digest(json.dumps([getattr(self.options, key) for key in keys]).encode())[:16]

    @property
    def sample_tokens(self) -> int:
        """Tokens in a training sample."""
        return self.options.sequence_length

    def shape(self, arch) -> dict[str, int]:
        """Inputs, outputs and longest sequence of a model."""
        vocab = self.options.vocab_size
        return {"inputs": vocab, "outputs": vocab, "tokens": self.options.sequence_length}

    def train(self) -> "Sequences":
        """Other sequences in every epoch and for every seed."""
        return Sequences(self.options, self.options.train_size, ("train", self.seed))

    def evaluation(self, split: str) -> "Sequences":
        """The same sequences for every seed."""
        return Sequences(self.options, self.options.eval_size, (split,))

    def criterion(self, split: str) -> tuple[str, int]:
        """The metric that chooses the best checkpoint, and its sign."""
        return "loss", -1

    def sums(self, logits: Tensor, targets: Tensor, task: Tensor) -> Tensor:
        """(tasks, 3): loss, correct and scored symbols of each task. task (B,)."""
        scored = targets != UNSCORED
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        correct = (logits.argmax(-1) == targets) & scored
        rows = [x.double().sum(-1) for x in (losses.view_as(targets), correct, scored)]
        totals = torch.zeros(len(self.options.tasks), 3, dtype=torch.float64, device=logits.device)
        return totals.index_add_(0, task, torch.stack(rows, dim=-1))

    def metrics(self, split: str, totals: Tensor) -> dict[str, float]:
        """loss (nats a symbol) and accuracy over all; accuracy of each of several tasks."""
        loss, correct, scored = totals.unbind(-1)
        return {
            "loss": (loss.sum() / scored.sum()).item(),
            **self._shares("accuracy", correct, scored),
        }

    def baselines(self, split: str) -> dict[str, float]:
        """Accuracy by chance, and of repeating the last symbol; of each of several tasks too."""
        dataset = self.evaluation(split)
        inputs, targets, task = dataset.__getitems__([(0, i) for i in range(len(dataset))])
        scored = targets != UNSCORED
        sizes = torch.tensor([n for n, _ in self.options.tasks], dtype=torch.float64)
        rows = torch.stack((scored.sum(-1) / sizes[task], (inputs == targets).sum(-1)))
        chance, copied, count = torch.zeros(3, len(sizes), dtype=torch.float64).index_add_(
            1, task, torch.cat((rows, scored.sum(-1)[None]))
        )
        return {
            **self._shares("chance_accuracy", chance, count),
            **self._shares("copy_accuracy", copied, count),
        }

    def _shares(self, name: str, part: Tensor, whole: Tensor) -> dict[str, float]:
        """part / whole, both (tasks,), over all tasks, and of each where there are several."""
        found = {name: (part.sum() / whole.sum()).item()}
        if len(whole) > 1:
            shares = (part / whole).tolist()
            tasks = zip(self.options.tasks, shares, strict=True)
            found |= {f"{name}_n{n}_tau{tau}": share for (n, tau), share in tasks}
        return found


@dataclass
class Sequences:
    """Item: inputs (B, L) and targets (B, L) one symbol later, task (B,). The symbols of all tasks
    are 0 to N - 1; the first input is max N + the number of the task.
    """

    options: Symbols
    size: int
    key: tuple[int | str, ...]

    def __len__(self) -> int:
        return self.size

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Sequences of (epoch, index) keys, which alone decide them; tasks come in turn."""
        tasks, length = self.options.tasks, self.options.sequence_length
        task = np.array([index % len(tasks) for _, index in keys])
        n, tau = np.array(tasks)[task].T
        x = np.zeros((len(keys), length), dtype=np.int64)
        for row, key in enumerate(keys):
            random = np.random.default_rng(derive_seed("nt", *self.key, *key))
            x[row, : tau[row]] = random.integers(n[row], size=tau[row])
        for t in range(1, length):
            follows = np.flatnonzero(t >= tau)
            before = x[follows, t - tau[follows]]
            x[follows, t] = (x[follows, t - 1] + before) % n[follows]
        first = max(n for n, _ in tasks) + task
        inputs = np.concatenate((first[:, None], x[:, :-1]), axis=1)
        targets = np.where(np.arange(length) < tau[:, None], UNSCORED, x)
        return tuple(map(torch.from_numpy, (inputs, targets, task)))
