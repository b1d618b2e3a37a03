"""Metrics of a whole split; the data set defines them."""

import torch
from torch import Tensor, nn

from attnlab.data.loader import Data, eval_loader
from attnlab.functional import Autocast
from attnlab.runtime import distributed

PREFIX = {"validation": "val", "test": "test"}


def to_device(batch: tuple[Tensor, ...], device: torch.device) -> tuple[Tensor, ...]:
    """A batch on the device; the copy overlaps with computation there."""
    return tuple(t.to(device, non_blocking=True) for t in batch)


@torch.no_grad()
def evaluate(
    model: nn.Module, data: Data, split: str, batch_size: int, autocast: Autocast
) -> dict[str, float]:
    """Metrics of one split, keyed `<prefix>/<metric>` with prefix val or test; see `metrics` of
    the data set. Every sample counts once, and sums are in float64.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    totals = torch.zeros((), dtype=torch.float64, device=device)
    for batch in eval_loader(data, split, batch_size, pin=device.type == "cuda"):
        batch = to_device(batch, device)
        with autocast():
            logits = model(batch[0]).float()
        totals = totals + data.sums(logits, *batch[1:])
    model.train(was_training)
    totals = distributed.all_reduce_in_order(totals)
    return {f"{PREFIX[split]}/{k}": v for k, v in data.metrics(split, totals).items()}
