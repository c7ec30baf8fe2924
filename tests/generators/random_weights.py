"""Generators of any family with random weights of which none is zero, so that all parts count."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from latentseg.generators.family import Family, Sampling, SavedGenerator
from latentseg.generators.protocols import GeneratorInfo


def random_generator(
    family: Family,
    config: Any,
    *,
    sampling: Sampling | None = None,
    extras: Mapping[str, Tensor] | None = None,
    seed: int = 0,
) -> SavedGenerator:
    """A generator of `family`; parameters and buffers that begin as zeros get small values."""
    torch.manual_seed(seed)
    network = family.build(config)
    with torch.no_grad():
        for tensor in [*network.parameters(), *network.buffers()]:
            if tensor.is_floating_point() and not tensor.any():
                tensor.normal_(std=0.1)
    info = GeneratorInfo(
        name=f"tiny {family.name}",
        size=config.size,
        latent=(),
        n_classes=config.n_classes,
        space="",
        licence=family.licence,
        source="random weights",
        sha256="",
        family=family.name,
    )
    return family.adapt(network, info, sampling or Sampling(), extras or {})
