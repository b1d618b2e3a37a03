"""Functions that mechanisms, kernels and data share: masks, the softmax over visible keys,
precision, activations, perplexity.

Shapes: N queries, M keys.
"""

import contextlib
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Autocast = Callable[[], contextlib.AbstractContextManager]  # a context of trainer.precision

# Activations of score networks, by their names in the configuration.
ACTIVATIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "leaky_relu": F.leaky_relu,
}


def causal_mask(n: int, m: int, device: torch.device) -> Tensor:
    """(N, M): True where query i may see key j, j <= i + M - N: the last query sees all keys."""
    return torch.ones(n, m, dtype=torch.bool, device=device).tril(m - n)


def visible_keys(q: Tensor, k: Tensor, causal: bool, mask: Tensor | None) -> Tensor | None:
    """Which keys query i sees: boolean, broadcasts to (B, H, N, M), or None for all.

    q (B, H, N, D), k (B, H, M, D). causal: key j <= i + M - N; mask: True where a key may be seen,
    broadcasts to (B, H, N, M). Both must allow a key. Errors: `ValueError` if mask does not fit.
    """
    n, m = q.shape[-2], k.shape[-2]
    if mask is not None:
        check_mask(mask, (*q.shape[:-1], m))
    if not causal:
        return mask
    visible = causal_mask(n, m, q.device)
    return visible if mask is None else visible & mask


def check_mask(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Errors: `ValueError` if mask is not boolean or does not broadcast to shape (B, H, N, M)."""
    if mask.dtype != torch.bool:
        raise ValueError(f"mask must be boolean, True where a key may be seen; got {mask.dtype}")
    _check_broadcasts("mask", mask, shape)


def check_bias(bias: Tensor, shape: tuple[int, ...]) -> None:
    """Errors: `ValueError` if bias is not floating point or does not broadcast to (B, H, N, M)."""
    if not bias.is_floating_point():
        raise ValueError(f"bias must be a tensor of floating point numbers; got {bias.dtype}")
    _check_broadcasts("bias", bias, shape)


def _check_broadcasts(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    sizes = zip(reversed(x.shape), reversed(shape), strict=False)
    if x.dim() > len(shape) or any(size not in (1, whole) for size, whole in sizes):
        raise ValueError(
            f"{name} must broadcast to (B, H, N, M) = {tuple(shape)}; got {tuple(x.shape)}"
        )


def masked_softmax(scores: Tensor, visible: Tensor | None, bias: Tensor | None = None) -> Tensor:
    """Softmax over the last dimension of scores + bias (..., N, M), in float32 or better; visible:
    a boolean mask that broadcasts to it, or None for all. A row that sees no key is 0, and no
    value or gradient on the way there is NaN.
    """
    scores = at_least_float32(scores)
    if bias is not None:
        scores = scores + bias
    if visible is None:
        return scores.softmax(-1)
    lowest = torch.finfo(scores.dtype).min  # beside any score its weight is exactly 0
    return scores.masked_fill(~visible, lowest).softmax(-1).masked_fill(~visible, 0)


def at_least_float32(x: Tensor) -> Tensor:
    """x in float32, or unchanged if its dtype is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def constant_in_graphs(function):
    """Mark a function whose result torch.compile may take for a constant, as
    torch.compiler.assume_constant_result does; importing that takes a second of every start.
    """
    function._dynamo_marked_constant = True
    return function


@constant_in_graphs
def _has_autocast(device_type: str) -> bool:
    """torch 2.11 cannot trace the question."""
    return torch.amp.is_autocast_available(device_type)


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager:
    """A context in which operations on the device of x keep the dtypes of their inputs. Devices
    without autocast, such as meta, need none.
    """
    if _has_autocast(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def perplexity(loss: float) -> float:
    """exp(loss), up to what a float can be; of a loss that is not finite that loss."""
    return math.exp(min(loss, 700.0)) if math.isfinite(loss) else loss
