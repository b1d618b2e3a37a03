"""The model and the tokenizer of a run of text or translation."""

from pathlib import Path

import torch

from attnlab.config.schema import Config
from attnlab.data.tokenizer import load_tokenizer, vocabulary
from attnlab.models.transformer import build_model
from attnlab.training import checkpoint


def trained(cfg: Config, folder: Path, device: torch.device):
    """(tokenizer, model) of the run in `folder`: its best checkpoint, in evaluation mode.

    Errors: `BadInput` if the checkpoint or the tokenizer is missing or damaged.
    """
    best = checkpoint.load_best(folder / "checkpoints")
    file = folder / "tokenizer.json"
    tokenizer = load_tokenizer(file, str(file))
    vocab = vocabulary(tokenizer)
    sizes = {"inputs": vocab, "outputs": vocab, "tokens": cfg.data.sequence_length}
    model = build_model(cfg.arch, cfg.model, cfg.seed, **sizes)
    checkpoint.load_weights(model, best, folder)
    return tokenizer, model.to(device).eval()
