"""Images: decoded once into arrays, augmented by a pure function of (seed, epoch, index)."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from PIL import ImageOps
from torch import Tensor
from torchvision.transforms import v2
from tqdm import tqdm

from attnlab.config.datasets import Image
from attnlab.config.schema import ViT
from attnlab.data.cache import NOTES, array, cached, digest, fingerprint
from attnlab.data.embedded import IMAGES, embedded
from attnlab.data.hub import SPLITS, Rows
from attnlab.data.splits import cut
from attnlab.errors import BadInput
from attnlab.runtime.seeding import reseed


@dataclass
class ImageData:
    """Pixels (N, H, W, 3) uint8 and labels (N,) of the splits that the source has, memory-mapped.

    indices: of each of train, validation and test, the rows in its split of the source (its own,
    or else train). names: of the classes, where the source tells them.
    """

    pixels: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]
    indices: dict[str, np.ndarray]
    classes: int
    names: list[str] | None
    fingerprint: str
    options: Image
    seed: int

    sample_tokens = 0  # speed is counted in images
    even_samples = True
    tokenizer_file = None

    def shape(self, arch: ViT) -> dict[str, int]:
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
        source = split if split in self.pixels else "train"
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
    made = embedded(data.path, IMAGES)
    if made:
        arrays, notes = made(), {"classes": None, "names": None}
        content = digest(b"".join(arrays[name].tobytes() for name in sorted(arrays)))[:16]
    else:
        source = Rows(data, [data.image_column, data.label_column], cache)
        # the size matters to images of several sizes alone, but which they are is not known yet
        keys = ("image_column", "label_column", "image_size")
        key = {"content": source.fingerprint, **{key: getattr(data, key) for key in keys}}
        folder = cached(cache, data.name, key, lambda folder: _decode(source, data, folder))
        content, notes = fingerprint(folder), json.loads((folder / NOTES).read_text())
        arrays = {file.stem: array(folder, file.stem) for file in folder.glob("*.npy")}
    there = [split for split in SPLITS if f"{split}_labels" in arrays]
    labels = {split: arrays[f"{split}_labels"] for split in there}
    indices = cut(len(labels["train"]), data, there, f"data.path={data.path}")
    for split in there[1:]:
        indices[split] = np.arange(len(labels[split]))
    classes = notes["classes"] or 1 + int(max(values.max() for values in labels.values()))
    return ImageData(
        pixels={split: arrays[f"{split}_pixels"] for split in there},
        labels=labels,
        indices=indices,
        classes=classes,
        names=notes["names"],
        fingerprint=content,
        options=data,
        seed=seed,
    )


def _decode(source: Rows, data: Image, folder: Path) -> None:
    """Write all images of every split as RGB arrays, their labels, and the names of classes."""
    labels = {}
    for split, rows in source.splits.items():
        where = f"{source.where}: split {split}"
        labels[split] = _labels(rows, data.label_column, where)
        np.save(folder / f"{split}_labels.npy", labels[split])
    feature = source.splits["train"].features[data.label_column]
    names = getattr(feature, "names", None)
    used = np.unique(labels["train"])
    column = f"{source.where}: column {data.label_column}"
    if len(used) == 1:
        raise BadInput(
            f"{column}: all training images have label {used[0]}; at least two are needed"
        )
    classes = len(names) if names else int(used[-1]) + 1
    if not names and len(used) < classes:
        gap = min(set(range(classes)) - set(used.tolist()))
        raise BadInput(
            f"{column}: labels must be 0, 1, 2, ... without a gap; they go up to {used[-1]}, and "
            f"no training image has {gap}"
        )
    for split, values in labels.items():
        if values.max() >= classes:
            raise BadInput(
                f"{column}: split {split} has label {values.max()}; training images have "
                f"0 to {classes - 1}"
            )
    _write_pixels(source, data, folder)
    (folder / NOTES).write_text(json.dumps({"classes": classes, "names": names}))


def _labels(rows, column: str, where: str) -> np.ndarray:
    """Class numbers (N,)."""
    feature = rows.features[column]
    if "int" not in str(getattr(feature, "dtype", "")):
        raise BadInput(
            f"{where}, column {column}: must hold class numbers from 0 (integers, or a "
            f"ClassLabel), not {feature}"
        )
    values = rows[column][:]
    if None in values:
        raise BadInput(f"{where}, row {values.index(None)}: has no label in column {column}")
    labels = np.array(values, dtype=np.int64)
    if labels.min() < 0:
        raise BadInput(f"{where}, row {labels.argmin()}: label {labels.min()} is below 0")
    return labels


def _write_pixels(source: Rows, data: Image, folder: Path) -> None:
    """Images of each split as an array (N, H, W, 3): as they are if those of all splits have one
    size, otherwise scaled and cut around their centre to squares of data.image_size.
    """

    def written(size: tuple[int, int], fit: bool) -> bool:
        return all(
            _write(
                folder / f"{split}_pixels.npy",
                size,
                rows,
                data.image_column,
                f"{source.where}: split {split}",
                fit,
            )
            for split, rows in source.splits.items()
        )

    train = source.splits["train"]
    first = next(_images(train, data.image_column, f"{source.where}: split train"))
    if not written(first.size, fit=False):
        written((data.image_size, data.image_size), fit=True)


def _write(file: Path, size: tuple[int, int], rows, column: str, where: str, fit: bool) -> bool:
    """Write all images; False at the first one of another size that may not be made to fit."""
    width, height = size
    shape = (len(rows), height, width, 3)
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    # disable=None: only on a terminal
    bar = tqdm(total=len(rows), desc="decoding", unit=" images", delay=2, disable=None)
    with bar, file.open("wb") as pixels:  # not a memmap, which a full disk ends by SIGBUS
        np.lib.format.write_array_header_1_0(pixels, header)
        for image in _images(rows, column, where):
            if image.size != size:
                if not fit:
                    return False
                image = ImageOps.fit(image, size)
            pixels.write(np.asarray(image).tobytes())
            bar.update()
    return True


def _images(rows, column: str, where: str) -> Iterator[PIL.Image.Image]:
    """All images as RGB, one at a time."""
    import datasets

    number = 0
    try:
        # files written without the hub's type information hold images as bytes
        rows = rows.cast_column(column, datasets.Image())
        for image in rows[column]:
            if image.mode[0] in "IF":  # convert would cut what is above 255
                raise ValueError(f"it has the mode {image.mode}, more than 8 bits a channel")
            yield image.convert("RGB")
            number += 1
    except Exception as error:  # arrow's and the decoder's errors share no base class
        raise BadInput(
            f"{where}, row {number}{_file(rows, column, number)}: column {column} holds no image "
            f"that can be read: {' '.join(str(error).split())[:200]}"
        ) from None


def _file(rows, column: str, number: int) -> str:
    """The file of an image for a message, where it is one of its own."""
    import datasets

    with contextlib.suppress(Exception):  # the column may hold anything
        undecoded = rows.cast_column(column, datasets.Image(decode=False))
        return f" ({undecoded[number][column]['path']})"
    return ""
