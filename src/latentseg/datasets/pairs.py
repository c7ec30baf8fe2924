"""What a student learns from: batches of images with masks, as a pure function of the step."""

from collections import ChainMap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentseg.datasets.real import open_dataset
from latentseg.errors import InputError
from latentseg.images import Pixels, cover, to_tensor

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


def to_levels(probabilities: Tensor) -> Tensor:
    """Class probabilities in steps of 1/255, so rounded that they still sum to 1.

    Args:
        probabilities: (B, K + 1, H, W) float, the background first; they sum to 1.

    Returns:
        (B, K, H, W) uint8, 0..255 for 0..1, without the background, whose level is the rest to 255.
        Every class is less than 1/255 from its probability.

    >>> to_levels(torch.full((1, 4, 1, 1), 0.25)).flatten().tolist()
    [64, 64, 63]
    """
    steps = (255 * probabilities[:, 1:].cumsum(1)).round().clamp(0, 255)
    return steps.diff(dim=1, prepend=torch.zeros_like(steps[:, :1])).to(torch.uint8)


def from_levels(levels: Tensor) -> Tensor:
    """The probabilities (B, K + 1, H, W) float32 of `levels` (B, K, H, W) uint8."""
    likely = levels.float() / 255
    return torch.cat([(1 - likely.sum(1, keepdim=True)).clamp(min=0), likely], dim=1)


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
    """A finite dataset: `dataset[i]` is (name, image (H, W, 3) uint8, mask).

    A mask is (H, W) uint8, class ids; or (K, H, W) uint8, how likely each class is: `to_levels`.
    """

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]: ...


@runtime_checkable
class DescribedImages(LabelledImages, Protocol):
    """A finite dataset that says where it comes from."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Licence, generator, labeler and the like, as JSON values."""
        ...


class FolderPairs:
    """A dataset as an endless supply of batches, shuffled anew in every epoch.

    The pairs of a step depend only on (seed, step). Each file is decoded once and kept in memory
    if all of them fit into 4 GiB.

    Args:
        dataset: What `open_dataset` opens, or any dataset that can be indexed.
        size: (height, width) of the batches; pictures are scaled to cover it and cut at the center.
            None: that of the first image.
        seed: Of the order.
        limit: Use only the first `limit` pairs.
        soft: Learn from the class probabilities of a dataset folder that has them, not from its
            masks.

    Raises:
        InputError: the dataset is empty.
    """

    def __init__(
        self,
        dataset: Path | str | LabelledImages,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        limit: int | None = None,
        soft: bool = True,
    ) -> None:
        is_folder = isinstance(dataset, str | Path)
        self.dataset = open_dataset(dataset, soft=soft) if is_folder else dataset
        self.seed = seed
        self.n_pairs = min(len(self.dataset), limit or len(self.dataset))
        if self.n_pairs == 0:
            raise InputError(f"{dataset}: no images. A student needs at least one pair.")
        self.size = size or self.dataset[0][1].shape[:2]
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
        """The `size` pairs of training step `step`."""
        positions = range(step * size, (step + 1) * size)
        pairs = self.pairs([int(self.order(p // len(self))[p % len(self)]) for p in positions])
        images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        found = torch.from_numpy(masks)
        return Batch(to_tensor(images), found if found.ndim == 3 else from_levels(found))

    def pairs(self, indices: Sequence[int]) -> list[tuple[Pixels, Pixels]]:
        """Image and mask of each index, at `size`."""
        missing = [index for index in dict.fromkeys(indices) if index not in self.cache]
        read = dict(zip(missing, self.pool.map(self._read, missing), strict=True))
        if read:
            bytes_per_pair = sum(part.nbytes for part in read[missing[0]])
            if self.n_pairs * bytes_per_pair <= MAX_CACHE_BYTES:
                self.cache.update(read)
        found = ChainMap(read, self.cache)
        return [found[index] for index in indices]

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(len(self))

    def _read(self, index: int) -> tuple[Pixels, Pixels]:
        name, image, mask = self.dataset[index]
        if image.shape[:2] != mask.shape[-2:]:
            raise InputError(
                f"{name}: the image has {image.shape[0]} x {image.shape[1]} pixels, its mask "
                f"{mask.shape[-2]} x {mask.shape[-1]}. They must agree."
            )
        if mask.ndim == 2:
            return cover(image, self.size), cover(mask, self.size)
        # By nearest neighbour, like ids: so the probabilities still sum to 1.
        return cover(image, self.size), np.stack([cover(plane, self.size) for plane in mask])
