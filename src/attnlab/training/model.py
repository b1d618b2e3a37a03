"""The model of a run."""

from attnlab.config.schema import Config
from attnlab.data.loader import Data
from attnlab.models.transformer import Transformer, build_model


def build(cfg: Config, data: Data) -> Transformer:
    """The configured model for this data set, on the CPU."""
    return build_model(cfg.arch, cfg.model, cfg.seed, **data.shape(cfg.arch))
