"""Tiny autoencoders for the contract of generators."""

import json
from collections.abc import Callable
from typing import Any

import torch

from latentseg.generators.families.autoencoder import FAMILY, AutoencoderConfig
from latentseg.generators.family import SavedGenerator
from tests.generators.random_weights import random_generator

VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [4, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "latent_channels": 4,
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "sample_size": 16,
    "scaling_factor": 0.5,
    "shift_factor": 0.1,
}
VQ: dict[str, Any] = {
    **VAE,
    "_class_name": "VQModel",
    "latent_channels": 3,
    "num_vq_embeddings": 16,
    "vq_embed_dim": 3,
}
VQ.pop("shift_factor")


def tiny(vae: dict[str, Any], size: tuple[int, int] = (16, 16)) -> SavedGenerator:
    channels = vae["latent_channels"]
    bank = torch.randn(
        64, channels, size[0] // 2, size[1] // 2, generator=torch.Generator().manual_seed(0)
    )
    return random_generator(FAMILY, AutoencoderConfig(json.dumps(vae), size), extras={"bank": bank})


TINY: dict[str, Callable[[], SavedGenerator]] = {
    "autoencoder, kl": lambda: tiny(VAE),
    "autoencoder, kl, not square": lambda: tiny(VAE, (16, 24)),
    "autoencoder, vq": lambda: tiny(VQ),
}
