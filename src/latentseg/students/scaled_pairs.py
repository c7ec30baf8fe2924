"""Pairs at the working size of a student, which may be larger than what a generator draws."""

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.datasets.pairs import Batch, Pairs


class ScaledPairs:
    """Pairs scaled to another size on demand, so that they are kept at the size of the generator.

    Images are scaled bilinearly, with antialiasing where they shrink. Masks of class ids are scaled
    as one map for each class, of which the largest decides: their outlines stay smooth.

    Args:
        pairs: What is scaled.
        size: (height, width) of the batches.
    """

    def __init__(self, pairs: Pairs, size: tuple[int, int]) -> None:
        self.pairs, self.size = pairs, size

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.pairs.classes

    def batch(self, step: int, size: int) -> Batch:
        """The `size` pairs of training step `step`."""
        batch = self.pairs.batch(step, size)
        weights = batch.weights
        if weights is not None:
            weights = functional.interpolate(weights[:, None], size=self.size)[:, 0]
        if batch.masks.ndim == 4:
            masks = self._scaled(batch.masks)
        else:
            masks = self._scaled_ids(batch.masks)
        return Batch(self._scaled(batch.images).clamp(-1, 1), masks, weights)

    def _scaled(self, maps: Tensor) -> Tensor:
        return functional.interpolate(maps, size=self.size, mode="bilinear", antialias=True)

    def _scaled_ids(self, ids: Tensor) -> Tensor:
        """Class ids (B, H, W) uint8; a pixel is ignored where the nearest one is."""
        n_classes = len(self.classes) + 1
        planes = functional.one_hot(ids.long() * (ids < n_classes), n_classes).movedim(-1, 1)
        scaled = self._scaled(planes.float()).argmax(1).to(torch.uint8)
        nearest = functional.interpolate(ids[:, None], size=self.size)[:, 0]
        return torch.where(nearest < n_classes, scaled, nearest)


def at_size(pairs: Pairs, size: tuple[int, int]) -> Pairs:
    """The pairs themselves if they have `size`, else scaled ones."""
    return pairs if tuple(pairs.size) == size else ScaledPairs(pairs, size)
