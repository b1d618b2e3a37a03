"""What the metrics do not show: the health of the mechanisms."""

import logging

import torch
from torch import Tensor, nn

from attnlab.models.attention.neural import NeuralAttention

log = logging.getLogger(__name__)

SEQUENCES = 4  # of the given batch; enough rows for a share, and memory of one sequence at a time
TOLERANCE = 1e-6


@torch.no_grad()
def dead_scorers(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Share of rows with a constant score in every Neural Attention layer:
    attention/<layer>/dead_scorer.

    inputs: a batch as the model takes it. A row is one query of one head; its score is constant
    if it differs by at most 1e-6 (relative to its size, at least 1) over the keys it sees. Such
    a row attends uniformly; when all rows do because the last hidden units are ReLUs that never
    fire, the score network has no gradient and stays dead.
    """
    shares: dict[str, float] = {}
    handles = []
    for layer, block in enumerate(model.blocks):
        mechanism = block.attention.mechanism
        if isinstance(mechanism, NeuralAttention):
            rows: list[Tensor] = []
            causal = block.attention.causal

            def collect(module, args, rows=rows, causal=causal):
                rows.append(_constant_rows(module.scores(*args[:2]), causal))

            handles.append((layer, rows, mechanism.register_forward_pre_hook(collect)))
    if not handles:
        return {}
    was_training = model.training
    model.eval()
    try:
        for sequence in inputs[:SEQUENCES]:
            model(sequence[None])
    finally:
        for _, _, handle in handles:
            handle.remove()
        model.train(was_training)
    for layer, rows, _ in handles:
        shares[f"attention/{layer}/dead_scorer"] = torch.cat(rows).double().mean().item()
    return shares


def _constant_rows(scores: Tensor, causal: bool) -> Tensor:
    """One boolean for each row of scores (B, H, N, N) that sees at least two keys."""
    low, high = scores.float(), scores.float()
    if causal:
        hidden = torch.ones(scores.shape[-2:], device=scores.device).triu(1).bool()
        low, high = low.masked_fill(hidden, torch.inf), high.masked_fill(hidden, -torch.inf)
        low, high = low[..., 1:, :], high[..., 1:, :]  # the first query sees one key
    low, high = low.amin(-1), high.amax(-1)
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return (high - low <= TOLERANCE * size).flatten()


def warn_if_dead(shares: dict[str, float], step: int) -> None:
    """Say what a dead scorer means, for each layer that has one."""
    for key, share in shares.items():
        if share == 1:
            layer = key.split("/")[1]
            log.warning(
                "step %d: the score network of layer %s is dead: every row has a constant score, "
                "so this layer averages all visible tokens and its score network gets no "
                "gradient. Another seed, model.activation or a wider model.hidden avoids it.",
                step,
                layer,
            )
