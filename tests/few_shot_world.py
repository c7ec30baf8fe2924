"""The parts world with activation maps: from mixtures of its features the parts can be told."""

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.generators.protocols import GeneratorInfo, Latents
from tests.parts_world import PARTS, PartsWorld

CLARITY = 4.0  # of the parts against the colours, which are never those of the painted image


class FewShotWorld:
    """Figures with body, head and foot, and three activation maps, coarse to fine.

    Every map is a fixed random mixture of what is in the image: parts, blurred as the map is
    coarse, colours, and noise that tells nothing.
    """

    feature_channels = (16, 12, 8)

    def __init__(self, size: tuple[int, int] = (32, 32)) -> None:
        self.parts = PartsWorld(size)
        self.info: GeneratorInfo = self.parts.info
        rng = torch.Generator().manual_seed(0)
        self.mixtures = [torch.randn(n, 8, generator=rng) for n in self.feature_channels]

    @property
    def device(self) -> torch.device:
        return self.parts.device

    def to(self, device: torch.device | str) -> Self:
        self.parts.to(device)
        self.mixtures = [mixture.to(device) for mixture in self.mixtures]
        return self

    def sample(self, seeds: Tensor) -> Latents:
        return self.parts.sample(seeds)

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        return self.parts.shift(latents, step)

    def __call__(self, latents: Latents) -> Tensor:
        return self.parts(latents)

    def masks(self, latents: Latents) -> Tensor:
        """(B, H, W) uint8: the exact masks."""
        return self.parts.masks(latents)

    def features(self, latents: Latents) -> list[Tensor]:
        parts = functional.one_hot(self.masks(latents).long(), len(PARTS) + 1).movedim(3, 1)
        noise = self.parts.x.mul(37).sin().expand(len(latents), 1, *self.info.size)
        seen = torch.cat([CLARITY * parts, self(latents), noise], dim=1)
        return [
            functional.leaky_relu(
                functional.conv2d(functional.avg_pool2d(seen, step), mixture[:, :, None, None]), 0.2
            )
            for step, mixture in zip((4, 2, 1), self.mixtures, strict=True)
        ]
