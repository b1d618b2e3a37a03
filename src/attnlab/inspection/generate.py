"""Text from a trained language model."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from attnlab.config.schema import Config
from attnlab.data.tokenizer import marked
from attnlab.errors import BadInput
from attnlab.inspection.trained import trained
from attnlab.models.transformer import Transformer


def generate(
    cfg: Config,
    folder: Path,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int,
    seed: int,
    device: torch.device,
) -> str:
    """`prompt` continued by `tokens` sampled tokens, by the best checkpoint of the run in
    `folder`.

    temperature >= 0 divides the logits (0: the likeliest token); top_k >= 1 keeps so many. The
    model sees at most the last data.sequence_length tokens. Up to this length each step computes
    the newest token alone, from cached keys and values. Beyond it the window slides, which moves
    every token to another position, and each step computes the whole window. Errors: `BadInput`.
    """
    if cfg.data.kind != "text":
        raise BadInput(f"run={folder}: is not a language model (data={cfg.data.name})")
    for name, value, least in (
        ("tokens", tokens, 0),
        ("temperature", temperature, 0),
        ("top_k", top_k, 1),
    ):
        if not value >= least:
            raise BadInput(f"{name}={value}: must be at least {least}")
    if not 0 <= seed < 2**32:
        raise BadInput(f"seed={seed}: must be at least 0 and less than 2^32")
    tokenizer, model = trained(cfg, folder, device)
    (read,) = marked(tokenizer, [prompt])
    ids = tokenizer.encode(read, add_special_tokens=False).ids
    if not ids:
        raise BadInput(f"prompt={prompt!r}: must hold at least one token")
    block = cfg.data.sequence_length
    generator = torch.Generator().manual_seed(seed)

    def pick(logits: Tensor) -> int:
        return sample(logits, temperature, top_k, generator)

    return detokenize(tokenizer, continued(model, ids, tokens, block, pick))


@torch.no_grad()
def continued(
    model: Transformer,
    ids: list[int],
    tokens: int,
    block: int,
    pick: Callable[[Tensor], int],
    cached: bool = True,
) -> list[int]:
    """`ids` and `tokens` more, each picked from the logits (V,) that follow those before it.

    block: how many of the last tokens the model sees. cached: keep keys and values up to this
    length; without, each step computes all tokens, which gives the same logits.
    """
    ids, cache = list(ids), model.new_cache()
    device = next(model.parameters()).device
    for _ in range(tokens):
        if len(ids) > block or not cached:
            cache = model.new_cache()
        new = torch.tensor(ids[-block:][cache[0].tokens :], device=device)[None]
        ids.append(pick(model(new, cache)[0, -1].float().cpu()))
    return ids


def sample(logits: Tensor, temperature: float, top_k: int, generator: torch.Generator) -> int:
    """One token id from logits (V,)."""
    if temperature < torch.finfo(logits.dtype).tiny:
        return int(logits.argmax())
    best = logits.topk(min(top_k, len(logits)))
    weights = torch.softmax((best.values - best.values[0]) / temperature, dim=-1)
    return int(best.indices[torch.multinomial(weights, 1, generator=generator)])


def detokenize(tokenizer, ids: list[int]) -> str:
    """Text of token ids, by the tokenizer's own decoder; [SEP] is the line break it stands for."""
    lines: list[list[int]] = [[]]
    for token in ids:
        if token == tokenizer.token_to_id("[SEP]"):
            lines.append([])
        else:
            lines[-1].append(token)
    return "\n".join(tokenizer.decode(line, skip_special_tokens=False) for line in lines)
