"""Per-layer diagnostics of attention, representations and gradients.

Shapes: B sequences, H heads, N tokens, W width.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from attnlab.data.symbols import UNSCORED
from attnlab.functional import masked_softmax
from attnlab.models.attention.base import SoftmaxAttention
from attnlab.models.attention.neural import NeuralAttention

log = logging.getLogger(__name__)

SEQUENCES = 4  # of the given batch; enough rows for a share, and memory of one sequence at a time
QUERIES = (
    64  # of a sequence, evenly spread: with all heads 2,048 rows, and nothing N x N in memory
)
TOLERANCE = 1e-6
ONE_KEY = 0.99  # of a row's weight on one key: beyond it, the other keys get hardly any gradient
SATURATED = 0.5  # a layer with at least this share of such rows is called saturated

Measured = dict[str, Tensor]  # name -> values to take the mean of


@contextmanager
def observed(
    model: nn.Module,
    attention: Callable[[nn.Module, Tensor, Tensor], Measured],
    tokens: Callable[[Tensor], Measured] | None = None,
) -> Iterator[dict[str, list[Tensor]]]:
    """While open, the model is in evaluation mode and the tensors of its layers are measured.

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

    with ExitStack() as undo:
        for layer, part in enumerate(model.attentions):
            hook = partial(mechanism, layer, part)
            undo.enter_context(part.mechanism.register_forward_pre_hook(hook))
        if tokens:
            for layer, block in enumerate(model.blocks):
                undo.enter_context(block.register_forward_hook(partial(leaves, layer)))
            undo.enter_context(model.blocks[0].register_forward_pre_hook(enters))
        undo.callback(model.train, model.training)
        model.eval()
        yield seen


def means(seen: dict[str, list[Tensor]]) -> dict[str, float]:
    """Mean of the finite values of each key; a key without finite values is left out (0/0 is not
    defined).
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

    inputs: a batch as the model takes it; of its first 4 sequences up to 64 queries each, in all
    heads. A row is one query of one head; its score is constant if it differs by at most 1e-6
    (relative to its size, at least 1) over the keys it sees. Such a row attends uniformly, or
    under ALiBi by distance alone. When all rows do because the last hidden units are ReLUs that
    never fire, the score network has no gradient and stays dead.
    """
    if not any(isinstance(part.mechanism, NeuralAttention) for part in model.attentions):
        return {}
    with observed(model, _dead) as seen:
        for sequence in inputs[:SEQUENCES]:
            model(sequence[None])
    return means(seen)


def _dead(attention: nn.Module, q: Tensor, k: Tensor) -> Measured:
    if not isinstance(attention.mechanism, NeuralAttention):
        return {}
    rows, last, visible = _sampled(q.shape[-2], k.shape[-2], attention.causal, q.device)
    scores = attention.mechanism.scores(q[..., rows, :], k) / attention.mechanism.scale
    return {"dead_scorer": _constant(scores.float(), visible)[..., last > 0]}


def _sampled(n: int, m: int, causal: bool, device) -> tuple[Tensor, Tensor, Tensor]:
    """Up to 64 of n queries, evenly spread; for each the last of m keys that it sees, and for each
    key whether it does.
    """
    rows = torch.linspace(0, n - 1, min(n, QUERIES), device=device).round().long()
    last = rows + m - n if causal else torch.full_like(rows, m - 1)
    return rows, last, torch.arange(m, device=device) <= last.unsqueeze(-1)


@torch.no_grad()
def saturation(model: nn.Module, inputs: Tensor) -> dict[str, float]:
    """How far every layer is from uniform attention and from attention to a single key; the
    opposite of a dead scorer. Layers of fixed weights (`Attention.fixed`) are left out.

    inputs: a batch as the model takes it; of its first 4 sequences up to 64 queries each, in all
    heads. Means over all rows but those that see one key only, <layer> from 0:
      attention/<layer>/saturated: share of rows with a weight above 0.99 (absolute, divided by the
        sum of the row's absolute weights);
      attention/<layer>/normalized_entropy: entropy of those weights divided by the logarithm of
        the number of visible keys, 1 for uniform attention;
      attention/<layer>/logit_std: standard deviation of a head's scores before the softmax, over
        all visible pairs, mean over heads and sequences. Only where weights are a softmax of
        scores.
    """
    with observed(model, _saturation) as seen:
        for sequence in inputs[:SEQUENCES]:
            model(sequence[None])
    return means(seen)


def _saturation(attention: nn.Module, q: Tensor, k: Tensor) -> Measured:
    mechanism, n, m = attention.mechanism, q.shape[-2], k.shape[-2]
    if mechanism.fixed:
        return {}
    rows, last, visible = _sampled(n, m, attention.causal, q.device)
    found, q = {}, q[..., rows, :]
    bias = attention.bias(n, m)
    bias = {} if bias is None else {"bias": bias[..., rows, :]}
    if isinstance(mechanism, SoftmaxAttention):
        scores = mechanism.scores(q, k) + bias.get("bias", 0)
        weights = masked_softmax(scores, visible)
        found["logit_std"] = scores[..., visible].double().std(-1, correction=0)
    else:
        weights = mechanism.weights(q, k, visible, **bias)
    size = weights.abs()
    share = size / size.sum(-1, keepdim=True)
    counted = (last > 0) & share.isfinite().all(-1)
    saturated = (share.amax(-1) > ONE_KEY).double()
    entropy = torch.special.entr(share).sum(-1) / (last + 1).log()
    found["saturated"] = saturated.masked_fill(~counted, torch.nan)  # left out
    found["normalized_entropy"] = entropy.masked_fill(~counted, torch.nan)
    return found


def _constant(scores: Tensor, visible: Tensor) -> Tensor:
    """Whether each row of scores (..., N, M) is the same for all keys that are visible (N, M)."""
    low = scores.masked_fill(~visible, torch.inf).amin(-1)
    high = scores.masked_fill(~visible, -torch.inf).amax(-1)
    size = torch.maximum(low.abs(), high.abs()).clamp(min=1)
    return high - low <= TOLERANCE * size


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
            logits = model(sequence[None])
            target = target[None][..., : logits.shape[-2]]  # a pair comes without padding
            part = share * loss(logits, target)
            found = torch.autograd.grad(part, projections)
            total = [a + b for a, b in zip(total, found, strict=True)]
    for layer, gradient in enumerate(total):
        query = gradient.chunk(3)[0]  # of the rows for queries, keys and values
        seen[f"gradient/{layer}/query"].append(query.double().norm().view(1))
    return means(seen)


def of_attention(attention: nn.Module, q: Tensor, k: Tensor) -> Measured:
    """`of_weights` of the mechanism's own weights for queries and keys (B, H, N, D)."""
    bias = attention.bias(q.shape[-2], k.shape[-2])
    return of_weights(attention.mechanism.mixing(q, k, causal=attention.causal, bias=bias))


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
    """Warn of every layer with a dead score network, and explain what that means."""
    for key, share in shares.items():
        if key.endswith("/dead_scorer") and share == 1:
            layer = key.split("/")[1]
            log.warning(
                "step %d: the score network of layer %s is dead: every row has a constant score, "
                "so this layer weighs all visible tokens alike (with ALiBi, by distance alone) "
                "and its score network gets no gradient. Another seed, model.activation or a "
                "wider model.hidden avoids it.",
                step,
                layer,
            )


def warn_if_saturated(found: dict[str, float]) -> None:
    """Warn in one line of the layers that start saturated (from `saturation`, at step 0), and name
    the keys that avoid it.
    """
    said = []
    for key, share in found.items():
        if key.endswith("/saturated") and share > SATURATED:
            place = key.removesuffix("saturated")
            entropy = f"entropy {found[place + 'normalized_entropy']:.1%} of uniform"
            spread = found.get(place + "logit_std")
            spread = "" if spread is None else f", standard deviation of the scores {spread:.3g}"
            said.append(f"layer {key.split('/')[1]}: {share:.0%} of rows, {entropy}{spread}")
    if said:
        log.warning(
            "step 0: attention starts saturated: most rows put more than %g of their weight on "
            "one key (%s). The paper's configuration does this too. Such scores get almost no "
            "gradient, so the arm may look worse than it is. To avoid it, set "
            "arch.embedding_init=textbook (language), arch.embedding_norm=true, arch.norm=pre or "
            "arch.qk_norm=rms (dot product).",
            ONE_KEY,
            "; ".join(said),
        )
