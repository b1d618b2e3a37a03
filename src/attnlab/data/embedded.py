"""Data that comes with a library and needs no network: `data.path=embedded:<name>`."""

from collections.abc import Callable

import numpy as np

from attnlab.data.cache import digest
from attnlab.errors import BadInput

PREFIX = "embedded:"


class PyDocs:
    """The English language reference inside every CPython; whole topics, a tenth each, are held
    out. A row is a line.
    """

    where = f"data.path={PREFIX}pydocs"

    def __init__(self, column: str):
        from pydoc_data.topics import topics

        splits: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
        total, seen = sum(map(len, topics.values())), 0
        for name in sorted(topics, key=lambda n: digest(n.encode())):  # mixed, yet always the same
            split = ("test", "validation", "train")[min(2, 10 * seen // total)]
            splits[split] += topics[name].splitlines(keepends=True)
            seen += len(topics[name])
        self.splits = {split: {column: rows} for split, rows in splits.items()}
        self.fingerprint = digest(repr(splits).encode())


def digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits as 8 x 8 RGB: {split}_pixels and {split}_labels. Every fifth is for
    testing (the order mixes the classes).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    test = np.arange(len(pixels)) % 5 == 4
    parts = {"train": ~test, "test": test}
    return {
        f"{split}_{what}": values[rows]
        for split, rows in parts.items()
        for what, values in (("pixels", pixels), ("labels", bunch.target.astype(np.int64)))
    }


TEXT = {"pydocs": PyDocs}
IMAGES = {"digits": digits}


def embedded(path: str, there: dict[str, Callable]) -> Callable | None:
    """What makes the embedded data that `path` names; None if it names none.

    Errors: `BadInput` for a name that is not in `there`.
    """
    if not path.startswith(PREFIX):
        return None
    name = path.removeprefix(PREFIX)
    if name not in there:
        raise BadInput(f"data.path={path}: not embedded; there is {PREFIX}{', '.join(there)}")
    return there[name]
