"""Variants of an image, and its pixels described by how they change color over them.

A generator that can keep the layout of an image and change its look draws variants of it. What one
segment shares is not color but change of color, which is the observation of Feng et al. 2023.
"""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.generators.protocols import Generator, HasVariants, Latents
from latentseg.labelers.memory import GIB
from latentseg.labelers.needs import check_ability

ACTIVATION_CHANNELS = 192  # float32 values per pixel that drawing an image may hold at once
SMALLEST_STD = 1e-6  # what is smaller is rounding of one value


class VariantGenerator(Generator, HasVariants, Protocol):
    """A generator with variants."""


def check_variants(generator: Generator) -> VariantGenerator:
    """The generator, which has variants.

    Raises:
        InputError: it has none; names the labelers that it can serve.
    """
    check_ability(generator, "variants", "style-mixing")
    return generator  # pyright: ignore[reportReturnType]


@torch.no_grad()
def draw_variants(
    generator: VariantGenerator, latents: Latents, seeds: Tensor, keep: int, *, memory: int = GIB
) -> Tensor:
    """Variants of each image, (B, N, 3, H, W), a few at a time.

    Args:
        generator: It can draw variants.
        latents: Of the images.
        seeds: (N,) int64, of the styles.
        keep: Layers that keep the style of the image.
        memory: Bytes that drawing may use; it bounds how many images are drawn at once.
    """
    height, width = generator.info.size
    at_once = max(1, memory // (4 * ACTIVATION_CHANNELS * height * width))
    n_styles = min(len(seeds), at_once)
    n_images = max(1, at_once // n_styles)
    drawn = [
        torch.cat(
            [
                generator.variants(latents[start : start + n_images], some, keep)
                for some in seeds.split(n_styles)
            ],
            dim=1,
        )
        for start in range(0, len(latents), n_images)
    ]
    return torch.cat(drawn)


def descriptors(variants: Tensor) -> Tensor:
    """Pixels described so that their squared distance is 2 C (1 - correlation).

    The values of a pixel in each of C channels are brought to mean 0 and standard deviation 1 over
    the N variants, and divided by the root of N. The scalar product of two pixels is then the sum
    over the channels of the correlation of their values.

    Args:
        variants: (B, N, C, H, W).

    Returns:
        (B, H * W, N * C), the transposed view of (B, N * C, H * W).

    Source: Feng et al. 2023, step 3 describes each pixel by its flattened N * C values; taking
    their correlation is ours, after the paper's observation that the correlation among the pixels
    of one segment does not change.
    """
    x = variants - variants.mean(dim=1, keepdim=True)
    x = x / x.std(dim=1, keepdim=True, unbiased=False).clamp(min=SMALLEST_STD)
    x = x / x.shape[1] ** 0.5
    return x.flatten(1, 2).flatten(2).mT


def reduce(variants: Tensor, longest: int) -> Tensor:
    """The variants with sides of at most `longest` pixels, each pixel a mean; or themselves."""
    height, width = variants.shape[3:]
    if max(height, width) <= longest:
        return variants
    scale = longest / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    small = functional.interpolate(variants.flatten(0, 1), size=size, mode="area")
    return small.unflatten(0, variants.shape[:2])
