"""Text as token ids: read rows, tokenise, cache; training blocks and evaluation windows over them.

A row is a line, or several with their line breaks: a document. The hub's WikiText rows hold "" for
a blank line; the raw file, which the released code reads, has a line end there as well, so `lines`
puts it back. As in the released code, "\\n" becomes [SEP] and "<unk>" becomes [UNK]; a tokenizer
without these tokens sees the text as it is.
"""

import functools
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from attnlab.config.datasets import Text
from attnlab.config.schema import Body
from attnlab.data.cache import array, cached, fingerprint, growing_array
from attnlab.data.embedded import TEXT, embedded
from attnlab.data.hub import SPLITS, Rows
from attnlab.data.splits import HOLD_OUT, STRETCHES, cut
from attnlab.data.tokenizer import choose_tokenizer, marked, vocabulary
from attnlab.errors import BadInput
from attnlab.functional import perplexity

# What is in memory at a time, however large the text is: rows that are read, characters that are
# tokenised (but at least one row of each), tokens that are counted.
READ_ROWS, ENCODE_CHARACTERS, COUNT_TOKENS = 1000, 2**22, 2**24


@dataclass
class TextData:
    """Token ids of each split, memory-mapped, with the words they came from.

    words: words of each split, a line end counting as one (so WikiText's test split has 245,570);
    all of them are in `tokens`.
    """

    tokens: dict[str, np.ndarray]
    words: dict[str, int]
    vocab: int
    tokenizer_file: Path
    fingerprint: str
    block: int
    stride: int

    even_samples = True

    def train(self) -> "Blocks":
        """Consecutive blocks of block + 1 tokens, none shared, as in the released code."""
        count = len(self.tokens["train"]) // (self.block + 1)
        starts = np.arange(count) * (self.block + 1)
        return Blocks(self.tokens["train"], starts, np.zeros(count, int), self.block)

    def evaluation(self, split: str) -> "Blocks":
        """Windows of `block` targets every `stride` tokens; the last ends with the split.

        Together the targets behind each window's first `overlap` score every token but the first
        of the split once.
        """
        last = len(self.tokens[split]) - 1 - self.block
        starts = np.append(np.arange(0, last, self.stride), last)
        ends = starts + self.block
        overlap = np.append(0, np.maximum(0, ends[:-1] - starts[1:]))
        return Blocks(self.tokens[split], starts, overlap, self.block)

    @property
    def sample_tokens(self) -> int:
        """Tokens in a training sample."""
        return self.block

    def shape(self, arch: Body) -> dict[str, int]:
        """Inputs, outputs and longest sequence of a model."""
        return {"inputs": self.vocab, "outputs": self.vocab, "tokens": self.block}

    def criterion(self, split: str) -> tuple[str, int]:
        """The metric that chooses the best checkpoint, and its sign: the released code, which
        selects on test, does so by its own variant of perplexity.
        """
        return ("perplexity_overlap" if split == "test" else "loss"), -1

    def sums(self, logits: Tensor, targets: Tensor, overlap: Tensor) -> Tensor:
        """(4,): loss of targets scored for the first time, their number, the windows' mean losses
        summed, and the number of windows.
        """
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view_as(targets).double()
        fresh = torch.arange(targets.shape[1], device=targets.device) >= overlap[:, None]
        windows = torch.tensor(len(targets), device=targets.device)
        return torch.stack(((losses * fresh).sum(), fresh.sum(), losses.mean(1).sum(), windows))

    def metrics(self, split: str, totals: Tensor) -> dict[str, float]:
        """loss: nats per token, each token but the split's first scored once, with up to
        data.sequence_length tokens of context. perplexity: exp(loss). word_perplexity: exp(total
        loss / words). perplexity_overlap: the released code's variant, exp of the mean over
        windows of their mean loss, tokens in the overlap counted in each window they are in.
        """
        total, count, means, windows = totals.tolist()
        return {
            "loss": total / count,
            "perplexity": perplexity(total / count),
            "word_perplexity": perplexity(total / self.words[split]),
            "perplexity_overlap": perplexity(means / windows),
        }

    def baselines(self, split: str) -> dict[str, float]:
        """Perplexity of the training split's token frequencies (add one) on the same tokens."""
        counts, train = np.ones(self.vocab), self.tokens["train"]
        for start in range(0, len(train), COUNT_TOKENS):
            counts += np.bincount(train[start : start + COUNT_TOKENS], minlength=self.vocab)
        losses = -np.log(counts / counts.sum())[self.tokens[split][1:]]
        return {"unigram_perplexity": math.exp(float(losses.mean()))}


@dataclass
class Blocks:
    """Windows into one array of tokens; item (inputs, targets, overlap), each (B, block) but
    overlap (B,).
    """

    tokens: np.ndarray
    starts: np.ndarray
    overlap: np.ndarray
    block: int

    def __len__(self) -> int:
        return len(self.starts)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor, Tensor]:
        """Blocks of (epoch, index) keys; the epoch makes no difference to text."""
        index = np.array([i for _, i in keys])
        span = self.starts[index][:, None] + np.arange(self.block + 1)
        ids = torch.from_numpy(self.tokens[span].astype(np.int64))
        inputs, targets = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()  # to be pinned
        return inputs, targets, torch.from_numpy(self.overlap[index])


def build_text(data: Text, cache: Path) -> TextData:
    """The configured text, from the cache where its content and tokenizer were seen before.

    Errors: `BadInput` for a missing or damaged source or tokenizer, or a split shorter than a
    block.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # the library's threads
    made = embedded(data.path, TEXT)
    source = made(data.text_column) if made else Rows(data, [data.text_column], cache)
    splits = functools.cache(lambda: split_rows(source, data))
    tokenizer_key, make_tokenizer = choose_tokenizer(data, splits)
    keys = ("text_column", "validation_size", "test_size")
    key = {
        "content": source.fingerprint,
        "tokenizer": tokenizer_key,
        "cut": [HOLD_OUT, STRETCHES],
        **{key: getattr(data, key) for key in keys},
    }

    def build(folder: Path) -> None:
        _tokenise(source.where, splits(), make_tokenizer(), folder)

    folder = cached(cache, data.name, key, build)
    tokens = {split: array(folder, split) for split in SPLITS}
    shortest = min(SPLITS, key=lambda split: len(tokens[split]))
    if len(tokens[shortest]) <= data.sequence_length:
        raise BadInput(
            f"data.sequence_length={data.sequence_length}: split {shortest} of {source.where} has "
            f"only {len(tokens[shortest])} tokens; at most {len(tokens[shortest]) - 1} is allowed"
        )
    words, vocab = array(folder, "words"), int(array(folder, "vocab"))
    return TextData(
        tokens=tokens,
        words=dict(zip(SPLITS, words.tolist(), strict=True)),
        vocab=vocab,
        tokenizer_file=folder / "tokenizer.json",
        fingerprint=fingerprint(folder),
        block=data.sequence_length,
        stride=data.eval_stride,
    )


def split_rows(source, data: Text) -> dict:
    """The column of text of every split, sliced as a list is; splits that the source lacks are cut
    from its training rows (see `splits.cut`).
    """
    splits = dict(source.splits)
    if len(splits) < len(SPLITS):
        train = splits["train"]
        parts = cut(len(train), data, list(splits), source.where)
        splits |= {split: train.select(rows) for split, rows in parts.items()}
    return {split: splits[split][data.text_column] for split in SPLITS}


def _tokenise(where: str, splits: dict, tokenizer, folder: Path) -> None:
    """Write token ids and word counts of every split, and the tokenizer, into a folder."""
    vocab = vocabulary(tokenizer)
    dtype = np.uint16 if vocab <= 2**16 else np.int32
    (folder / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    np.save(folder / "vocab.npy", np.array(vocab))
    words = []
    total = sum(map(len, splits.values()))
    # disable=None: only on a terminal
    with tqdm(total=total, desc="tokenising", unit=" rows", delay=2, disable=None) as bar:
        for split in SPLITS:
            count = ends = 0
            with growing_array(folder / f"{split}.npy", dtype) as append:
                for chunk in _chunks(splits[split], f"{where}: split {split}"):
                    bar.update(len(chunk))
                    count += sum(len(text.split()) for text in chunk)
                    ends += sum(text.count("\n") for text in chunk)
                    chunk = marked(tokenizer, chunk)
                    for encoded in tokenizer.encode_batch_fast(chunk, add_special_tokens=False):
                        append(np.array(encoded.ids, dtype=dtype))
            words.append(count + ends)
            if not count:
                raise BadInput(f"{where}: split {split} has no words")
    np.save(folder / "words.npy", np.array(words))


def _chunks(rows, where: str) -> Iterator[list[str]]:
    """All rows as lines, in lists of ENCODE_CHARACTERS characters or one row."""
    chunk: list[str] = []
    size = 0
    for start in range(0, len(rows), READ_ROWS):
        for number, row in enumerate(rows[start : start + READ_ROWS], start):
            if row is None:
                raise BadInput(f"{where}, row {number} has no text")
            if chunk and size + len(row) > ENCODE_CHARACTERS:
                yield chunk
                chunk, size = [], 0
            chunk += lines([row])
            size += len(row)
    if chunk:
        yield chunk


def lines(rows: list[str]) -> list[str]:
    """The rows as lines of a file: each ends in a line end, blank ones too."""
    return [row if row.endswith("\n") else f"{row}\n" for row in rows]
