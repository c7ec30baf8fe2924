"""A world with known parts: a small generator of figures with a body, a head and a foot.

Layout and appearance are separate parts of the latent, as in tests/world.py. Every part has colour
and texture of its own, which depend on the appearance and a little on the layout, so that the same
style does not look quite the same in every image.
"""

from typing import Self

import numpy as np
import torch
from torch import Tensor

from latentseg.generators.protocols import GeneratorInfo, Latents

PARTS = ("body", "head", "foot")
LAYOUT = 5  # place (2), size, tilt, and the light
APPEARANCE = 4 * 6  # for background, body, head and foot: colour (3), texture (3)
SPREAD = 0.5  # standard deviation of every coordinate
EDGE = 1.5  # steepness of the outlines


class PartsWorld:
    """A generator of figures whose parts are known: 0 background, 1 body, 2 head, 3 foot."""

    n_layers = 2

    def __init__(self, size: tuple[int, int] = (32, 32)) -> None:
        self.info = GeneratorInfo(
            name="parts world",
            size=size,
            latent=(LAYOUT + APPEARANCE,),
            n_classes=0,
            space="z",
            licence="Apache-2.0",
            source="tests/parts_world.py",
            sha256="",
        )
        self.draws = 0  # images drawn so far
        self.to("cpu")

    @property
    def device(self) -> torch.device:
        return self.x.device

    def to(self, device: torch.device | str) -> Self:
        height, width = self.info.size
        self.y, self.x = torch.meshgrid(
            (torch.arange(height, device=device) + 0.5) * 2 / height - 1,
            (torch.arange(width, device=device) + 0.5) * 2 / width - 1,
            indexing="ij",
        )
        return self

    def sample(self, seeds: Tensor) -> Latents:
        rows = [
            SPREAD * torch.randn(sum(self.info.latent), generator=torch.Generator().manual_seed(s))
            for s in seeds.tolist()
        ]
        return Latents(torch.stack(rows).to(self.device))

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        return latents.with_values(latents.values + SPREAD * step)

    def __call__(self, latents: Latents) -> Tensor:
        self.draws += len(latents)
        shares = self._shares(latents)
        looks = latents.values[:, LAYOUT:].reshape(-1, 4, 6, 1, 1)
        light = 0.1 * latents.values[:, 4, None, None, None, None]
        colours = 1.6 * looks[:, :, :3] + self._textures(looks[:, :, 3:]) + light
        return (shares[:, :, None] * colours).sum(dim=1).tanh()

    def masks(self, latents: Latents) -> Tensor:
        """(B, H, W) uint8: the exact masks."""
        return self._shares(latents).argmax(dim=1).to(torch.uint8)

    def variants(self, latents: Latents, seeds: Tensor, keep: int) -> Tensor:
        """Layer 0 is the layout, layer 1 the appearance."""
        kept = (0, LAYOUT, LAYOUT + APPEARANCE)[keep]
        drawn = [
            self(latents.with_values(torch.cat([latents.values[:, :kept], values], dim=1)))
            for values in self.sample(seeds).values[:, None, kept:].expand(-1, len(latents), -1)
        ]
        return torch.stack(drawn, dim=1)

    def _shares(self, latents: Latents) -> Tensor:
        """(B, 4, H, W): how much of each pixel a part takes; head over body over foot."""
        place = latents.values[:, :LAYOUT, None, None]
        scale = (0.3 * place[:, 2].tanh()).exp()
        tilt = 0.4 * place[:, 3].tanh()
        y, x = self.y - 0.15 * place[:, 0].tanh(), self.x - 0.3 * place[:, 1].tanh()
        along = (tilt.cos() * y + tilt.sin() * x) / scale
        across = (tilt.cos() * x - tilt.sin() * y) / scale

        def ellipse(height: float, tall: float, wide: float) -> Tensor:
            distance = (((along - height) / tall).square() + (across / wide).square()).sqrt()
            return ((1 - distance) * self.info.size[0] * wide * EDGE).sigmoid()

        left = torch.ones_like(along)
        shares = []
        for part in (ellipse(-0.42, 0.24, 0.26), ellipse(0.05, 0.34, 0.4), ellipse(0.45, 0.2, 0.5)):
            shares.append(left * part)
            left = left * (1 - part)
        head, body, foot = shares
        return torch.stack([left, body, head, foot], dim=1)

    def _textures(self, look: Tensor) -> Tensor:
        """(B, 4, 1, H, W): waves of random direction and strength; every part has its frequency."""
        turn, phase, strength = look.split(1, dim=2)
        along = turn.cos() * self.x + turn.sin() * self.y
        frequency = torch.tensor([4.0, 7.0, 10.0, 13.0], device=self.device)[:, None, None, None]
        return 0.3 * strength.sigmoid() * (frequency * along + 3 * phase).sin()


def matched_iou(masks: np.ndarray, truth: np.ndarray, n: int) -> float:
    """Mean IoU of the n ids of `masks` with those of `truth`, over all images together."""
    ious = [
        np.logical_and(masks == i, truth == i).sum() / np.logical_or(masks == i, truth == i).sum()
        for i in range(n)
    ]
    return float(np.mean(ious))
