"""Tiny MobileStyleGAN networks for the contract of generators."""

from collections.abc import Callable
from typing import Any

from latentseg.generators.families.mobilestylegan import MobileStyleGANConfig
from latentseg.generators.families.mobilestylegan_files import FAMILY
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator


def tiny(**fields: Any) -> SavedGenerator:
    small = {"size": (16, 16), "channels": (8, 8), "w_dim": 6, "mapping_layers": 1}
    return random_generator(FAMILY, MobileStyleGANConfig(**{**small, **fields}))


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "mobilestylegan": tiny,
    "mobilestylegan, not square": lambda: tiny(size=(24, 16)),
    "mobilestylegan, a mean style per layer": lambda: tiny(is_centre_layered=True),
}
