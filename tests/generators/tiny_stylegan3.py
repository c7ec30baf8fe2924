"""Tiny StyleGAN3 networks for the contract of generators."""

from collections.abc import Callable
from dataclasses import replace

from latentseg.generators.families.stylegan3 import FAMILY, StyleGAN3Config, planned
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(is_r: bool = False, n_classes: int = 0, image_channels: int = 3) -> SavedGenerator:
    synthesis = planned(
        16,
        n_layers=4,
        kernel=1 if is_r else 3,
        is_radial=is_r,
        channel_base=64,
        channel_max=8,
    )
    synthesis = replace(synthesis, image_channels=image_channels)
    config = StyleGAN3Config(synthesis, z_dim=6, w_dim=6, n_classes=n_classes, mapping_layers=1)
    return random_generator(FAMILY, config)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "stylegan3-t": tiny,
    "stylegan3-r": lambda: tiny(is_r=True),
    "stylegan3-t, conditional": lambda: tiny(n_classes=3),
    "stylegan3-t, grey": lambda: tiny(image_channels=1),
}
