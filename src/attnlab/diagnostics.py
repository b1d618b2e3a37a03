"""What the metrics do not show: the health of the mechanisms, and what depth does to the tokens.

Shapes: B sequences, H heads, N tokens, W width.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from attnlab.data.symbols import UNSCORED
from attnlab.masking import causal_mask
from attnlab.models.attention.neural import NeuralAttention

log = logging.getLogger(__name__)

SEQUENCES = 4  # of the given batch; enough rows for a share, and memory of one sequence at a time
TOLERANCE = 1e-6

Measured = dict[str, Tensor]  # name -> values to take the mean of


@contextmanager
def observed(
    model: nn.Module,
    attention: Callable[[nn.Module, Tensor, Tensor], Measured],
    tokens: Callable[[Tensor], Measured] | None = None,
) -> Iterator[dict[str, list[Tensor]]]:
    """While open, the model is in eval mode, and what passes through its layers is measured.

    attention: gets a block's attention and the queries and keys (B, H, N, D) of its mechanism.
    tokens: gets what enters the first block and what leaves each (B, N, W). Gives the values of
    attention/<layer>/<name>, representation/input/<name> and representation/<layer>/<name>.
    """
    seen: dict[str, list[Tensor]] = defaultdict(list)

    @torch.no_grad()
    def see(place: str, measure: Callable[..., Measured], *what) -> None:
        for name, values in measure(*what).items():
            seen[f"{place}/{name}"].append(values.flatten())

    def mechanism(layer, part, module, args):
        see(f"attention/{layer}", attention, part, *args[:2])

    def enters(module, args):
        see("representation/input", tokens, args[0])

    def leaves(layer, module, args, output):
        see(f"representation/{layer}", tokens, output)

    was_training, handles = model.training, []
    try:
        for layer, block in enumerate(model.blocks):
            hook = partial(mechanism, layer, block.attention)
            handles.append(block.attention.mechanism.register_forward_pre_hook(hook))
            if tokens:
                handles.append(block.register_forward_hook(partial(leaves, layer)))
        if tokens:
            handles.append(model.blocks[0].register_forward_pre_hook(enters))
        model.eval()
        yield seen
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)


def means(seen: dict[str, list[Tensor]]) -> dict[str, float]:
    """Mean of each key's values; those not finite (0/0: not defined) are left out, and so is a key
    without any other.
    """
    finite = {}
    for key, parts in seen.items():
        values = torch.cat(parts).double()
        values = values[values.isfinite()]
        if len(values):
            finite[key] = values.mean().item()
    return finite


@torch.no_grad()
def dead_scorers(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Share of rows with a constant score in every Neural Attention layer:
    attention/<layer>/dead_scorer.

    inputs: a batch as the model takes it. A row is one query of one head; its score is constant
    if it differs by at most 1e-6 (relative to its size, at least 1) over the keys it sees. Such
    a row attends uniformly; when all rows do because the last hidden units are ReLUs that never
    fire, the score network has no gradient and stays dead.
    """
    if not any(isinstance(b.attention.mechanism, NeuralAttention) for b in model.blocks):
        return {}
    with observed(model, _dead) as seen:
        for sequence in inputs[:SEQUENCES]:
            model(sequence[None])
    return means(seen)


def _dead(attention: nn.Module, q: Tensor, k: Tensor) -> Measured:
    if not isinstance(attention.mechanism, NeuralAttention):
        return {}
    unscaled = attention.mechanism.scores(q, k) / attention.mechanism.scale
    return {"dead_scorer": _constant_rows(unscaled, attention.causal)}


def _constant_rows(scores: Tensor, causal: bool) -> Tensor:
    """One boolean for each row of scores (B, H, N, N) that sees at least two keys."""
    low, high = scores.float(), scores.float()
    if causal:
        hidden = ~causal_mask(*scores.shape[-2:], scores.device)
        low, high = low.masked_fill(hidden, torch.inf), high.masked_fill(hidden, -torch.inf)
        low, high = low[..., 1:, :], high[..., 1:, :]  # the first query sees one key
    low, high = low.amin(-1), high.amax(-1)
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return (high - low <= TOLERANCE * size).flatten()


def diagnostics(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, float]:
    """Weights, representations and gradients of every layer, of the first 4 samples of a batch.

    loss: mean over what it is given, of logits and targets. Keys, <layer> from 0:
      attention/<layer>/entropy, negative_mass, row_sum: see `of_weights`;
      representation/<layer>/rank_one_residual, cosine: see `of_tokens`, of what the block puts
        out, and as representation/input/... of what enters the first;
      gradient/<layer>/query: Frobenius norm of the gradient of the samples' mean loss, without
        dropout or autocast, with respect to the weights that make queries.
    Draws no random numbers, and leaves parameters, their gradients and the training mode alone.
    """
    inputs, targets = inputs[:SEQUENCES], targets[:SEQUENCES]
    projections = [block.attention.qkv.weight for block in model.blocks]
    total = [torch.zeros_like(weight) for weight in projections]
    scored = (targets != UNSCORED).view(len(targets), -1).sum(1)
    with observed(model, of_attention, of_tokens) as seen, torch.enable_grad():
        for sequence, target, share in zip(inputs, targets, scored / scored.sum(), strict=True):
            part = share * loss(model(sequence[None]), target[None])
            found = torch.autograd.grad(part, projections)
            total = [a + b for a, b in zip(total, found, strict=True)]
    for layer, gradient in enumerate(total):
        query = gradient.chunk(3)[0]  # of the rows for queries, keys and values
        seen[f"gradient/{layer}/query"].append(query.double().norm().view(1))
    return means(seen)


def of_attention(attention: nn.Module, q: Tensor, k: Tensor) -> Measured:
    """`of_weights` of the mechanism's own weights for queries and keys (B, H, N, D)."""
    return of_weights(attention.mechanism.mixing(q, k, causal=attention.causal))


def of_weights(weights: Tensor) -> Measured:
    """For every row of weights (..., N, M), 0 where a key is not seen:

    entropy in nats of the absolute weights divided by their sum (0 for one key, log n for n equal
    ones); negative_mass, the share of negative weights in the sum of absolute ones; row_sum.
    Where all weights of a row are 0 the first two are not defined: nan.
    """
    size = weights.abs()
    mass = size.sum(-1, keepdim=True)
    negative = weights.clamp(max=0).sum(-1).neg() / mass.squeeze(-1)
    entropy = torch.special.entr(size / mass).sum(-1)  # entr(0) = 0
    return {"entropy": entropy, "negative_mass": negative, "row_sum": weights.sum(-1)}


def of_tokens(x: Tensor) -> Measured:
    """For every sequence of tokens x (B, N, W):

    rank_one_residual: ||X - 1 m^T|| / ||X|| in the Frobenius norm, m the mean token, which makes
    it smallest (Dong et al., arXiv 2103.03404, by another norm; relative as, second-hand, in arXiv
    2410.15578); from 0, all tokens equal, to 1.
    cosine: mean cosine similarity of two different tokens, those of norm 0 left out.
    Not defined for representations of 0, or less than two tokens other than 0: nan.
    """
    x = x.double()
    spread = x - x.mean(-2, keepdim=True)
    residual = spread.norm(dim=(-2, -1)) / x.norm(dim=(-2, -1))
    size = x.norm(dim=-1, keepdim=True)
    unit = torch.where(size > 0, x / size, 0)
    # sum over all pairs of u_i . u_j = ||sum of u||^2; those of a token with itself are no pairs
    n = (size > 0).sum((-2, -1))
    cosine = (unit.sum(-2).square().sum(-1) - n) / (n * (n - 1))
    return {"rank_one_residual": residual, "cosine": cosine}


def warn_if_dead(shares: dict[str, float], step: int) -> None:
    """Say what a dead scorer means, for each layer that has one."""
    for key, share in shares.items():
        if key.endswith("/dead_scorer") and share == 1:
            layer = key.split("/")[1]
            log.warning(
                "step %d: the score network of layer %s is dead: every row has a constant score, "
                "so this layer averages all visible tokens and its score network gets no "
                "gradient. Another seed, model.activation or a wider model.hidden avoids it.",
                step,
                layer,
            )
