"""The rows of validation and test where a data set lacks these splits: cut from its training rows.

Which rows they are is the same for every seed of a run: a fixed permutation of the units decides.
An image is a unit. Of text a unit is a stretch of consecutive rows, a hundredth of all, because
consecutive lines belong together.
"""

import numpy as np

from attnlab.errors import BadInput

HOLD_OUT = 2502_17206  # seed of the permutation
STRETCHES = 100


def hold_out(
    n: int, validation: float | None, test: float | None, where: str
) -> dict[str, np.ndarray]:
    """Indices of train, validation and test among n units, each sorted; without a key for what is
    None.

    Sizes are numbers of units, or shares below 1, of which at least one unit is taken. Validation
    has the permutation's first units and test its last, so that neither depends on the other's
    size. Errors: `BadInput` if nothing is left to train on.
    """
    order = np.random.default_rng(HOLD_OUT).permutation(n)
    first, last = (_count(size, n) for size in (validation, test))
    if first + last >= n:
        sizes = {"validation_size": validation, "test_size": test}
        named = " ".join(f"data.{key}={size}" for key, size in sizes.items() if size)
        raise BadInput(
            f"{named}: together must be less than the {n} training rows of {where}"
            if first + last > 1
            else f"{named}: {where} has {n} training row, which cannot be divided"
        )
    parts = {"train": order[first : n - last]}
    if validation is not None:
        parts["validation"] = order[:first]
    if test is not None:
        parts["test"] = order[n - last :]
    return {split: np.sort(units) for split, units in parts.items()}


def _count(size: float | None, n: int) -> int:
    if size is None or size == 0 or isinstance(size, int):
        return int(size or 0)
    return max(1, round(size * n))


def hold_out_stretches(
    n: int, validation: float | None, test: float | None, where: str
) -> dict[str, np.ndarray]:
    """As `hold_out`: indices of rows of text, in stretches of a hundredth (fewer than 100 rows: of
    one row).
    """
    stretches = np.array_split(np.arange(n), min(n, STRETCHES))
    parts = hold_out(len(stretches), validation, test, where)
    return {
        split: np.concatenate([stretches[unit] for unit in units])
        for split, units in parts.items()
    }
