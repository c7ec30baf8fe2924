"""The noise maps of generators with styles, and the same generator with other maps."""

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor
from torch.nn import functional

from latentseg.generators.protocols import Generator
from latentseg.generators.style_generator import StyleGenerator

Noise = dict[str, Tensor]  # noise maps (B, ..., H, W) by the names of the network's buffers

NOISE_BUFFER = "noise_const"
COARSEST_NOISE_PX = 8


def noise_correlation(maps: Tensor) -> Tensor:
    """(B,): how much the pixels of noise maps (B, H, W) say about their neighbors.

    The squared mean product with the neighbor, summed over both axes and over the map and its
    halved copies down to a side of 8 px. Its expectation for white noise is 0.

    Source: Karras et al. 2020, Eq. 5. As the official code, unlike the text, the halved maps are
    not scaled back to unit variance.
    """
    total = maps.new_zeros(len(maps))
    while True:
        for axis in (1, 2):
            total = total + (maps * maps.roll(1, dims=axis)).mean(dim=(1, 2)).square()
        if min(maps.shape[1:]) <= COARSEST_NOISE_PX:
            return total
        maps = functional.avg_pool2d(maps, 2)


def normalized(maps: Tensor) -> Tensor:
    """Maps (..., H, W), each with mean 0 and mean square 1."""
    maps = maps - maps.mean(dim=(-2, -1), keepdim=True)
    return maps * maps.square().mean(dim=(-2, -1), keepdim=True).rsqrt()


def noise_maps(generator: Generator) -> Noise:
    """The stored noise maps that a generator draws with, by name; {} if it has none."""
    if not isinstance(generator, StyleGenerator) or generator.sampling.noise == "none":
        return {}
    return {
        name: maps
        for name, maps in generator.network.named_buffers()
        if name.rpartition(".")[2] == NOISE_BUFFER
    }


def with_noise(generator: StyleGenerator, noise: Mapping[str, Tensor]) -> StyleGenerator:
    """The same generator with these noise maps for every image; the weights are shared.

    Args:
        generator: One that has noise maps.
        noise: Maps by name, in the shapes of those of `noise_maps`. Maps that are not given stay.
    """
    shared = {id(parameter): parameter for parameter in generator.network.parameters()}
    network = copy.deepcopy(generator.network, memo=dict(shared))
    for name, maps in noise.items():
        network.get_buffer(name).copy_(maps)
    sampling = replace(generator.sampling, noise="const")
    return StyleGenerator(network, generator.info, sampling, generator.spread, generator.given)


def held(generator: Generator) -> Generator:
    """The same generator; if it draws its noise at random, it now takes the stored maps.

    Otherwise no image could be drawn twice.
    """
    if isinstance(generator, StyleGenerator) and generator.sampling.noise == "random":
        return with_noise(generator, {})
    return generator
