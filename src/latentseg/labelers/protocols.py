"""What every labeler promises: generated images, with a mask for each and a verdict on each."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentseg.generators.protocols import Generator, Latents


@dataclass(frozen=True)
class Labelled:
    """Generated images with their masks.

    Attributes:
        images: (B, 3, H, W) float32 in [-1, 1], on the generator's device.
        masks: Class ids, (B, H, W) uint8, on the CPU like the rest.
        confidence: How sure the labeler is of each mask, (B,) float32 in [0, 1].
        rejected_by: (B,) int64. 0: the sample is good. k: `labeler.filters[k - 1]` was the first
            filter to refuse it.
    """

    images: Tensor
    masks: Tensor
    confidence: Tensor
    rejected_by: Tensor

    def __getitem__(self, rows: slice) -> "Labelled":
        return Labelled(
            self.images[rows], self.masks[rows], self.confidence[rows], self.rejected_by[rows]
        )


class Labeler(Protocol):
    """Turns generated images into masks."""

    @property
    def generator(self) -> Generator:
        """The generator that it was fitted to."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        ...

    @property
    def filters(self) -> tuple[str, ...]:
        """Names of the filters that may refuse a sample, in their order."""
        ...

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values; it travels into every dataset."""
        ...

    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them; without gradients."""
        ...

    def save(self, folder: Path | str) -> None:
        """Writes all that `load_labeler` needs, besides the generator, into `folder`."""
        ...


@runtime_checkable
class SoftLabeler(Labeler, Protocol):
    """A labeler that also tells how likely each class is."""

    def label_softly(self, latents: Latents) -> tuple[Labelled, Tensor]:
        """What `label` gives, and in the same pass the probabilities that its masks come from.

        These are (B, K + 1, H, W) float32, the background first, and sum to 1.
        """
        ...


@runtime_checkable
class HasVotes(Labeler, Protocol):
    """A labeler of one class that can say how sure it is of each pixel."""

    def votes(self, latents: Latents, x: Tensor) -> Tensor:
        """How sure it is that a pixel is foreground, from its images `x` (B, 3, H, W).

        Returns:
            (B, H, W) float32, positive for foreground; the size says how sure, in any unit.
        """
        ...


@runtime_checkable
class HasMembers(Labeler, Protocol):
    """A labeler made of several, whose students can be averaged as an ensemble."""

    def members(self) -> Mapping[str, Labeler]:
        """Each of them alone, by its name."""
        ...


@runtime_checkable
class SegmentsRegions(Labeler, Protocol):
    """A labeler that can find the object inside a part of an image."""

    def drawn(self, latents: Latents) -> Iterator[Tensor]:
        """What it looks at, (b, N, 3, H, W), a few images at a time; first of N is the image."""
        ...

    def object_in(
        self, drawn: Tensor, rows: slice, columns: slice
    ) -> tuple[NDArray[np.bool_], float]:
        """The object in some rows and columns of one image.

        Args:
            drawn: (N, 3, H, W), one entry of what `drawn` gives.
            rows, columns: The region.

        Returns:
            Its mask in the region, and the confidence in [0, 1].
        """
        ...


@runtime_checkable
class ShowsSteps(Protocol):
    """A labeler that can show the images from which it makes a mask."""

    def steps(self, latents: Latents) -> Mapping[str, Tensor]:
        """By name, for example "light": images (B, 3, H, W) in [-1, 1]."""
        ...
