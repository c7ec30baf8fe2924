"""Tiny ResNet GANs without normalisation for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families import gan_stability, selfcond
from latentseg.generators.families.resnet_gan import ResNetGANConfig
from latentseg.generators.family import Family, SavedGenerator
from tests.generators.random_weights import random_generator

CHANNELS = {
    "resnet": (8, 8, 4, 4),
    "resnet2": (8, 8, 8, 8, 4, 4),
    "resnet3": (8, 4, 4),
    "resnet4": (8, 4, 4),
}


def tiny(family: Family, architecture: str, n_classes: int = 0) -> SavedGenerator:
    config = ResNetGANConfig(
        architecture,
        CHANNELS[architecture],
        z_dim=6,
        n_classes=n_classes,
        embed_dim=4 if n_classes else 0,
    )
    return random_generator(family, config)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "selfcond": lambda: tiny(selfcond.FAMILY, "resnet2", n_classes=3),
    "selfcond, unconditional": lambda: tiny(selfcond.FAMILY, "resnet2"),
    "gan-stability, resnet": lambda: tiny(gan_stability.FAMILY, "resnet", n_classes=3),
    "gan-stability, resnet2": lambda: tiny(gan_stability.FAMILY, "resnet2", n_classes=3),
    "gan-stability, resnet3": lambda: tiny(gan_stability.FAMILY, "resnet3"),
    "gan-stability, resnet4": lambda: tiny(gan_stability.FAMILY, "resnet4", n_classes=3),
}
