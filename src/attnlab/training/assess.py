"""Measurements of a model while it trains: the selection split and the health of its layers."""

import logging
import math
import time

from torch import nn

from attnlab.config.schema import Trainer
from attnlab.data.loader import Data
from attnlab.training.diagnostics import (
    dead_scorers,
    diagnostics,
    saturation,
    warn_if_dead,
    warn_if_saturated,
)
from attnlab.training.evaluate import evaluate
from attnlab.training.meter import Meter
from attnlab.training.selection import Selection
from attnlab.training.update import training_loss

log = logging.getLogger(__name__)


class Assessment:
    """Measures `model` on the selection split by its `compiled` form; draws no random numbers.

    batch_size: samples at a time. autocast: a factory of contexts for the forward passes. meter:
    is told how long an evaluation took.
    """

    def __init__(
        self,
        model: nn.Module,
        compiled: nn.Module,
        data: Data,
        options: Trainer,
        batch_size: int,
        autocast,
        meter: Meter,
    ):
        self.model, self.compiled, self.data, self.options = model, compiled, data, options
        self.batch_size, self.autocast, self.meter = batch_size, autocast, meter
        self.selection = Selection(data, options.select_on)
        self.sample = self.selection.sample(next(model.parameters()).device)

    def at_start(self) -> dict[str, float]:
        """Health before the first step, with a warning for every layer that starts dead or
        saturated.
        """
        health = dead_scorers(self.model, self.sample[0]) | self.details()
        warn_if_dead(health, 0)
        warn_if_saturated(health)
        return health

    def evaluate(self, step: int) -> dict[str, float]:
        """Metrics of the selection split after a step, and the share of dead scorers."""
        split, key = self.selection.split, self.selection.key
        began = time.perf_counter()
        row = evaluate(self.compiled, self.data, split, self.batch_size, self.autocast)
        self.meter.evaluated(len(self.data.evaluation(split)), time.perf_counter() - began)
        row |= dead_scorers(self.model, self.sample[0])
        warn_if_dead(row, step)
        if not math.isfinite(row[key]):
            log.warning("step %d: %s is %s", step, key, row[key])
        return row

    def details(self) -> dict[str, float]:
        """Saturation of every layer and, with trainer.diagnostics, the per-layer diagnostics:
        too many values for the line in the log and for best/*.
        """
        row = saturation(self.model, self.sample[0])
        if self.options.diagnostics:
            row |= diagnostics(self.model, *self.sample, training_loss)
        return row
