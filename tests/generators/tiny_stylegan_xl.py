"""Tiny StyleGAN-XL networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.stylegan_xl import FAMILY, StyleGANXLConfig, staged
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(stages: tuple[tuple[int, int], ...] = ((16, 3),), n_classes: int = 3) -> SavedGenerator:
    config = StyleGANXLConfig(
        staged(stages, channel_base=64, channel_max=8),
        z_dim=6,
        w_dim=6,
        n_classes=n_classes,
        embed_features=4,
        mapping_layers=1,
    )
    return random_generator(FAMILY, config)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "stylegan-xl": tiny,
    "stylegan-xl, two stages": lambda: tiny(((16, 3), (32, 3))),
    "stylegan-xl, unconditional": lambda: tiny(n_classes=0),
}
