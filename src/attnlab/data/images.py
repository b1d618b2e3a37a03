"""Images: decoded once into arrays, augmented by a pure function of (seed, epoch, index)."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.transforms import v2

from attnlab.config.schema import Image
from attnlab.data.cache import array, cached, digest, fingerprint
from attnlab.data.hub import Rows
from attnlab.errors import BadInput
from attnlab.runtime.seeding import reseed

# Which training images are held out is the same for every seed: a fixed permutation's first ones.
HOLD_OUT = 2502_17206


@dataclass
class ImageData:
    """Pixels (N, S, S, 3) uint8 and labels (N,) of the training and test images, memory-mapped."""

    pixels: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    indices: dict[str, np.ndarray]  # rows of `pixels` that make up train, validation, test
    classes: int
    fingerprint: str
    options: Image
    seed: int

    sample_tokens = 0  # speed is counted in images

    def shape(self, arch) -> dict[str, int]:
        """Values per patch, classes, and patches with the class token."""
        patches = (self.options.image_size // arch.patch_size) ** 2
        return {"inputs": 3 * arch.patch_size**2, "outputs": self.classes, "tokens": 1 + patches}

    def criterion(self, split: str) -> tuple[str, int]:
        """The metric that chooses the best checkpoint, and its sign."""
        return "accuracy", 1

    def sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(3,): loss, images, correct ones."""
        losses = F.cross_entropy(logits, labels, reduction="none").double()
        correct = (logits.argmax(-1) == labels).sum()
        return torch.stack(
            (losses.sum(), torch.tensor(len(labels), device=labels.device), correct)
        )

    def metrics(self, split: str, totals: Tensor) -> dict[str, float]:
        """loss: nats per image. accuracy: share from 0 to 1."""
        loss, count, correct = totals.tolist()
        return {"loss": loss / count, "accuracy": correct / count}

    def baselines(self, split: str) -> dict[str, float]:
        """None."""
        return {}

    def train(self) -> "Images":
        """Training images with augmentation."""
        return self._images("train", augmentation(self.options))

    def evaluation(self, split: str) -> "Images":
        """Images of `validation` or `test`, resized and normalised only."""
        return self._images(split, None)

    def _images(self, split: str, augment) -> "Images":
        source = "test" if split == "test" else "train"
        size = self.options.image_size
        args = self.pixels[source], self.labels[source], self.indices[split]
        return Images(*args, size, augment, self.seed)


@dataclass
class Images:
    """Item: images (B, 3, S, S) in [-1, 1], labels (B,)."""

    pixels: np.ndarray
    labels: np.ndarray
    indices: np.ndarray
    size: int
    augment: v2.Transform | None
    seed: int

    def __len__(self) -> int:
        return len(self.indices)

    def __getitems__(self, keys: list[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """Images of (epoch, index) keys; the key alone decides the augmentation."""
        rows = self.indices[[index for _, index in keys]]
        images = torch.from_numpy(self.pixels[rows]).permute(0, 3, 1, 2)
        if self.augment is None:
            images = v2.functional.resize(images, [self.size, self.size], antialias=True)
        else:
            images = torch.stack(
                [self._augmented(i, *key) for i, key in zip(images, keys, strict=True)]
            )
        images = images.float().div_(127.5).sub_(1)  # mean = std = 0.5, as in the released code
        return images, torch.from_numpy(self.labels[rows])

    def _augmented(self, image: Tensor, epoch: int, index: int) -> Tensor:
        reseed(None, self.seed, "augment", epoch, index)
        return self.augment(image)


def augmentation(options: Image) -> v2.Transform:
    """The released code's training transforms, with the configured strengths."""
    augment = options.augment
    size = [options.image_size, options.image_size]
    return v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=tuple(augment.crop_scale), antialias=True),
            v2.RandomHorizontalFlip(augment.flip),
            v2.ColorJitter(*augment.jitter),
            v2.RandomRotation(augment.rotation),
        ]
    )


def build_images(data: Image, seed: int, cache: Path) -> ImageData:
    """The configured images, from the cache where their content was seen before.

    Errors: `BadInput` for a missing or damaged source, or more held-out images than there are.
    """
    if data.path is None:
        arrays = _digits()
        content = digest(b"".join(arrays[name].tobytes() for name in sorted(arrays)))[:16]
        get = arrays.__getitem__
    else:
        columns = [data.image_column, data.label_column]
        source = Rows(data, columns, ["train", "test"], cache)
        key = {"content": source.fingerprint, "columns": columns}
        folder = cached(cache, data.name, key, lambda: _decode(source, data))
        content = fingerprint(folder)

        def get(name: str) -> np.ndarray:
            return array(folder, name.removesuffix(".npy"))

    pixels = {s: get(f"{s}_pixels.npy") for s in ("train", "test")}
    labels = {s: get(f"{s}_labels.npy") for s in ("train", "test")}
    n, held = len(labels["train"]), data.validation_size
    if held >= n:
        raise BadInput(f"data.validation_size={held}: must be less than the {n} training images")
    order = np.random.default_rng(HOLD_OUT).permutation(n)
    return ImageData(
        pixels=pixels,
        labels=labels,
        indices={
            "train": np.sort(order[held:]),
            "validation": np.sort(order[:held]),
            "test": np.arange(len(labels["test"])),
        },
        classes=int(max(labels["train"].max(), labels["test"].max())) + 1,
        fingerprint=content,
        options=data,
        seed=seed,
    )


def _decode(source: Rows, data: Image) -> dict[str, np.ndarray]:
    """All images of both splits as RGB arrays of one size."""
    import datasets

    files = {}
    for split in ("train", "test"):
        rows = source[split]
        try:
            # files written without the hub's type information hold images as bytes
            rows = rows.cast_column(data.image_column, datasets.Image())
            images = [np.asarray(i.convert("RGB")) for i in rows[data.image_column]]
            files[f"{split}_pixels.npy"] = np.stack(images)
            files[f"{split}_labels.npy"] = np.array(rows[data.label_column], dtype=np.int64)
        except Exception as error:  # arrow's and the decoder's errors share no base class
            raise BadInput(
                f"{source.where}: split {split}, columns {data.image_column} and "
                f"{data.label_column} are not images of one size with labels: {error}"
            ) from None
        if files[f"{split}_labels.npy"].min() < 0:
            raise BadInput(f"{source.where}: split {split} has labels below 0")
    return files


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's digits as 8 x 8 RGB; every fifth is for testing (the order mixes the
    classes).
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[..., None].repeat(3, axis=-1)
    test = np.arange(len(pixels)) % 5 == 4
    parts = {"train": ~test, "test": test}
    return {
        f"{split}_{what}.npy": values[rows]
        for split, rows in parts.items()
        for what, values in (("pixels", pixels), ("labels", bunch.target.astype(np.int64)))
    }
