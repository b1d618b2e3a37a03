"""Tokenizers: from the hub, from a file, or a WordPiece trained on the training split."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from attnlab.config.datasets import Text
from attnlab.data.cache import digest, file_digest
from attnlab.errors import BadInput
from attnlab.runtime.network import prepare_hub

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def choose_tokenizer(data: Text, splits: Callable[[], dict]) -> tuple[str, Callable]:
    """What identifies data.tokenizer, and a function that makes it; `train` needs the rows of the
    training split, which `splits` gives. Errors: `BadInput` if it cannot be had.
    """
    name = data.tokenizer
    if name == "train":
        sizes = data.vocab_size, data.alphabet_size
        return f"train {sizes}", lambda: _train_wordpiece(splits()["train"], *sizes)
    path = Path(name).expanduser()
    path = path / "tokenizer.json" if path.is_dir() else path
    if path.is_file():
        tokenizer = load_tokenizer(path, f"data.tokenizer={name}")
        return file_digest(path), lambda: tokenizer
    if name.startswith((".", "/", "~")) or name.endswith(".json"):
        raise BadInput(f"data.tokenizer={name}: no such file")
    prepare_hub()
    from tokenizers import Tokenizer

    try:
        tokenizer = prepared(Tokenizer.from_pretrained(name))
    except Exception as error:  # the hub's errors share no base class
        raise BadInput(
            f"data.tokenizer={name}: cannot be loaded from the hub ({type(error).__name__}); "
            "without a network: data.tokenizer=train or a tokenizer.json, and data.path=<folder>"
        ) from None
    return digest(tokenizer.to_str().encode()), lambda: tokenizer


def load_tokenizer(file: Path, name: str):
    """The tokenizer of a tokenizer.json. Errors: `BadInput` that begins with `name`."""
    from tokenizers import Tokenizer

    try:
        return prepared(Tokenizer.from_file(str(file)))
    except Exception as error:  # the library raises nothing more special
        raise BadInput(f"{name}: not a tokenizer.json: {error}") from None


def vocabulary(tokenizer) -> int:
    """How many embeddings its ids need: the largest is one less. Ids may have gaps."""
    return 1 + max(tokenizer.get_vocab().values())


def marked(tokenizer, texts: list[str]) -> list[str]:
    """Texts as a language model is trained on them: the end of a line is [SEP] and `<unk>` is
    [UNK], as in the released code, where the tokenizer has both.
    """
    if None in map(tokenizer.token_to_id, ("[SEP]", "[UNK]")):
        return texts
    return [text.replace("<unk>", "[UNK]").replace("\n", "[SEP]") for text in texts]


def prepared(tokenizer):
    """The tokenizer without truncation and padding, which files saved by other libraries may
    carry and which would cut or fill every row. A WordPiece without a decoder of its own gets one
    that joins its pieces.
    """
    from tokenizers import decoders, models

    tokenizer.no_truncation()
    tokenizer.no_padding()
    if tokenizer.decoder is None and isinstance(tokenizer.model, models.WordPiece):
        prefix = tokenizer.model.continuing_subword_prefix
        # cleanup would also write "do n't" as "don't", and "do not" as well
        tokenizer.decoder = decoders.WordPiece(prefix, cleanup=False)
    return tokenizer


def _train_wordpiece(rows, vocab_size: int, alphabet_size: int | None):
    """A cased WordPiece as BERT's, trained on the training split; the same one every time.

    alphabet_size: the number of most frequent characters that it knows; None: all. The library
    could limit it too, but chooses among equally frequent ones by chance.

    The library's trainer numbers the continuing characters (##a) in an order that differs from
    process to process, and breaks ties by number. So it runs twice: once to learn which there are,
    once with their order given.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    def text() -> Iterator[str]:
        return ((row or "").replace("<unk>", " ") for row in rows)

    limit: dict = {}
    if alphabet_size:
        counts: Counter[str] = Counter()
        for line in text():
            counts.update(line)
        visible = [character for character in counts if not character.isspace()]
        alphabet = sorted(visible, key=lambda c: (-counts[c], c))[:alphabet_size]
        limit = {"initial_alphabet": alphabet, "limit_alphabet": len(alphabet)}

    def bare(model):
        tokenizer = Tokenizer(model)
        tokenizer.normalizer = normalizers.BertNormalizer(lowercase=False)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        return tokenizer

    def trained_vocab(first: list[str]) -> dict[str, int]:
        tokenizer = bare(models.WordPiece(unk_token="[UNK]"))
        trainer = trainers.WordPieceTrainer(
            vocab_size=vocab_size,
            special_tokens=first,
            show_progress=False,
            **limit,
        )
        tokenizer.train_from_iterator(text(), trainer)
        return tokenizer.get_vocab()

    continuing = sorted(t for t in trained_vocab(SPECIAL) if len(t) == 3 and t.startswith("##"))
    tokenizer = bare(models.WordPiece(trained_vocab(SPECIAL + continuing), unk_token="[UNK]"))
    tokenizer.add_special_tokens(SPECIAL)
    return prepared(tokenizer)
