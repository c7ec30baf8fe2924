"""Tiny StyleGAN2 networks for the contract of generators."""

from collections.abc import Callable
from typing import Any

from latentseg.generators.families.stylegan2 import StyleGAN2Config
from latentseg.generators.families.stylegan2_files import FAMILY
from latentseg.generators.family import Sampling, SavedGenerator
from tests.generators.random_weights import random_generator

SMALL = {"size": (16, 16), "channels": (8, 8, 8), "z_dim": 6, "w_dim": 6, "mapping_layers": 1}


def tiny(sampling: Sampling | None = None, **fields: Any) -> SavedGenerator:
    return random_generator(FAMILY, StyleGAN2Config(**{**SMALL, **fields}), sampling=sampling)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "stylegan2": tiny,
    "stylegan2, conditional": lambda: tiny(n_classes=3),
    "stylegan2, not square": lambda: tiny(size=(24, 16)),
    "stylegan2, resnet": lambda: tiny(architecture="resnet", conv_clamp=256.0),
    "stylegan2, orig": lambda: tiny(architecture="orig"),
    "stylegan2, grey": lambda: tiny(img_channels=1, mapping_layers=2),
    "stylegan2, some layers truncated": lambda: tiny(Sampling(cutoff=2)),
}
