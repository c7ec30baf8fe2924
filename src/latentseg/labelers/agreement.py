"""Two labelers on the same samples: how far they agree, and a mask for which both vote.

Methods that look at different things, how images brighten and how they change colour, seldom make
the same mistake. Where their masks agree they can be trusted more, and where they do not the one
that is surer of a pixel is more often right.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import check_keys, read_json, verify_manifest, write_json, write_manifest
from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers import load_labeler
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.losses import grey
from latentseg.labelers.naming import NAMES
from latentseg.labelers.protocols import Labeler, Labelled
from latentseg.labelers.quality import agreement
from latentseg.labelers.refinement import area_share, first_refusal, large_components

FORMAT = 1
PARTS = ("first", "second")  # the subfolders of the two labelers


@runtime_checkable
class HasVotes(Protocol):
    """A labeler of one class that can say how sure it is of each pixel."""

    def votes(self, latents: Latents) -> Tensor:
        """(B, H, W) float32, positive for foreground; the size says how sure, in any unit."""
        ...


@dataclass(frozen=True)
class AgreementConfig:
    """How two labelers are combined.

    Attributes:
        min_agreement: Least IoU of their masks.
        min_component: Of a voted mask, components stay whose area exceeds this share of the
            largest one's.
        min_area: Least share of the image that a voted mask must cover.
        max_area: Largest share that it may cover.
    """

    min_agreement: float = 0.5
    min_component: float = 0.2
    min_area: float = 0.01
    max_area: float = 0.6

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) <= 1:
                raise InputError(f"{field.name} {getattr(self, field.name)}: expected 0 to 1.")

    def to_json(self) -> dict[str, Any]:
        """The configuration as JSON values."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any], where: Path | str) -> "AgreementConfig":
        """Reads what `to_json` gave.

        Raises:
            InputError: a field is unknown, or a value is out of its range.
        """
        check_keys(values, {field.name for field in fields(AgreementConfig)}, where)
        return AgreementConfig(**values)


DEFAULTS = AgreementConfig()


class AgreementLabeler:
    """The masks of one labeler, with the agreement of another one as confidence and as filter.

    Args:
        first: Its masks and its verdicts are taken.
        second: Of the same generator.
        config: Only `min_agreement` is used.

    Raises:
        InputError: the labelers belong to different generators.
    """

    method = "agreement"

    def __init__(
        self, first: Labeler, second: Labeler, *, config: AgreementConfig = DEFAULTS
    ) -> None:
        _check_generators(first, second)
        self.first, self.second, self.config = first, second, config

    @property
    def generator(self) -> Generator:
        """The generator that both were fitted to."""
        return self.first.generator

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the first labeler's classes."""
        return self.first.classes

    @property
    def filters(self) -> tuple[str, ...]:
        """Those of the first labeler, then its agreement with the second."""
        return (*self.first.filters, f"agreement with {self.second.info['method']}")

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return _info(self.method, self.first, self.second, self.config)

    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them; foregrounds are compared, not classes."""
        own, other = self.first.label(latents), self.second.label(latents)
        shared = agreement(own.masks.numpy() > 0, other.masks.numpy() > 0)
        is_refused = torch.from_numpy(shared < self.config.min_agreement) & (own.rejected_by == 0)
        return Labelled(
            images=own.images,
            masks=own.masks,
            confidence=torch.from_numpy(shared).float(),
            rejected_by=torch.where(is_refused, len(self.filters), own.rejected_by),
        )

    def save(self, folder: Path | str) -> None:
        """Writes both labelers into subfolders, labeler.json and, last, the manifest."""
        _save(self, folder)

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "AgreementLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        first, second, config = _load(folder, generator)
        return AgreementLabeler(first, second, config=config)


class VotingLabeler:
    """Masks for which two labelers vote, each pixel's votes weighted by how sure they are of it.

    The votes of a labeler are divided by their mean size in the image, so that both count alike.
    The confidence is the IoU of the masks that either one would make alone.

    Args:
        first: Of one class.
        second: Of one class and of the same generator.
        config: Thresholds.

    Raises:
        InputError: the labelers belong to different generators, have several classes, or one of
            them cannot vote.
    """

    method = "voting"
    filters = ("components", "area", "agreement")

    def __init__(
        self, first: Labeler, second: Labeler, *, config: AgreementConfig = DEFAULTS
    ) -> None:
        _check_generators(first, second)
        for labeler in (first, second):
            if len(labeler.classes) > 1 or not isinstance(labeler, HasVotes | DirectionsLabeler):
                raise InputError(
                    f"labeler {labeler.info['method']!r} with classes "
                    f"{', '.join(labeler.classes)}: voting takes labelers of one class that are "
                    "sure of pixels more or less: directions, or style-mixing with k 2."
                )
        self.first, self.second, self.config = first, second, config

    @property
    def generator(self) -> Generator:
        """The generator that both were fitted to."""
        return self.first.generator

    @property
    def classes(self) -> tuple[str, ...]:
        """The first labeler's name of the class."""
        return self.first.classes

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return _info(self.method, self.first, self.second, self.config)

    @torch.no_grad()
    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        x = self.generator(latents)
        votes = [_scaled(_votes(labeler, latents, x)) for labeler in (self.first, self.second)]
        alone = [(vote > 0).cpu().numpy() for vote in votes]
        shared = agreement(*alone)
        masks = large_components((votes[0] + votes[1] > 0).cpu().numpy(), self.config.min_component)
        area = area_share(masks)
        passed = np.stack(
            [
                masks.any(axis=(1, 2)),
                (area >= self.config.min_area) & (area <= self.config.max_area),
                shared >= self.config.min_agreement,
            ]
        )
        return Labelled(
            images=x,
            masks=torch.from_numpy(masks.astype(np.uint8)),
            confidence=torch.from_numpy(shared).float(),
            rejected_by=torch.from_numpy(first_refusal(passed)),
        )

    def save(self, folder: Path | str) -> None:
        """Writes both labelers into subfolders, labeler.json and, last, the manifest."""
        _save(self, folder)

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "VotingLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        first, second, config = _load(folder, generator)
        return VotingLabeler(first, second, config=config)


def directions_votes(labeler: DirectionsLabeler, latents: Latents, x: Tensor) -> Tensor:
    """By how much the light image is lighter than the dark one, (B, H, W); `x` are the images."""
    shifted = labeler.shifted(latents)
    return grey(shifted.get("light", x)) - grey(shifted.get("dark", x))


def _votes(labeler: Labeler, latents: Latents, x: Tensor) -> Tensor:
    if isinstance(labeler, DirectionsLabeler):
        return directions_votes(labeler, latents, x)
    if isinstance(labeler, HasVotes):
        return labeler.votes(latents).to(x.device)
    raise TypeError(f"{type(labeler).__name__} cannot vote.")


def _scaled(votes: Tensor) -> Tensor:
    return votes / votes.abs().mean(dim=(1, 2), keepdim=True).clamp(min=1e-12)


def _check_generators(first: Labeler, second: Labeler) -> None:
    if first.generator.info != second.generator.info:
        raise InputError(
            f"one labeler belongs to generator {first.generator.info.name!r}, the other to "
            f"{second.generator.info.name!r}. Both must have been fitted to the same one."
        )


def _info(method: str, first: Labeler, second: Labeler, config: AgreementConfig) -> dict[str, Any]:
    return {
        "method": method,
        "generator": first.generator.info.to_json(),
        "first": first.info,
        "second": second.info,
        "options": config.to_json(),
    }


def _save(labeler: AgreementLabeler | VotingLabeler, folder: Path | str) -> None:
    folder = Path(folder)
    for name, part in zip(PARTS, (labeler.first, labeler.second), strict=True):
        part.save(folder / name)
    description = {"method": labeler.method, "options": labeler.config.to_json()}
    write_json(folder / "labeler.json", {"format": FORMAT, **description})
    write_manifest(folder, keep=lambda path: path.name != NAMES)


def _load(folder: Path | str, generator: Generator) -> tuple[Labeler, Labeler, AgreementConfig]:
    folder = Path(folder)
    verify_manifest(folder)
    path = folder / "labeler.json"
    description = read_json(path)
    if description.get("format") != FORMAT or "options" not in description:
        raise CorruptFileError(f"{path}: expected format {FORMAT} with options.")
    first, second = (load_labeler(folder / name, generator) for name in PARTS)
    return first, second, AgreementConfig.from_json(description["options"], path)
