"""Tiny networks of StudioGAN for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.studiogan import FAMILY, StudioGANConfig
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator

CHANNELS = (16, 8, 8)


def tiny(architecture: str, z_dim: int, n_classes: int = 0, shared_dim: int = 0) -> SavedGenerator:
    config = StudioGANConfig(architecture, CHANNELS, z_dim, n_classes, shared_dim, attention=(1,))
    return random_generator(FAMILY, config)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "studiogan, resnet": lambda: tiny("resnet", 6),
    "studiogan, resnet, conditional": lambda: tiny("resnet", 6, n_classes=5),
    "studiogan, big_resnet": lambda: tiny("big_resnet", 12),
    "studiogan, big_resnet, conditional": lambda: tiny("big_resnet", 12, n_classes=3, shared_dim=4),
}
