"""What a generator promises: latents from seeds, images from latents, steps in its own scale."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from latentseg.generators.banks import Bank


@dataclass(frozen=True)
class GeneratorInfo:
    """The identity card of a generator.

    Attributes:
        name: Short name, used in file names and reports.
        size: (height, width) of its images in pixels.
        latent: Shape of one latent.
        n_classes: Number of class labels; 0 for an unconditional generator.
        space: The space of its latents: "z", "w" or "ws".
        licence: Licence of the weights; it travels to every dataset and segmenter made from them.
        source: Where the weights come from.
        sha256: Of the weights file; "" for a generator that was never saved.
        family: Of the network, for example "stylegan2"; "" for a callable of the user's own.
        classes: The labels that are drawn; () for all.
        bank: `Bank.description` of latents that are drawn instead of its own; None for its own.
    """

    name: str
    size: tuple[int, int]
    latent: tuple[int, ...]
    n_classes: int
    space: str
    licence: str
    source: str
    sha256: str
    family: str = ""
    classes: tuple[int, ...] = ()
    bank: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The card as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class Latents:
    """A batch of latents, with their class labels if the generator is conditional.

    Attributes:
        values: (B, *latent) float32.
        labels: (B,) int64, or None.
    """

    values: Tensor
    labels: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: slice | Tensor) -> "Latents":
        return Latents(self.values[index], None if self.labels is None else self.labels[index])

    def with_values(self, values: Tensor) -> "Latents":
        """The same labels with other values."""
        return Latents(values, self.labels)


@runtime_checkable
class Generator(Protocol):
    """A frozen network that turns latents into images."""

    info: GeneratorInfo

    @property
    def device(self) -> torch.device:
        """Where its weights are, and where its latents and images are made."""
        ...

    def to(self, device: torch.device | str) -> Self:
        """Moves the weights; returns the generator itself."""
        ...

    def sample(self, seeds: Tensor) -> Latents:
        """Draws latents; latent i (and its class) depends only on `seeds[i]`, (B,) int64."""
        ...

    def __call__(self, latents: Latents) -> Tensor:
        """Images (B, 3, H, W) float32, differentiable with respect to the latents.

        Nominally in [-1, 1]: a family whose official network does not clamp may leave the range.
        """
        ...

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        """Moves the latents by `step`, (*latent) or (B, *latent), in units of their own spread.

        One unit is the standard deviation of the latent's distribution, per coordinate. The class
        label stays.
        """
        ...


@runtime_checkable
class HasVariants(Protocol):
    """A generator that can draw the same layout in another appearance.

    Its image is made layer by layer, coarse to fine, and each of the `n_layers` layers takes its
    own part of the latent.
    """

    @property
    def n_layers(self) -> int:
        """How many layers take their own part of the latent."""
        ...

    def variants(self, latents: Latents, seeds: Tensor, keep: int) -> Tensor:
        """(B, N, 3, H, W): one variant of each image for each of the N `seeds`.

        The first `keep` layers (0 to `n_layers`) stay as they are; the others take what
        `sample(seeds)` would give them, the class label included.
        """
        ...


@runtime_checkable
class HasFeatures(Protocol):
    """A generator whose activations can be read while it draws."""

    feature_channels: tuple[int, ...]

    def features(self, latents: Latents) -> list[Tensor]:
        """Activation maps (B, C_l, H_l, W_l), coarse to fine; C_l are `feature_channels`."""
        ...


@dataclass(frozen=True)
class Strip:
    """Some rows of an activation map.

    Attributes:
        layer: Of the generator, 0 the coarsest.
        top: Row of the map at which the strip begins.
        height: Rows of the whole map.
        values: (B, C_l, rows, W_l).
    """

    layer: int
    top: int
    height: int
    values: Tensor

    @property
    def rows(self) -> slice:
        """Its rows in the map."""
        return slice(self.top, self.top + self.values.shape[2])


@runtime_checkable
class HasFeatureStrips(Protocol):
    """A generator that hands its features over while it draws, so that none needs to be kept."""

    feature_channels: tuple[int, ...]

    def feature_strips(self, latents: Latents, *, memory: int) -> Iterator[Strip]:
        """The maps of `features` in strips, each as soon as it is drawn.

        Every row of every map comes exactly once, those of a map from top to bottom; strips of
        different maps may alternate. They are not to be written to: finer ones are drawn from them.

        Args:
            latents: Of the images.
            memory: Bytes for what is drawn, weights and what the caller keeps not counted. The
                least that can be done is one row at a time, or one map in a network that cannot
                draw rows.
        """
        ...


@runtime_checkable
class HasEncoder(Protocol):
    """A generator that finds the latents of given images."""

    def encode(self, x: Tensor) -> Latents:
        """Latents of images (B, 3, H, W) in [-1, 1], such that drawing them gives about `x`."""
        ...


@runtime_checkable
class HasClasses(Protocol):
    """A generator that can be told which class labels to draw."""

    def with_classes(self, classes: tuple[int, ...]) -> Generator:
        """The same generator, which draws only `classes`; equally often, unless it has weights.

        Raises:
            InputError: there are no such classes.
        """
        ...


@runtime_checkable
class HasBank(Protocol):
    """A generator that can draw given latents instead of its own."""

    def with_bank(self, bank: Bank) -> Generator:
        """The same generator, whose `sample` draws the latents of `bank`, with its noise.

        What else it does, and the unit of `shift`, stay: a labeler of the one labels the other.
        `info.bank` tells the two apart.

        Raises:
            InputError: its latents or labels are not those of this generator.
        """
        ...
