"""Tiny ProGAN networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.progan import FAMILY, ProGANConfig
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator

CHANNELS = (8, 8, 6)

TINY: dict[str, Callable[[], SavedGenerator]] = {
    "progan": lambda: random_generator(FAMILY, ProGANConfig(CHANNELS, z_dim=6)),
    "progan, blended": lambda: random_generator(FAMILY, ProGANConfig(CHANNELS, z_dim=6, alpha=0.3)),
    "progan, grey": lambda: random_generator(
        FAMILY, ProGANConfig(CHANNELS, z_dim=6, out_channels=1, is_tanh=True)
    ),
}
