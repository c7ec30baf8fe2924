"""Tiny diffusion models for the contract of generators."""

import json
from collections.abc import Callable
from typing import Any

from latentseg.generators.families.diffusion import (
    FAMILY,
    DiffusionConfig,
    Step,
    consistency_steps,
)
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator
from tests.generators.tiny_autoencoder import VAE

UNET: dict[str, Any] = {
    "_class_name": "UNet2DModel",
    "sample_size": 8,
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [4, 8],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
}
TEXT_UNET: dict[str, Any] = {
    **UNET,
    "_class_name": "UNet2DConditionModel",
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
    "cross_attention_dim": 6,
}
DDIM_STEPS = (
    Step(500, 1.0, 2.0, -1.7, 0.5, 0.87, 0.9, 0.44),
    Step(100, 1.0, 1.1, -0.5, 0.9, 0.44, 1.0, 0.0),
)
EULER_STEPS = (Step(999, 0.07, 1.0, -14.0, 1.0, 14.0, 1.0, 0.0),)


def tiny(
    unet: dict[str, Any], steps: tuple[Step, ...], start: float, **fields: Any
) -> SavedGenerator:
    config = DiffusionConfig(json.dumps(unet), steps, start, **fields)
    return random_generator(FAMILY, config)


def consistency(n_steps: int, **unet: Any) -> SavedGenerator:
    steps, start, clip = consistency_steps(n_steps)
    return tiny({**UNET, **unet}, steps, start, clip=clip, is_renoised=True)


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "diffusion, consistency": lambda: consistency(1, num_class_embeds=3),
    "diffusion, consistency in 2 steps": lambda: consistency(2, num_class_embeds=3),
    "diffusion, consistency in 2 steps, not square": lambda: consistency(2, sample_size=[8, 12]),
    "diffusion, ddim": lambda: tiny(UNET, DDIM_STEPS, 1.0, clip=1.0),
    "diffusion, grey": lambda: consistency(1, in_channels=1, out_channels=1),
    "diffusion, text to latents": lambda: tiny(
        TEXT_UNET, EULER_STEPS, 14.0, vae=json.dumps(VAE), n_tokens=5
    ),
}
