"""The rows of validation and test where a data set lacks these splits: cut from its training rows.

Which rows they are is the same for every seed of a run: a fixed permutation of units decides. An
image is a unit. A unit of text is a stretch of consecutive rows, a hundredth of all, because
consecutive lines belong together; where there are fewer than 100 rows, it is a row.
"""

import logging

import numpy as np

from attnlab.config.datasets import Image, Text
from attnlab.errors import BadInput

log = logging.getLogger(__name__)

HOLD_OUT = 2502_17206  # seed of the permutation
STRETCHES = 100


def cut(n: int, data: Text | Image, there: list[str], where: str) -> dict[str, np.ndarray]:
    """Which of n training rows are train's and those of validation and test, where these are not
    `there`: ascending indices.

    data.validation_size and data.test_size are numbers of units, or shares below 1, of which at
    least one unit is taken. Validation has the permutation's first units and test its last, so
    that neither depends on the size of the other. Errors: `BadInput` that names the data set by
    `where`, if a size is None or no unit is left for training.
    """
    sizes = {s: getattr(data, f"{s}_size") for s in ("validation", "test") if s not in there}
    if None in sizes.values():
        split = next(split for split, size in sizes.items() if size is None)
        rule = f"data.{split}_size=0.1 cuts one from train"
        raise BadInput(f"{where}: no split {split}; it has {', '.join(there)}; {rule}")
    units = min(n, STRETCHES) if isinstance(data, Text) else n
    first, last = (_count(sizes.get(split), units) for split in ("validation", "test"))
    if first + last >= units:
        named = " ".join(f"data.{split}_size={size}" for split, size in sizes.items())
        raise BadInput(f"{named}: must leave some of the {n} training rows of {where}")
    order = np.random.default_rng(HOLD_OUT).permutation(units)
    chosen = {
        "train": order[first : units - last],
        "validation": order[:first],
        "test": order[units - last :],
    }
    unit = np.arange(n) * units // n  # of each row
    parts = {s: np.flatnonzero(np.isin(unit, chosen[s])) for s in ("train", *sizes)}
    if sizes:
        counts = ", ".join(f"{split} {len(rows):,}" for split, rows in parts.items())
        log.info("%s: no %s split; its training rows: %s", where, " or ".join(sizes), counts)
    return parts


def _count(size: float | None, units: int) -> int:
    """The number of units; images may be given by their number."""
    whole = not size or isinstance(size, int)
    return int(size or 0) if whole else max(1, round(size * units))
