"""Translations by a trained encoder-decoder transformer."""

from pathlib import Path

import numpy as np
import torch

from attnlab.config.schema import Config
from attnlab.data.pairs import PAD, Pairs, padded
from attnlab.data.tokenizer import load_tokenizer
from attnlab.data.translation import EOS, detokenize
from attnlab.errors import BadInput
from attnlab.models.transformer import build_model
from attnlab.training import checkpoint, translate


def translations(
    cfg: Config,
    folder: Path,
    texts: list[str],
    beam_width: int,
    length_penalty: float,
    device: torch.device,
) -> list[str]:
    """A translation of each text by the best checkpoint of the run in `folder`.

    Errors: `BadInput` for a run of another kind, a text that is empty or too long, a width below
    1, a penalty below 0, and for a checkpoint or tokenizer that is missing or damaged.
    """
    if cfg.data.kind != "translation":
        raise BadInput(f"run={folder}: does not translate (data={cfg.data.name})")
    if beam_width < 1:
        raise BadInput(f"beam_width={beam_width}: must be at least 1")
    if not length_penalty >= 0:
        raise BadInput(f"length_penalty={length_penalty}: must be at least 0")
    best = checkpoint.load_best(folder / "checkpoints")
    tokenizer = load_tokenizer(folder / "tokenizer.json", str(folder / "tokenizer.json"))
    vocab, most = tokenizer.get_vocab_size(), cfg.data.sequence_length
    rows = [np.array([*tokenizer.encode(" ".join(text.split())).ids, EOS]) for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not 1 < len(row) <= most:
            raise BadInput(
                f"text={text!r}: must have 1 to {most - 1} tokens; it has {len(row) - 1}"
            )
    sizes = {"inputs": vocab, "outputs": vocab, "tokens": most}
    model = build_model(cfg.arch, cfg.model, cfg.seed, **sizes)
    checkpoint.fill(model, best, folder)
    source = padded(rows, PAD)
    pairs = Pairs(source, source[:, :0]).to(device)  # there is no target yet
    search = {"beam_width": beam_width, "length_penalty": length_penalty}
    options = cfg.data.model_copy(update=search)
    found = translate.translate(model.to(device).eval(), pairs, options)
    return [detokenize(tokenizer, ids) for ids in found]
