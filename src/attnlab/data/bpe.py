"""Byte-level BPE (Sennrich et al., arXiv 1508.07909) for sentences: no text is out of its
vocabulary, and decoding gives back the text, as BLEU needs it.
"""

from collections.abc import Iterable

SPECIAL = ["[PAD]", "[BOS]", "[EOS]"]  # tokens 0, 1 and 2
BOS, EOS = 1, 2


def train_bpe(texts: Iterable[str], vocab_size: int):
    """A byte-level BPE of so many tokens; the same one every time."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return plain_text(tokenizer)


def plain_text(tokenizer):
    """The tokenizer, for which a text that contains "[PAD]" has these five characters, and no
    padding. Its file does not say so.
    """
    tokenizer.encode_special_tokens = True
    return tokenizer


def detokenize(tokenizer, ids: list[int]) -> str:
    """The line that token ids stand for, single spaces between its words."""
    return " ".join(tokenizer.decode(ids, skip_special_tokens=True).split())
