"""Tiny R3GAN networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.r3gan import FAMILY, R3GANConfig
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(n_classes: int = 0) -> SavedGenerator:
    config = R3GANConfig(
        widths=(8, 8, 4),
        blocks=(2, 1, 1),
        cardinalities=(4, 2, 1),
        z_dim=6,
        n_classes=n_classes,
        embed_features=4,
    )
    return random_generator(FAMILY, config)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "r3gan": tiny,
    "r3gan, conditional": lambda: tiny(n_classes=3),
}
