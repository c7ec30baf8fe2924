"""Latent directions (Melas-Kyriazi et al. 2021): masks from what a step in latent space lights up.

`foreground` is Eq. 2 and Eq. 3; `DirectionsLabeler` draws the images that it compares, and filters
the masks.
"""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers.descriptions import read_labeler, write_labeler
from latentseg.labelers.directions_settings import KIND, DirectionsConfig
from latentseg.labelers.losses import gray
from latentseg.labelers.overview import sample_latents
from latentseg.labelers.protocols import Labelled
from latentseg.labelers.refinement import FILTERS, refine

TENSORS = "directions.safetensors"
HELD_OUT = -1  # takes the place of the step in the seeds of latents that no step learns from


def foreground(light: Tensor, dark: Tensor) -> Tensor:
    """Where the image after the light step is brighter than the one after the dark step.

    Args:
        light: Images after a step along the light direction, (B, 3, H, W) in [-1, 1].
        dark: The same images after a step along the dark direction. Where only one direction is
            used, the image itself takes the place of the other one: Eq. 3.

    Returns:
        Masks (B, H, W) bool.

    Source: Melas-Kyriazi et al. 2021, Eq. 2 and Eq. 3.
    """
    return gray(light) > gray(dark)


class DirectionsLabeler:
    """Labels images by what a step along the light and the dark direction does to their brightness.

    Args:
        generator: The generator in whose latent space the directions lie.
        directions: By sign; (*latent), of length 1.
        config: Mode, generation radius (which must be set) and filters are used.
        seed: That of the search, for the record.

    Source: Melas-Kyriazi et al. 2021, section 3.2; the confidence is ours.
    """

    classes = ("foreground",)
    filters = FILTERS

    def __init__(
        self,
        generator: Generator,
        directions: Mapping[str, Tensor],
        *,
        config: DirectionsConfig,
        seed: int,
    ) -> None:
        missing = [sign for sign in config.signs if sign not in directions]
        if missing:
            raise InputError(
                f"`mode`: {config.mode!r} needs the {missing[0]} direction, which was never "
                "searched."
            )
        if config.generation_radius is None:
            raise InputError(
                "`generation_radius`: expected a number, as the labeler makes masks with it."
            )
        self.generator, self.config, self.seed = generator, config, seed
        self.radius = config.generation_radius
        self.directions = dict(directions)
        self.used = {sign: directions[sign] for sign in config.signs}
        if config.is_opposite and config.mode == "both":
            difference = directions["light"] - directions["dark"]
            unit = difference / difference.norm()
            self.used = {"light": unit, "dark": -unit}

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made, as JSON values."""
        return {
            "method": KIND.name,
            "generator": self.generator.info.to_json(),
            "seed": self.seed,
            "options": asdict(self.config),
        }

    def with_config(self, config: DirectionsConfig) -> "DirectionsLabeler":
        """The same directions, used with another mode, generation radius or filters."""
        return DirectionsLabeler(self.generator, self.directions, config=config, seed=self.seed)

    @torch.no_grad()
    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them."""
        return self.judge(self.generator(latents), self.shifted(latents))

    @torch.no_grad()
    def shifted(self, latents: Latents) -> dict[str, Tensor]:
        """The images of `latents` after the step along each direction that the mode needs."""
        steps = {sign: self.radius * values for sign, values in self.used.items()}
        return {
            sign: self.generator(self.generator.shift(latents, step.to(latents.values)))
            for sign, step in steps.items()
        }

    def steps(self, latents: Latents) -> dict[str, Tensor]:
        """The images from which masks are made: those after the light and the dark step."""
        return self.shifted(latents)

    def own_latents(self, n: int) -> Latents:
        """`n` latents on which the labeler may be judged: none that the search has seen."""
        return sample_latents(self.generator, n, self.seed, HELD_OUT, 1)

    def votes(self, latents: Latents, x: Tensor) -> Tensor:
        """By how much the light image is brighter than the dark one, (B, H, W) float32.

        Args:
            latents: Of B images.
            x: These images, (B, 3, H, W).
        """
        shifted = self.shifted(latents)
        return gray(shifted.get("light", x)) - gray(shifted.get("dark", x))

    def members(self) -> dict[str, "DirectionsLabeler"]:
        """The labelers of the light and of the dark direction alone, by the name of their mode."""
        return {mode: self.with_config(replace(self.config, mode=mode)) for mode in KIND.members}

    def judge(self, x: Tensor, shifted: Mapping[str, Tensor]) -> Labelled:
        """Masks and verdicts from images and shifted images, each (B, 3, H, W)."""
        light, dark = shifted.get("light", x), shifted.get("dark", x)
        parts = [foreground(light, x), foreground(x, dark)] if len(shifted) == 2 else []
        masks, rejected_by = refine(
            foreground(light, dark).cpu().numpy(),
            [part.cpu().numpy() for part in parts],
            list(shifted.values()),
            self.config.refinement,
        )
        return Labelled(
            images=x,
            masks=torch.from_numpy(masks.astype(np.uint8)),
            confidence=confidence(gray(light) - gray(dark)).cpu(),
            rejected_by=torch.from_numpy(rejected_by),
        )

    def save(self, folder: Path | str) -> None:
        """Writes directions.safetensors, labeler.json and, last, the manifest of `folder`."""
        write_labeler(folder, self.info, {TENSORS: self.directions})

    @staticmethod
    def load(folder: Path | str, generator: Generator) -> "DirectionsLabeler":
        """Reads a labeler that `save` wrote.

        Raises:
            InputError: the folder is not finished, or belongs to another generator.
            CorruptFileError: a file is damaged.
        """
        saved = read_labeler(KIND, folder, generator)
        return DirectionsLabeler(
            generator, saved.tensors(TENSORS), config=saved.config, seed=saved.seed
        )


def confidence(difference: Tensor) -> Tensor:
    """How clearly brightness differences stand off from 0, (B, H, W) to (B,) in [0, 1].

    The mean over the pixels of |difference| in units of its root mean square, cut at 1: 1 where
    every pixel is lit or darkened alike, near 0 where a few pixels carry all of the change.
    """
    rms = difference.square().mean(dim=(1, 2), keepdim=True).sqrt()
    return (difference.abs() / rms.clamp(min=1e-12)).clamp(max=1).mean(dim=(1, 2))
