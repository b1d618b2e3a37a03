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
    tokenizer, model = translator(cfg, folder, device)
    source = padded([encoded(cfg, tokenizer, text) for text in texts], PAD)
    pairs = Pairs(source, source[:, :0]).to(device)  # there is no target yet
    search = {"beam_width": beam_width, "length_penalty": length_penalty}
    options = cfg.data.model_copy(update=search)
    found = translate.translate(model, pairs, options)
    return [detokenize(tokenizer, ids) for ids in found]


def translator(cfg: Config, folder: Path, device: torch.device):
    """The tokenizer and the trained model, in evaluation mode, of the translation run in `folder`.

    Errors: `BadInput` if its best checkpoint or its tokenizer is missing or damaged.
    """
    best = checkpoint.load_best(folder / "checkpoints")
    tokenizer = load_tokenizer(folder / "tokenizer.json", str(folder / "tokenizer.json"))
    vocab = tokenizer.get_vocab_size()
    sizes = {"inputs": vocab, "outputs": vocab, "tokens": cfg.data.sequence_length}
    model = build_model(cfg.arch, cfg.model, cfg.seed, **sizes)
    checkpoint.fill(model, best, folder)
    return tokenizer, model.to(device).eval()


def encoded(cfg: Config, tokenizer, text: str) -> np.ndarray:
    """Its token ids, as the encoder reads them. Errors: `BadInput` if it is empty or too long."""
    ids = np.array([*tokenizer.encode(" ".join(text.split())).ids, EOS])
    if not 1 < len(ids) <= cfg.data.sequence_length:
        raise BadInput(
            f"text={text!r}: must have 1 to {cfg.data.sequence_length - 1} tokens; it has "
            f"{len(ids) - 1}"
        )
    return ids
