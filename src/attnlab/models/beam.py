"""Beam search with cached keys and values.

Shapes: B sentences, K beams (the width), S source tokens, V vocabulary.
"""

import torch
from torch import Tensor

from attnlab.models.seq2seq import Seq2Seq


@torch.no_grad()
def beam_search(
    model: Seq2Seq,
    ids: Tensor,
    mask: Tensor,
    limits: Tensor,
    *,
    width: int,
    length_penalty: float,
    bos: int,
    eos: int,
    never: tuple[int, ...] = (),
) -> list[list[int]]:
    """The best translation found of each source: token ids without `bos` and `eos`.

    ids, mask: (B, S), see `Seq2Seq.encode`; limits (B,): the most tokens of a translation, `eos`
    included, each at least 1; never: ids that are not put out, beside bos.

    A translation Y of |Y| tokens, eos included, has the score log P(Y) / ((5 + |Y|) / 6)^alpha,
    alpha = length_penalty >= 0 (Wu et al., arXiv 1609.08144, eq 14, without coverage). Of the 2 K
    likeliest continuations of a sentence's beams, those of the first K that end it are
    translations, and the first K that do not are its new beams. At its limit a beam ends. A
    sentence is finished when no beam can reach a better score any more, which never changes the
    result. It does not depend on the other sentences, up to rounding.
    """
    count, device = len(ids), ids.device
    best: list[list[int]] = [[] for _ in range(count)]
    top = torch.full((count,), -torch.inf, device=device)
    live = torch.arange(count, device=device)  # sentences that are not finished
    scores = torch.full((count, width), -torch.inf, device=device)
    scores[:, 0] = 0  # all beams are the same at first
    tokens = torch.full((count, width, 1), bos, device=device)
    source = model.encode(ids, mask).keep(live.repeat_interleave(width))
    cache, length = model.new_cache(), 0
    while len(live):
        length += 1
        logits = model.decode(tokens[..., -1:].flatten(0, 1), source, cache)[:, -1]
        log_p = logits.float().log_softmax(-1).unflatten(0, (-1, width))  # (B, K, V)
        log_p[..., [bos, *never]] = -torch.inf
        ends = log_p[..., eos].clone()
        log_p[limits[live] == length] = -torch.inf
        log_p[..., eos] = ends
        vocab = log_p.shape[-1]
        totals = (scores.unsqueeze(-1) + log_p).flatten(1)
        values, where = totals.topk(min(2 * width, totals.shape[1]))  # in falling order
        beam, token = where // vocab, where % vocab

        ended = token == eos
        done = values[:, :width].masked_fill(~ended[:, :width], -torch.inf)
        found, place = (done / _penalty(length, length_penalty)).max(1)
        for i in (found > top[live]).nonzero().flatten().tolist():
            sentence = int(live[i])
            top[sentence] = found[i]
            best[sentence] = tokens[i, beam[i, place[i]], 1:].tolist()

        scores, place = values.masked_fill(ended, -torch.inf).topk(width)
        beam, token = beam.gather(1, place), token.gather(1, place)
        tokens = tokens.gather(1, beam.unsqueeze(-1).expand(-1, -1, length))
        tokens = torch.cat((tokens, token.unsqueeze(-1)), -1)
        # a score can only fall, and weighs least at the greatest length
        reachable = scores[:, 0] / _penalty(limits[live], length_penalty)
        going = reachable > top[live]
        first = width * torch.arange(len(live), device=device).unsqueeze(1)
        for layer in cache:
            layer.keep((first + beam)[going].flatten())
        if not going.all():  # the beams of a sentence share their source
            source = source.keep((first + torch.arange(width, device=device))[going].flatten())
            live, scores, tokens = live[going], scores[going], tokens[going]
    return best


def _penalty(length: int | Tensor, alpha: float) -> float | Tensor:
    return ((5 + length) / 6) ** alpha
