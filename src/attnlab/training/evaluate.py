"""Measures on a whole split: perplexity of text, accuracy on images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnlab.data.loader import Data, eval_loader
from attnlab.data.text import TextData


def to_device(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """A batch on the device; copies overlap with work there."""
    return tuple(t.to(device, non_blocking=True) for t in batch)


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, split: str, batch_size: int, autocast
) -> dict[str, float]:
    """Metrics of one split, keyed `<prefix>/<metric>` with prefix val or test.

    Text: loss (nats per token, each token but the split's first scored once, with up to
    data.sequence_length tokens of context), perplexity = exp(loss), word_perplexity = exp(total
    loss / words), and perplexity_overlap, the released code's variant: exp of the mean over
    windows of their mean loss, tokens in the overlap counted in each window they are in. Images:
    loss (nats per image), accuracy (share from 0 to 1).
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    text = isinstance(data, TextData)
    totals = torch.zeros(3, dtype=torch.float64, device=device)
    for batch in eval_loader(data, split, batch_size, pin=device.type == "cuda"):
        batch = to_device(batch, device)
        with autocast():
            logits = model(batch[0]).float()
        totals += _text_sums(logits, *batch[1:]) if text else _image_sums(logits, batch[1])
    model.train(was_training)
    total, count, other = totals.tolist()
    metrics = {"loss": total / count}
    if text:
        windows = len(data.evaluation(split))
        metrics["perplexity"] = _exp(total / count)
        metrics["word_perplexity"] = _exp(total / data.words[split])
        metrics["perplexity_overlap"] = _exp(other / windows)
    else:
        metrics["accuracy"] = other / count
    prefix = "test" if split == "test" else "val"
    return {f"{prefix}/{name}": value for name, value in metrics.items()}


def _text_sums(logits: Tensor, targets: Tensor, overlap: Tensor) -> Tensor:
    """Loss of targets scored for the first time, their number, and the windows' mean losses
    summed.
    """
    losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
    losses = losses.view_as(targets).double()
    fresh = torch.arange(targets.shape[1], device=targets.device) >= overlap[:, None]
    return torch.stack(((losses * fresh).sum(), fresh.sum(), losses.mean(1).sum()))


def _image_sums(logits: Tensor, labels: Tensor) -> Tensor:
    losses = F.cross_entropy(logits, labels, reduction="none").double()
    correct = (logits.argmax(-1) == labels).sum()
    return torch.stack((losses.sum(), torch.tensor(len(labels), device=labels.device), correct))


def _exp(loss: float) -> float:
    return math.exp(min(loss, 700.0))  # beyond this a float overflows
