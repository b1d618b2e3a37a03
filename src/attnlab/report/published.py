"""What the papers publish, each number with its source.

Of arXiv 2502.17206 (Neural Attention) known are the effects over the dot product at d' = 2 (tables
2 and 5). A number that is not here is not known to us: the report shows a dash, never a guess.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Experiment:
    """Where the paper reports the experiment on one data set, and what it finds there.

    data: keys of a configuration that identify the data set, whatever a YAML calls it.
    figure: number of its figure, the metric over iterations or epochs.
    effects: arm -> effect over the dot product, positive if the arm is better: perplexity lower
        by so many percent, accuracy higher by so many percentage points. No spread is published.
    effect_table: number of the table that has `effects`.
    """

    data: Mapping[str, Any]
    figure: int
    effects: Mapping[str, float]
    effect_table: int


EXPERIMENTS: dict[str, Experiment] = {
    "wikitext103": Experiment(
        {
            "data.path": "Salesforce/wikitext",
            "data.config": "wikitext-103-v1",
            "data.text_column": "text",
        },
        9,
        {"neural_d2": 2.19},  # "best reduction" of version 2; version 1's abstract: over 5 %
        2,
    ),
    "cifar10": Experiment(
        {
            "data.path": "uoft-cs/cifar10",
            "data.config": "plain_text",
            "data.image_column": "img",
            "data.label_column": "label",
        },
        10,
        {"neural_d2": 3.0},
        5,
    ),
    "cifar100": Experiment(
        {
            "data.path": "uoft-cs/cifar100",
            "data.config": "cifar100",
            "data.image_column": "img",
            "data.label_column": "fine_label",
        },
        11,
        {"neural_d2": 4.26},
        5,
    ),
}

# Test BLEU by data set and arm: arXiv 2410.15578, second-hand (IWSLT14, English to German,
# LayerNorm in front of each part). How it was tokenised is not known to us.
BLEU: Mapping[str, Mapping[str, float]] = {"iwslt14": {"dot_product": 28.54, "dagpam": 29.25}}


def effect(data: str, arm: str) -> float | None:
    """Published effect of `arm` over the dot product on `data`; None if it is not known.

    Unit: percent of perplexity, or percentage points of accuracy; positive is better.
    """
    experiment = EXPERIMENTS.get(data)
    return experiment.effects.get(arm) if experiment else None
