"""Tiny BigGAN-deep networks for the contract of generators."""

from collections.abc import Callable

from latentseg.generators.families.biggan_deep import FAMILY, BigGANDeepConfig
from latentseg.generators.family import Sampling, SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(attention_layer_position: int, truncation: float | None = None) -> SavedGenerator:
    config = BigGANDeepConfig(
        output_dim=32,
        z_dim=6,
        class_embed_dim=4,
        channel_width=4,
        num_classes=3,
        layers=((True, 4, 4), (False, 4, 2), (True, 2, 2), (True, 2, 1)),
        attention_layer_position=attention_layer_position,
        n_stats=5,
    )
    return random_generator(FAMILY, config, sampling=Sampling(truncation=truncation))


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "biggan-deep": lambda: tiny(attention_layer_position=2),
    "biggan-deep, without attention": lambda: tiny(attention_layer_position=-1),
    "biggan-deep, not truncated": lambda: tiny(attention_layer_position=1, truncation=1),
}
