"""Any generator against photos: what `latentseg distance` measures."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.protocols import Generator
from latentseg.generators.training.distance import sliced_wasserstein
from latentseg.generators.training.feature_distances import FeatureDistances
from latentseg.generators.training.photos import read_photos
from latentseg.images import to_pixels
from latentseg.progress import Progress
from latentseg.seeds import derive_seeds
from latentseg.weights.efficientnet_lite0 import load_efficientnet_lite0

DEFAULT_IMAGES = 5_000
LEAST_IMAGES = 8
BATCH = 32
KEY = 0xD157  # keeps these latents apart from those of datasets


def compare_with_photos(
    generator: Generator,
    photos: Path | str,
    *,
    images: int | None = None,
    feature_weights: Path | str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> dict[str, Any]:
    """How far a generator's images, as it samples them, are from photos.

    Args:
        generator: On the device that computes.
        photos: Folder; each photo is scaled to cover the generator's size and cut at the center.
        images: Drawn images, and photos that they are compared with for precision, recall and
            `swd`; at most as many as photos, by default so many or 5 000. Each distance depends on
            it, so compare equal numbers only.
        feature_weights: File of EfficientNet-Lite0; by default that of the installed package.
        seed: Of the latents.
        quiet: Print nothing.

    Returns:
        `images`, `photos`, `fd-lite0`, `precision`, `recall`, `swd`, and as a scale `floor`: the
        same between two halves of the photos.

    Raises:
        InputError: photos that cannot be read, too few of them, or no features.
    """
    real = read_photos(photos, generator.info.size).pixels
    most = min(len(real), images or DEFAULT_IMAGES)
    if most < LEAST_IMAGES or (images is not None and images > len(real)):
        raise InputError(
            f"`images`: expected {LEAST_IMAGES} to {len(real)}, the number of photos in {photos}; "
            f"found {images or len(real)}."
        )
    features = load_efficientnet_lite0(feature_weights).to(generator.device)
    order = torch.randperm(len(real), generator=torch.Generator().manual_seed(seed))
    real = real[order]
    drawn = draw_images(generator, most, seed=seed, quiet=quiet)
    half = len(real) // 2
    first, second = real[:half], real[half : 2 * half]
    return {
        "images": most,
        "photos": len(real),
        **_distances(FeatureDistances(features, real), drawn, real),
        "floor": {
            "images": half,
            "photos": half,
            **_distances(FeatureDistances(features, second), first, second),
        },
    }


def _distances(by_features: FeatureDistances, images: Tensor, photos: Tensor) -> dict[str, float]:
    levels = sliced_wasserstein(images, photos[: len(images)])
    return {**by_features(images), "swd": round(sum(levels.values()) / len(levels), 2)}


@torch.no_grad()
def draw_images(generator: Generator, n: int, *, seed: int, quiet: bool = False) -> Tensor:
    """Draws `n` images (n, 3, H, W) uint8 on the CPU; image i depends only on (seed, i)."""
    seeds = derive_seeds(seed, KEY, np.arange(n))
    drawn: list[Tensor] = []
    with Progress("draw", total=n, quiet=quiet) as progress:
        for batch in seeds.split(BATCH):
            x = generator(generator.sample(batch.to(generator.device)))
            drawn.append(torch.from_numpy(to_pixels(x)).permute(0, 3, 1, 2))
            progress.update(sum(map(len, drawn)))
    return torch.cat(drawn)
