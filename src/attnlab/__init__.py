"""attnlab: experiments on attention mechanisms that are more expressive than the dot product.

`NeuralAttention` and `neural_attention` are the layer and its function, for use in any model;
`load` gives an exported model; what any of them refuses is a `BadInput`. They and torch are
imported when they are asked for.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attnlab.errors import BadInput
    from attnlab.export.load import load
    from attnlab.kernels.api import neural_attention
    from attnlab.models.attention.neural import NeuralAttention

__version__ = "0.1.0"
__all__ = ["BadInput", "NeuralAttention", "load", "neural_attention"]

PUBLIC = {  # name -> the module that defines it
    "BadInput": "attnlab.errors",
    "NeuralAttention": "attnlab.models.attention.neural",
    "load": "attnlab.export.load",
    "neural_attention": "attnlab.kernels.api",
}


def __getattr__(name: str) -> Any:
    if name not in PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *PUBLIC])
