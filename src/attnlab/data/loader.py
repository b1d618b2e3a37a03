"""Which samples come when: a pure function of (seed, epoch, position), with no state to save."""

import contextlib
import os
import sys
from collections.abc import Iterator, Sized
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from attnlab.config import schema as config
from attnlab.config.schema import Body
from attnlab.data.symbols import SymbolData
from attnlab.data.text import build_text
from attnlab.data.translation import build_translation
from attnlab.errors import BadInput
from attnlab.runtime import distributed
from attnlab.runtime.seeding import derive_seed

HANGS = 600  # seconds after which a worker that gives nothing counts as hung


class Data(Protocol):
    """What training and evaluation ask of a data set.

    fingerprint: of its content. sample_tokens: tokens in a training sample, 0 where speed is
    counted in samples; even_samples: whether all samples have equally many. tokenizer_file: of
    text, else None. What `train` and `evaluation` return has __getitems__ of (epoch, index) keys,
    which alone decide the samples; a batch is inputs, targets and what `sums` needs besides.
    """

    fingerprint: str
    sample_tokens: int
    even_samples: bool
    tokenizer_file: Path | None

    def shape(self, arch: Body) -> dict[str, int]:
        """Of a model for it: inputs, outputs, tokens (see `Transformer`)."""

    def train(self) -> Sized:
        """The training samples."""

    def evaluation(self, split: str) -> Sized:
        """The samples of validation or test."""

    def criterion(self, split: str) -> tuple[str, int]:
        """The metric that chooses the best checkpoint, and 1 if more of it is better, else -1."""

    def sums(self, logits: Tensor, *rest: Tensor) -> Tensor:
        """What `metrics` needs, of one batch: added up over batches. rest: targets and so on."""

    def metrics(self, split: str, totals: Tensor) -> dict[str, float]:
        """The metrics of a split, without its prefix, from the sums over all its batches."""

    def baselines(self, split: str) -> dict[str, float]:
        """What a trivial predictor reaches on the split."""


def build_data(data: config.Data, seed: int, cache: str | Path) -> Data:
    """A configured data set, prepared in the folder `cache`; seed: of augmentation and of data
    that is made on the fly. Errors: `BadInput` (see `build_text`, `build_images`).
    """
    cache = Path(cache)
    missing = [folder for folder in (cache, *cache.parents) if not folder.exists()]
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(f"runtime.cache={cache}: cannot be written: {error}") from None
    try:
        return _build(data, seed, cache)
    except BadInput:
        with contextlib.suppress(OSError):  # as far as nothing is in them
            for folder in missing:
                folder.rmdir()
        raise


def _build(data: config.Data, seed: int, cache: Path) -> Data:
    if data.kind == "text":
        return build_text(data, cache)
    if data.kind == "translation":
        return build_translation(data, seed, cache)
    if data.kind == "symbols":
        return SymbolData(data, seed)
    try:  # only here: text needs no torchvision
        from attnlab.data.images import build_images
    except (ImportError, RuntimeError) as error:
        raise BadInput(
            f"data={data.name}: torchvision cannot be imported ({error}); images need the one "
            f"made for torch {torch.__version__}"
        ) from None
    return build_images(data, seed, cache)


class Order:
    """Positions to (epoch, index): each epoch is a permutation of n samples that depends on its
    number and the seed.

    Batches run across the end of an epoch, so every sample is used exactly once an epoch.
    """

    def __init__(self, n: int, seed: int):
        self.n, self.seed = n, seed
        self._epoch, self._permutation = -1, np.empty(0, int)

    def keys(self, start: int, stop: int) -> list[tuple[int, int]]:
        """The (epoch, index) of positions start to stop - 1."""
        return [(p // self.n, self._index(*divmod(p, self.n))) for p in range(start, stop)]

    def _index(self, epoch: int, position: int) -> int:
        if epoch != self._epoch:
            rng = np.random.default_rng(derive_seed(self.seed, "order", epoch))
            self._epoch, self._permutation = epoch, rng.permutation(self.n)
        return int(self._permutation[position])


class MicroBatches:
    """Keys of the micro-batches of a training run that `chosen` numbers, as DataLoader's
    batch_sampler.
    """

    def __init__(self, order: Order, size: int, chosen: range):
        self.order, self.size, self.chosen = order, size, chosen

    def __len__(self) -> int:
        return len(self.chosen)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for i in self.chosen:
            yield self.order.keys(i * self.size, (i + 1) * self.size)


def train_loader(
    data: Data,
    trainer: config.Trainer,
    seed: int,
    steps: range,
    workers: int = 0,
    pin: bool = False,
) -> DataLoader:
    """This process's micro-batches of some steps, batch_size / micro_batch_size each, in an order
    that the seed decides. workers: processes that load; pin: see torch's DataLoader.
    """
    dataset, micro = data.train(), distributed.micro_batch(trainer)
    per_step = trainer.batch_size // micro
    order = Order(len(dataset), seed)
    mine = range(
        steps.start * per_step + distributed.rank(),
        steps.stop * per_step,
        distributed.world_size(),
    )
    batches = MicroBatches(order, micro, mine)
    return _loader(dataset, batches, workers, pin)


def eval_loader(data: Data, split: str, batch_size: int, pin: bool = False) -> DataLoader:
    """This process's batches of a split: of all processes together, every window or image once.
    The last batch may be smaller.
    """
    dataset = data.evaluation(split)
    n = len(dataset)
    spans = range(0, n, batch_size)
    batches = [[(0, i) for i in range(s, min(s + batch_size, n))] for s in spans]
    return _loader(dataset, batches[distributed.rank() :: distributed.world_size()], 0, pin)


def _loader(dataset, batches, workers: int, pin: bool) -> DataLoader:
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=_whole,  # __getitems__ returns whole batches
        num_workers=workers,
        # a fork shares what is mapped into memory; Python 3.14 would send every worker a copy
        multiprocessing_context="fork" if workers else None,
        pin_memory=pin,
        timeout=HANGS if workers else 0,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else making the iterator draws a global random number
    )


def _start_worker(worker: int) -> None:
    """A signal to the run's process group is the run's own to heed; it ends its workers itself.

    An error reaches the run through the loader. What a worker's other threads would print, like a
    connection that the ending run has closed, would only stand beside the run's own message.
    """
    os.setsid()
    sys.excepthook = lambda *error: None


def _whole(batch):
    return batch
