"""What a student learns from: batches of images with masks, as a pure function of the step."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentseg.errors import InputError
from latentseg.files import read_json, verify_manifest
from latentseg.images import (
    Pixels,
    cover,
    list_images,
    read_image,
    read_mask,
    to_tensor,
)

MAX_CACHE_BYTES = 4 * 2**30
DECODING_THREADS = 4


@dataclass(frozen=True)
class Batch:
    """Images with what a student should answer.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1].
        masks: Class ids (B, H, W) uint8, 255 ignored; or probabilities (B, K + 1, H, W) float32.
        weights: How much each pixel counts, (B, H, W) float32, or None: all alike.
    """

    images: Tensor
    masks: Tensor
    weights: Tensor | None = None

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on `device`."""
        weights = None if self.weights is None else self.weights.to(device)
        return Batch(self.images.to(device), self.masks.to(device), weights)


class Pairs(Protocol):
    """An endless supply of batches: the same step gives the same batch, in any order of asking."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        ...

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of images and masks."""
        ...

    def batch(self, step: int, size: int) -> Batch:
        """The `size` pairs of training step `step`, on the CPU or where they were made."""
        ...


class LabelledImages(Protocol):
    """A finite data set: `dataset[i]` is (name, image (H, W, 3) uint8, mask (H, W) uint8)."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]: ...


class DatasetFolder:
    """The dataset folders that latentseg writes: images/NAME.*, masks/NAME.png, dataset.json.

    Args:
        folder: A finished dataset folder.

    Raises:
        InputError: the folder is not finished, or an image has no mask.
        CorruptFileError: a file has changed since it was written.
    """

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        verify_manifest(folder)
        description = read_json(folder / "dataset.json")
        self.classes: tuple[str, ...] = tuple(description["classes"])
        self.foreground: int | None = description.get("foreground")
        self.images = list_images(folder / "images")
        self.masks = [folder / "masks" / f"{path.stem}.png" for path in self.images]
        missing = [path.name for path in self.masks if not path.is_file()]
        if missing:
            raise InputError(
                f"{folder}: {len(missing)} images have no mask, first masks/{missing[0]}. "
                f"See all problems with: latentseg check {folder}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        path = self.images[index]
        mask = read_mask(self.masks[index])
        if self.foreground is not None:
            mask = (mask == self.foreground).astype(np.uint8)
        return path.stem, read_image(path), mask


class FolderPairs:
    """A data set as an endless supply of batches, shuffled anew in every epoch.

    The pairs of a step depend only on (seed, step). Each file is decoded once and kept in memory
    if all of them fit into 4 GiB.

    Args:
        dataset: A dataset folder, or any data set that can be indexed.
        size: (height, width) of the batches; pictures are scaled to cover it and cut at the centre.
            None: that of the first image.
        seed: Of the order.
        limit: Use only the first `limit` pairs.

    Raises:
        InputError: the data set is empty.
    """

    def __init__(
        self,
        dataset: Path | str | LabelledImages,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        limit: int | None = None,
    ) -> None:
        self.dataset = DatasetFolder(dataset) if isinstance(dataset, str | Path) else dataset
        self.seed = seed
        self.n_pairs = min(len(self.dataset), limit or len(self.dataset))
        if self.n_pairs == 0:
            raise InputError(f"{dataset}: no images. A student needs at least one pair.")
        height, width = self.size = size or self.dataset[0][1].shape[:2]
        self.is_cached = self.n_pairs * height * width * 4 <= MAX_CACHE_BYTES
        self.cache: dict[int, tuple[Pixels, Pixels]] = {}
        self.pool = ThreadPoolExecutor(DECODING_THREADS)
        self.order = lru_cache(maxsize=2)(self._order)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.dataset.classes

    def __len__(self) -> int:
        return self.n_pairs

    def batch(self, step: int, size: int) -> Batch:
        """The `size` pairs of training step `step`: images float32 in [-1, 1], masks uint8."""
        positions = range(step * size, (step + 1) * size)
        pairs = self.pairs([int(self.order(p // len(self))[p % len(self)]) for p in positions])
        images, masks = zip(*pairs, strict=True)
        return Batch(to_tensor(np.stack(images)), torch.from_numpy(np.stack(masks)))

    def pairs(self, indices: Sequence[int]) -> list[tuple[Pixels, Pixels]]:
        """Image and mask of each index, at `size`."""
        missing = [index for index in dict.fromkeys(indices) if index not in self.cache]
        read = dict(zip(missing, self.pool.map(self._read, missing), strict=True))
        if self.is_cached:
            self.cache.update(read)
            return [self.cache[index] for index in indices]
        return [read[index] for index in indices]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def _read(self, index: int) -> tuple[Pixels, Pixels]:
        name, image, mask = self.dataset[index]
        if image.shape[:2] != mask.shape:
            raise InputError(
                f"{name}: the image has {image.shape[0]} x {image.shape[1]} pixels, its mask "
                f"{mask.shape[0]} x {mask.shape[1]}. They must agree."
            )
        return cover(image, self.size), cover(mask, self.size)
