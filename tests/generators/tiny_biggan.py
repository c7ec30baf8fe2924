"""Tiny BigGAN networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.biggan import FAMILY, BigGANConfig
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(attention: tuple[int, ...] = ()) -> SavedGenerator:
    config = BigGANConfig(
        channels=(8, 8, 8, 8), attention=attention, z_chunk_size=2, shared_dim=4, n_classes=3
    )
    return random_generator(FAMILY, config)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "biggan": lambda: tiny(attention=(1,)),
    "biggan, without attention": tiny,
}
