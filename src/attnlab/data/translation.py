"""Sentence pairs in the hub's row forms (`translation: {de, en}`, or columns `de` and `en`): a
joint vocabulary, and batches of similar lengths.

The byte-level BPE of `bpe` is trained on both languages of the training split. A source is its
tokens and [EOS]; a target is [BOS], its tokens and [EOS].
"""

import logging
import math
import os
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnlab.config.datasets import Translation
from attnlab.config.schema import Body
from attnlab.data.bpe import BOS, EOS, train_bpe
from attnlab.data.cache import array, cached, fingerprint
from attnlab.data.hub import SPLITS, Rows
from attnlab.data.pairs import PAD, Pairs, padded
from attnlab.data.symbols import UNSCORED
from attnlab.errors import BadInput
from attnlab.functional import perplexity
from attnlab.runtime.seeding import derive_seed

log = logging.getLogger(__name__)

SIDES = ("source", "target")
ENCODED_AT_ONCE = 10_000  # sentences: what the tokenizer says of each token takes 120 bytes


@dataclass
class Sentences:
    """Token ids of one side of a split behind one another, [EOS] included; memory-mapped."""

    ids: np.ndarray
    ends: np.ndarray  # where in ids each sentence ends

    def __getitem__(self, index: int) -> np.ndarray:
        return self.ids[self.ends[index - 1] if index else 0 : self.ends[index]]

    @cached_property
    def lengths(self) -> np.ndarray:
        """Of all sentences."""
        return np.diff(self.ends, prepend=0)


@dataclass
class TranslationData:
    """See `loader.Data`. A sample is a group of sentence pairs: see `Groups`.

    sentences: of each split, source and target. texts: of validation and test, source and
    reference lines.
    """

    sentences: dict[str, tuple[Sentences, Sentences]]
    texts: dict[str, tuple[list[str], list[str]]]
    vocab: int
    tokenizer_file: Path
    fingerprint: str
    options: Translation
    seed: int

    even_samples = False

    def train(self) -> "Groups":
        """The training pairs, grouped anew in every epoch."""
        return self._train

    @cached_property
    def _train(self) -> "Groups":
        return Groups(*self.sentences["train"], self.options, self.seed)

    def evaluation(self, split: str) -> "Groups":
        """The pairs of a split, always in the same groups."""
        return Groups(*self.sentences[split], self.options, None)

    @property
    def sample_tokens(self) -> int:
        """Target tokens in a training group, on average."""
        groups = self.train()
        return round(groups.lengths[:, 1].sum() / len(groups))

    def shape(self, arch: Body) -> dict[str, int]:
        """Inputs, outputs and longest sequence of a model."""
        tokens = self.options.sequence_length
        return {"inputs": self.vocab, "outputs": self.vocab, "tokens": tokens}

    def criterion(self, split: str) -> tuple[str, int]:
        """The metric that chooses the best checkpoint, and its sign."""
        return "loss", -1

    def sums(self, logits: Tensor, targets: Tensor) -> Tensor:
        """(2,): loss of all target tokens, and their number."""
        losses = F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), ignore_index=UNSCORED, reduction="sum"
        )
        return torch.stack((losses.double(), (targets != UNSCORED).sum()))

    def metrics(self, split: str, totals: Tensor) -> dict[str, float]:
        """loss: nats per target token, [EOS] included, given the source and all target tokens
        before it, without label smoothing. perplexity: exp(loss).
        """
        total, count = totals.tolist()
        return {"loss": total / count, "perplexity": perplexity(total / count)}

    def baselines(self, split: str) -> dict[str, float]:
        """Perplexity of the training targets' token frequencies (add one)."""
        counts = np.bincount(self.sentences["train"][1].ids, minlength=self.vocab) + 1.0
        losses = -np.log(counts / counts.sum())[self.sentences[split][1].ids]
        return {"unigram_perplexity": math.exp(float(losses.mean()))}


class Groups:
    """Groups of sentence pairs of similar lengths: the samples of translation.

    The pairs are ordered by the length of their longer sentence and cut where another pair would
    make `pairs * longest sentence` exceed data.group_tokens. Pairs of equal lengths are
    interchangeable: with a seed, each epoch puts others together; which lengths a group has, and
    so the number of groups, always stays the same. The longest come first: if memory does not
    suffice, an evaluation shows it at once. Item: Pairs and targets (B, T).
    """

    def __init__(
        self, source: Sentences, target: Sentences, options: Translation, seed: int | None
    ):
        self.source, self.target, self.seed = source, target, seed
        lengths = np.stack((source.lengths, target.lengths), axis=1)
        fits = (lengths <= options.sequence_length).all(1)
        self.pairs = np.flatnonzero(fits)  # those that are used
        self.lengths = lengths[self.pairs]
        self.bounds = _cut(np.sort(self.lengths.max(1))[::-1], options.group_tokens)
        self._epoch, self._order = -1, np.empty(0, int)

    def __len__(self) -> int:
        return len(self.bounds) - 1

    def members(self, epoch: int, index: int) -> np.ndarray:
        """Which pairs of the split are in a group."""
        if epoch != self._epoch:
            count = len(self.pairs)
            rank = np.arange(count)
            if self.seed is not None:
                rank = np.random.default_rng(derive_seed(self.seed, "groups", epoch)).permutation(
                    count
                )
            keys = (rank, -self.lengths[:, 0], -self.lengths[:, 1], -self.lengths.max(1))
            self._epoch, self._order = epoch, self.pairs[np.lexsort(keys)]
        return self._order[self.bounds[index] : self.bounds[index + 1]]

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Pairs, Tensor]:
        """The pairs of (epoch, index) keys, as one batch."""
        chosen = [int(pair) for key in keys for pair in self.members(*key)]
        targets = [self.target[i] for i in chosen]
        read = [np.concatenate(([BOS], target[:-1])) for target in targets]
        pairs = Pairs(padded([self.source[i] for i in chosen], PAD), padded(read, PAD))
        return pairs, padded(targets, UNSCORED)


def _cut(longest: np.ndarray, tokens: int) -> np.ndarray:
    """Bounds of groups of sentences with falling lengths."""
    bounds, start = [0], 0
    for i, _ in enumerate(longest):
        if (i + 1 - start) * longest[start] > tokens:
            bounds.append(start := i)
    return np.array([*bounds, len(longest)])


def build_translation(data: Translation, seed: int, cache: Path) -> TranslationData:
    """The configured sentence pairs, from the cache where their content was seen before.

    Errors: `BadInput` for a missing or damaged source, a language that it lacks, an empty
    sentence or one longer than data.sequence_length in validation or test. Such pairs of the
    training split are left out.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    rows = Rows(data, [], cache)
    key = {"content": rows.fingerprint, "languages": [data.source, data.target]}
    key |= {"vocab_size": data.vocab_size}

    def build(made: Path) -> None:
        _prepare(rows, data, made)

    folder = cached(cache, data.name, key, build)
    sentences = {
        split: tuple(
            Sentences(array(folder, f"{split}_{side}"), array(folder, f"{split}_{side}_ends"))
            for side in SIDES
        )
        for split in SPLITS
    }
    for split in SPLITS:
        lengths = np.maximum(*(side.lengths for side in sentences[split]))
        longer, longest = int((lengths > data.sequence_length).sum()), int(lengths.max())
        if longer and (split != "train" or longer == len(lengths)):
            raise BadInput(
                f"data.sequence_length={data.sequence_length}: split {split} has sentences of up "
                f"to {longest} tokens; at least {longest} is needed"
            )
        if longer:
            log.info("%d training pairs are longer than data.sequence_length: left out", longer)
    texts = {
        split: tuple(
            (folder / f"{split}.{side}.txt").read_text(encoding="utf-8").split("\n")[:-1]
            for side in SIDES
        )
        for split in SPLITS[1:]
    }
    return TranslationData(
        sentences=sentences,
        texts=texts,
        vocab=int(array(folder, "vocab")),
        tokenizer_file=folder / "tokenizer.json",
        fingerprint=fingerprint(folder),
        options=data,
        seed=seed,
    )


def _prepare(rows: Rows, data: Translation, folder: Path) -> None:
    """Write token ids of every split and the texts of validation and test."""
    if missing := [split for split in SPLITS if split not in rows.splits]:
        raise BadInput(f"{rows.where}: no split {missing[0]}; it has {', '.join(rows.splits)}")
    lines = {split: _lines(rows, split, data) for split in SPLITS}
    tokenizer = train_bpe(chain(*lines["train"]), data.vocab_size)
    vocab = tokenizer.get_vocab_size()
    dtype = np.uint16 if vocab <= 2**16 else np.int32
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    np.save(folder / "vocab.npy", vocab)
    for split in SPLITS:
        for side, texts in zip(SIDES, lines[split], strict=True):
            starts = range(0, len(texts), ENCODED_AT_ONCE)
            chunks = (texts[start : start + ENCODED_AT_ONCE] for start in starts)
            encoded = (e for chunk in chunks for e in tokenizer.encode_batch_fast(chunk))
            sentences = [np.array([*e.ids, EOS], dtype) for e in encoded]
            np.save(folder / f"{split}_{side}.npy", np.concatenate(sentences))
            np.save(folder / f"{split}_{side}_ends.npy", np.cumsum([*map(len, sentences)]))
            if split != "train":
                text = "".join(f"{line}\n" for line in texts)
                (folder / f"{split}.{side}.txt").write_text(text, encoding="utf-8")


def _lines(rows: Rows, split: str, data: Translation) -> tuple[list[str], list[str]]:
    """Sources and targets, each in one line with single spaces. In training, pairs with an empty
    sentence are left out.
    """
    sides: tuple[list[str], list[str]] = ([], [])
    for number, row in enumerate(rows.splits[split]):
        row = row.get("translation", row) or {}
        this = f"{rows.where}: split {split}, row {number}"
        if not isinstance(row, dict):
            raise BadInput(f"{this}: must hold a text for each language; it is {row!r:.60}")
        missing = sorted({data.source, data.target} - row.keys())
        if missing:
            raise BadInput(
                f"{this} has no language {missing[0]}; it has {', '.join(sorted(row)) or 'none'}"
            )
        texts = [row[language] or "" for language in (data.source, data.target)]
        if odd := [text for text in texts if not isinstance(text, str)]:
            raise BadInput(f"{this}: must hold text; it has {odd[0]!r:.60}")
        pair = [" ".join(text.split()) for text in texts]
        if all(pair):
            for side, text in zip(sides, pair, strict=True):
                side.append(text)
        elif split != "train":
            raise BadInput(f"{this} has an empty sentence")
    if not sides[0]:
        raise BadInput(f"{rows.where}: split {split} has no sentence pair that is not empty")
    return sides
