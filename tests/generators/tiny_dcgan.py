"""Tiny DCGAN networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.dcgan import FAMILY, DCGANConfig
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator

TINY: dict[str, Callable[[], SavedGenerator]] = {
    "dcgan": lambda: random_generator(FAMILY, DCGANConfig((8, 8), z_dim=6)),
    "dcgan, grey": lambda: random_generator(FAMILY, DCGANConfig((8, 8), z_dim=6, out_channels=1)),
}
