"""Translations by a trained encoder-decoder transformer."""

from pathlib import Path

import numpy as np
import torch

from attnlab.config.messages import checked
from attnlab.config.schema import Config
from attnlab.data.bpe import EOS, detokenize, plain_text
from attnlab.data.pairs import PAD, Pairs, padded
from attnlab.errors import BadInput
from attnlab.inspection.trained import trained
from attnlab.training import translate
from attnlab.training.update import precision


def translations(
    cfg: Config,
    folder: Path,
    texts: list[str],
    device: torch.device,
    beam_width: int | None = None,
    length_penalty: float | None = None,
) -> list[str]:
    """A translation of each text by the best checkpoint of the run in `folder`; its beam search is
    the run's own where nothing else is given.

    Errors: `BadInput` for a run of another kind, a text that is empty or too long, a width or
    penalty that the configuration would not take, and for a checkpoint or tokenizer that is
    missing or damaged.
    """
    if cfg.data.kind != "translation":
        raise BadInput(f"run={folder}: does not translate (data={cfg.data.name})")
    given = {"beam_width": beam_width, "length_penalty": length_penalty}
    given = {key: value for key, value in given.items() if value is not None}
    options = checked(type(cfg.data), cfg.data.model_dump() | given)
    tokenizer, model = trained(cfg, folder, device)
    source = padded([encoded(cfg, tokenizer, text) for text in texts], PAD)
    pairs = Pairs(source, source[:, :0]).to(device)  # there is no target yet
    with precision(cfg.trainer, device)():
        found = translate.translate(model, pairs, options)
    return [detokenize(tokenizer, ids) for ids in found]


def encoded(cfg: Config, tokenizer, text: str) -> np.ndarray:
    """Its token ids, as the encoder reads them. Errors: `BadInput` if it is empty or too long."""
    ids = np.array([*plain_text(tokenizer).encode(" ".join(text.split())).ids, EOS])
    if not 1 < len(ids) <= cfg.data.sequence_length:
        raise BadInput(
            f"text={text!r}: must have 1 to {cfg.data.sequence_length - 1} tokens; it has "
            f"{len(ids) - 1}"
        )
    return ids
