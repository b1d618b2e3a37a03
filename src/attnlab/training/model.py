"""The model of a run."""

from torch import nn

from attnlab.config.schema import Config
from attnlab.data.loader import Data
from attnlab.models.transformer import build_model


def build(cfg: Config, data: Data) -> nn.Module:
    """The configured model for this data set, on the CPU."""
    return build_model(cfg.arch, cfg.model, cfg.seed, **data.shape(cfg.arch))
