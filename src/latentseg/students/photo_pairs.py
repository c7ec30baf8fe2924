"""Batches of photos with a student's labels and of synthetic pairs, mixed if that is asked for."""

from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentseg.datasets.pairs import Batch, Pairs, from_levels
from latentseg.errors import InputError
from latentseg.images import Pixels, to_tensor
from latentseg.seeds import random_generator
from latentseg.students.photo_labels import PhotoLabels, soft_labels
from latentseg.students.self_training_settings import SelfTrainingConfig

MIXED = 0.5  # of the pictures of a batch
_MIXING_KEY = 0x317  # keeps these random numbers apart from others of the same seed and step


class PhotoPairs:
    """Photos with a student's labels, mixed with synthetic pairs; the step decides which.

    Args:
        photos: (N, H, W, 3) uint8.
        labels: Of these photos. Those that are kept are gone through in epochs.
        synthetic: The rest of each batch.
        config: Shares, temperature and weights.
        seed: Of the order.

    Raises:
        InputError: no label is kept.
    """

    def __init__(
        self,
        photos: Pixels,
        labels: PhotoLabels,
        synthetic: Pairs,
        config: SelfTrainingConfig,
        *,
        seed: int,
    ) -> None:
        self.photos, self.labels, self.synthetic = photos, labels, synthetic
        self.config, self.seed = config, seed
        self.kept = torch.nonzero(labels.is_kept)[:, 0].numpy()
        self.order = lru_cache(maxsize=2)(self._order)
        if not len(self.kept):
            raise InputError(
                f"None of the {len(photos)} photos got a likely label. Expected photos of the "
                "generator's domain. If they are, train the first student for longer."
            )

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.synthetic.classes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of images and masks."""
        return self.synthetic.size

    def batch(self, step: int, size: int) -> Batch:
        """The pairs of a step: photos first, then synthetic ones; masks as probabilities."""
        n_photos = max(1, round(size * self.config.photo_share))
        tensors = self._photo_batch(step, n_photos)
        if n_photos < size:
            synthetic = self.synthetic.batch(step, size - n_photos).to("cpu")
            drawn = (synthetic.images, *soft_labels(synthetic, self.classes))
            parts = zip(tensors, drawn, strict=True)
            tensors = tuple(torch.cat([first, second]) for first, second in parts)
        rng = random_generator(self.seed, _MIXING_KEY, step)
        return mix(Batch(*tensors), self.config.mixing, rng)

    def _photo_batch(self, step: int, size: int) -> tuple[Tensor, Tensor, Tensor]:
        positions = range(step * size, (step + 1) * size)
        indices = [self.order(p // len(self.kept))[p % len(self.kept)] for p in positions]
        masks = from_levels(self.labels.probabilities[indices])
        weights = confidence(masks) ** self.config.confidence_power
        doubt = self.config.agreement_smoothing * (1 - self.labels.consistency[indices])
        masks = smooth(sharpen(masks, self.config.temperature), doubt)
        return to_tensor(self.photos[indices]), masks, weights

    def _order(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([self.seed, epoch]).permutation(self.kept)


def confidence(probabilities: Tensor) -> Tensor:
    """How far the most likely class is above chance: (B, C, H, W) to (B, H, W) in [0, 1].

    >>> confidence(torch.tensor([0.5, 0.5]).view(1, 2, 1, 1)).item()
    0.0
    """
    chance = 1 / probabilities.shape[1]
    return ((probabilities.amax(1) - chance) / (1 - chance)).clamp(0, 1)


def sharpen(probabilities: Tensor, temperature: float) -> Tensor:
    """Probabilities (B, C, H, W) as if logits had been divided by `temperature`."""
    powers = probabilities ** (1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def smooth(probabilities: Tensor, doubt: Tensor) -> Tensor:
    """Probabilities (B, C, H, W), of which the share `doubt` (B,) is spread evenly over classes.

    Source: label smoothing, Szegedy et al. 2016, here by as much as the views of a photo disagree.
    """
    doubt = doubt.view(-1, 1, 1, 1)
    return probabilities * (1 - doubt) + doubt / probabilities.shape[1]


def mix(batch: Batch, kind: Literal["none", "cutmix", "classmix"], rng: torch.Generator) -> Batch:
    """Pastes a piece of another picture over half of those of a batch, with its labels.

    Args:
        batch: Masks as probabilities, with weights.
        kind: "none"; "cutmix": a rectangle of up to half of the picture; "classmix": all pixels
            that are likely to be of half of the classes, an object of one class always.
        rng: For what goes where.

    Source: Yun et al. 2019 (CutMix); Olsson et al. 2021 (ClassMix). Both mix within a batch.
    """
    n, _, height, width = batch.images.shape
    if kind == "none" or batch.weights is None:
        return batch
    order = torch.randperm(n, generator=rng)
    if kind == "cutmix":
        region = _rectangles(n, (height, width), rng)
    else:
        region = _objects(batch.masks[order], rng)
    region &= (torch.rand(n, generator=rng) < MIXED).view(-1, 1, 1)
    return Batch(
        torch.where(region[:, None], batch.images[order], batch.images),
        torch.where(region[:, None], batch.masks[order], batch.masks),
        torch.where(region, batch.weights[order], batch.weights),
    )


def _rectangles(n: int, size: tuple[int, int], rng: torch.Generator) -> Tensor:
    """(n, H, W) bool, rectangles of any aspect inside the picture, of up to half of its area."""
    area = torch.rand(n, generator=rng) / 2
    height = area + (1 - area) * torch.rand(n, generator=rng)
    lengths = torch.stack([height, (area / height).clamp(max=1)], dim=1)
    starts = torch.rand(n, 2, generator=rng) * (1 - lengths)
    inside = []
    for axis, side in enumerate(size):
        place = (torch.arange(side) + 0.5) / side
        start, length = starts[:, axis, None], lengths[:, axis, None]
        inside.append((place >= start) & (place < start + length))
    return inside[0][:, :, None] & inside[1][:, None, :]


def _objects(masks: Tensor, rng: torch.Generator) -> Tensor:
    """(n, H, W) bool, where the classes that are drawn for each of the masks are most likely."""
    n, n_classes = masks.shape[:2]
    rank = torch.rand(n, n_classes - 1, generator=rng).argsort(1).argsort(1)
    is_chosen = torch.cat([torch.zeros(n, 1, dtype=torch.bool), rank < n_classes // 2], dim=1)
    return torch.gather(is_chosen, 1, masks.argmax(1).flatten(1)).view(n, *masks.shape[-2:])
