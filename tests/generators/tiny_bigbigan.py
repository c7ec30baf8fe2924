"""Tiny BigBiGAN networks for the contract of generators."""

from collections.abc import Callable

import torch

from latentseg.generators.families.bigbigan import FAMILY
from latentseg.generators.families.biggan import BigGANConfig
from latentseg.generators.family import Sampling, SavedGenerator
from tests.generators.random_weights import random_generator

CONFIG = BigGANConfig(
    channels=(8, 8, 8, 8), attention=(1,), z_chunk_size=2, shared_dim=4, n_classes=0
)


def tiny_with_bank() -> SavedGenerator:
    bank = torch.randn(500, 8, generator=torch.Generator().manual_seed(0))
    return random_generator(
        FAMILY, CONFIG, sampling=Sampling(bank_noise=0.1), extras={"bank": bank * 2 + 1}
    )


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "bigbigan": lambda: random_generator(FAMILY, CONFIG),
    "bigbigan, bank of latents": tiny_with_bank,
}
