"""Two labelers on the same samples: how far they agree, and a mask for which both vote.

Methods that look at different things, how images brighten and how they change color, seldom make
the same mistake. Where their masks agree they can be trusted more, and where they do not the one
that is surer of a pixel is more often right.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.configs import from_json
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json, verify_manifest
from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers.agreement_settings import AgreementConfig
from latentseg.labelers.components import large_components
from latentseg.labelers.descriptions import DESCRIPTION, FORMAT, write_labeler
from latentseg.labelers.mask_measures import area_share, mask_iou
from latentseg.labelers.protocols import HasVotes, Labeler, Labelled
from latentseg.labelers.refinement import first_refusal
from latentseg.labelers.registry import load_labeler

SUBFOLDERS = ("first", "second")  # of the two labelers


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
        shared = mask_iou(own.masks.numpy() > 0, other.masks.numpy() > 0)
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
            if len(labeler.classes) > 1 or not isinstance(labeler, HasVotes):
                raise InputError(
                    f"labeler {labeler.info['method']!r} with classes "
                    f"{', '.join(labeler.classes)}: voting takes labelers of one class that are "
                    "sure of pixels more or less: directions, or style-mixing with k 2."
                )
        self.first, self.second, self.config = first, second, config
        self.voters = [each for each in (first, second) if isinstance(each, HasVotes)]

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
        votes = [_scaled(labeler.votes(latents, x).to(x.device)) for labeler in self.voters]
        alone = [(vote > 0).cpu().numpy() for vote in votes]
        shared = mask_iou(*alone)
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
        "options": asdict(config),
    }


def _save(labeler: AgreementLabeler | VotingLabeler, folder: Path | str) -> None:
    for name, part in zip(SUBFOLDERS, (labeler.first, labeler.second), strict=True):
        part.save(Path(folder) / name)
    write_labeler(folder, {"method": labeler.method, "options": asdict(labeler.config)})


def _load(folder: Path | str, generator: Generator) -> tuple[Labeler, Labeler, AgreementConfig]:
    folder = Path(folder)
    verify_manifest(folder)
    path = folder / DESCRIPTION
    description = read_json(path)
    if description.get("format") != FORMAT or "options" not in description:
        raise CorruptFileError(f"{path}: expected format {FORMAT} with options.")
    first, second = (load_labeler(folder / name, generator) for name in SUBFOLDERS)
    return first, second, from_json(AgreementConfig, description["options"], path)
