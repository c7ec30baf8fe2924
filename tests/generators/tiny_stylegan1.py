"""Tiny StyleGAN networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.stylegan1 import StyleGAN1Config
from latentseg.generators.families.stylegan1_files import FAMILY
from latentseg.generators.family import Sampling, SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(
    size: tuple[int, int] = (16, 16), *, is_rosinality: bool = False, cutoff: int | None = None
) -> SavedGenerator:
    config = StyleGAN1Config(
        size=size,
        channels=(8, 8, 8),
        z_dim=6,
        w_dim=6,
        mapping_layers=2,
        is_bias_blurred=is_rosinality,
        is_noise_shared=is_rosinality,
    )
    return random_generator(FAMILY, config, sampling=Sampling(cutoff=cutoff))


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "stylegan1": lambda: tiny(cutoff=4),
    "stylegan1, rosinality": lambda: tiny(is_rosinality=True),
    "stylegan1, not square": lambda: tiny((24, 16)),
}
