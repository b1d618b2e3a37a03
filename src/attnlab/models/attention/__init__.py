"""Attention mechanisms, one file each. A new one needs its file, a line in ATTENTION and a YAML
in configs/model.
"""

from attnlab.models.attention.base import Attention
from attnlab.models.attention.dot import DotProductAttention
from attnlab.models.attention.neural import NeuralAttention

ATTENTION: dict[str, type[Attention]] = {
    "dot_product": DotProductAttention,
    "neural": NeuralAttention,
}
