"""Attention mechanisms, one file each. Which file a model section means stands in
`attnlab.config.mechanisms`.
"""

from importlib import import_module

from attnlab.config.mechanisms import Mechanism
from attnlab.config.schema import Body
from attnlab.models.attention.base import Attention


def build_attention(model: Mechanism, arch: Body) -> Attention:
    """The mechanism of a model section, for the heads of a body."""
    file, name = model.implementation.split(".")
    mechanism = getattr(import_module(f"{__name__}.{file}"), name)
    return mechanism(arch.heads, arch.head_width, **model.arguments(arch))
