"""A world with known answers: a small differentiable generator whose exact masks are known.

An object of random place, shape and texture lies over a background. Layout and appearance are
separate parts of the latent, so that appearance can be exchanged while every mask stays the same.
"""

from dataclasses import replace
from functools import cache
from typing import Self

import numpy as np
import torch
from torch import Tensor

from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.directions_settings import SETTINGS
from latentseg.labelers.fit_directions import fit_directions
from latentseg.seeds import derive_seeds
from tests.shared import made_once

LAYOUT = 7  # place (2), radius (1), second and third harmonic of the outline (4)
APPEARANCE = 14  # for object and background: colour (3), texture (4)
SPREAD = 0.5  # standard deviation of every coordinate


class World:
    """A generator of blobs with textures; conditional ones have an outline that tells the class."""

    feature_channels = (8, 8)
    n_layers = 2

    def __init__(self, size: tuple[int, int] = (32, 32), n_classes: int = 0) -> None:
        self.info = GeneratorInfo(
            name="world",
            size=size,
            latent=(LAYOUT + APPEARANCE,),
            n_classes=n_classes,
            space="z",
            licence="Apache-2.0",
            source="tests/world.py",
            sha256="",
        )
        self.draws = 0  # images drawn so far
        self._grid(torch.device("cpu"))

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device | str) -> Self:
        self._grid(torch.device(device))
        return self

    def sample(self, seeds: Tensor) -> Latents:
        values, labels = [], []
        for seed in seeds.tolist():
            rng = torch.Generator().manual_seed(seed)
            values.append(SPREAD * torch.randn(LAYOUT + APPEARANCE, generator=rng))
            labels.append(torch.randint(max(self.info.n_classes, 1), (), generator=rng))
        classes = torch.stack(labels).to(self.device) if self.info.n_classes else None
        return Latents(torch.stack(values).to(self.device), classes)

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        return latents.with_values(latents.values + SPREAD * step)

    def __call__(self, latents: Latents) -> Tensor:
        self.draws += len(latents)
        return self._paint(latents)[0]

    def masks(self, latents: Latents) -> Tensor:
        """(B, H, W) uint8: the exact masks."""
        return (self._inside(latents) > 0).to(torch.uint8)

    def variants(self, latents: Latents, seeds: Tensor, keep: int) -> Tensor:
        """Layer 0 is the layout, layer 1 the appearance."""
        kept = (0, LAYOUT, LAYOUT + APPEARANCE)[keep]
        others = self.sample(seeds).values
        drawn = [
            self(latents.with_values(torch.cat([latents.values[:, :kept], values], dim=1)))
            for values in others[:, None, kept:].expand(-1, len(latents), -1)
        ]
        return torch.stack(drawn, dim=1)

    def features(self, latents: Latents) -> list[Tensor]:
        x, alpha, *textures = self._paint(latents)
        fine = torch.cat([alpha, *textures, x], dim=1)
        return [torch.nn.functional.avg_pool2d(fine, 2), fine]

    def _grid(self, device: torch.device) -> None:
        height, width = self.info.size
        self.y, self.x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) * 2 / height - 1,
            (torch.arange(width, device=device) + 0.5) * 2 / width - 1,
            indexing="ij",
        )

    def _inside(self, latents: Latents) -> Tensor:
        """(B, H, W): distance to the outline along the ray from the object's centre, > 0 inside."""
        layout = latents.values[:, :LAYOUT, None, None]
        dy, dx = self.y - 0.5 * layout[:, 0].tanh(), self.x - 0.5 * layout[:, 1].tanh()
        angle = torch.atan2(dy, dx)
        c2, s2, c3, s3 = (0.25 * layout[:, 3:].tanh()).unbind(dim=1)
        outline = 1 + c2 * (2 * angle).cos() + s2 * (2 * angle).sin()
        outline = outline + c3 * (3 * angle).cos() + s3 * (3 * angle).sin()
        if latents.labels is not None:
            lobes = latents.labels[:, None, None] + 2
            outline = outline + 0.35 * (lobes * angle).cos()
        radius = 0.55 * (0.5 * layout[:, 2].tanh()).exp()
        return radius * outline - (dx.square() + dy.square() + 1e-12).sqrt()

    def _paint(self, latents: Latents) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Images, the share of the object in each pixel, textures of object and background."""
        edge_px = 0.5
        alpha = (self._inside(latents)[:, None] * self.info.size[0] / (2 * edge_px)).sigmoid()
        looks = latents.values[:, LAYOUT:].reshape(-1, 2, APPEARANCE // 2, 1, 1)
        ahead, behind = self._texture(looks[:, 0], 9.0), self._texture(looks[:, 1], 5.0)
        shown = alpha * (looks[:, 0, :3] + ahead) + (1 - alpha) * (looks[:, 1, :3] + behind)
        return shown.tanh(), alpha, ahead[:, :1].expand_as(alpha), behind.expand(-1, 3, -1, -1)

    def _texture(self, look: Tensor, frequency: float) -> Tensor:
        """(B, 1, H, W): waves of random direction, phase and strength."""
        turn, phase, strength, wave = look[:, 3:].split(1, dim=1)
        along = turn.cos() * self.x + turn.sin() * self.y
        across = turn.cos() * self.y - turn.sin() * self.x
        waves = (frequency * along + 3 * phase).sin() + (frequency * across + 3 * wave).sin()
        return 0.25 * (0.5 + strength.sigmoid()) * waves


def with_gradient(latents: Latents) -> Latents:
    """The same latents as leaves of a new graph."""
    return replace(latents, values=latents.values.detach().requires_grad_())


def seeds(n: int, key: int = 0) -> Tensor:
    """(n,) int64: seeds for a test."""
    return derive_seeds(key, np.arange(n))


def fitted(n_classes: int = 0) -> DirectionsLabeler:
    """A labeler of the world, made once per test run: default settings, a quarter of the batch."""
    return _fitted(n_classes)


@cache
def _fitted(n_classes: int) -> DirectionsLabeler:
    def fit() -> DirectionsLabeler:
        config = replace(SETTINGS["ours"], batch=8)
        return fit_directions(World(n_classes=n_classes), config=config, seed=0, quiet=True)

    return made_once(f"directions-of-{n_classes}-classes", fit)
