"""Random changes of a training batch that carry a student from generated to real pictures."""

from functools import lru_cache

import torch
from kornia import augmentation as kornia
from torch import Tensor

from latentseg.seeds import derive_seeds
from latentseg.synthesis.pairs import Batch

AUGMENTATIONS = ("none", "flip", "photo")
_AUGMENTATION_KEY = 0xA06  # keeps these random numbers apart from others of the same seed and step


def augment(batch: Batch, kind: str, *, seed: int, step: int) -> Batch:
    """Changes the pairs of a batch at random; images and masks move together.

    A pure function of its arguments. Sizes stay; masks get no new values; images stay in [-1, 1].

    Args:
        batch: Pairs of a training step; masks as class ids or as probabilities.
        kind: "none"; "flip": left and right; or "photo": besides, crops of another scale and
            aspect, colours, greyness, blur, sharpness and noise. Photos are sharper and more
            varied than the images of a generator.
        seed: Of the training.
        step: Of the training.
    """
    if kind == "none":
        return batch
    masks = batch.masks[:, None] if batch.masks.ndim == 3 else batch.masks
    layers = [masks.float()] if batch.weights is None else [masks.float(), batch.weights[:, None]]
    device = batch.images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(derive_seeds(seed, _AUGMENTATION_KEY, step)))
        images, layers = _apply(kind, batch.images / 2 + 0.5, layers)
    return Batch(
        images.clamp(0, 1) * 2 - 1,
        layers[0].reshape(batch.masks.shape).to(batch.masks.dtype),
        None if batch.weights is None else layers[1][:, 0],
    )


def _apply(kind: str, images: Tensor, layers: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Transforms images in [0, 1], and every layer (B, C, H, W) by nearest neighbour alike."""
    height, width = images.shape[-2:]
    pipeline = _pipeline(kind, (height, width))
    images, *layers = pipeline(images, *layers, data_keys=["input", *["mask"] * len(layers)])
    return images, layers


@lru_cache(maxsize=4)
def _pipeline(kind: str, size: tuple[int, int]) -> kornia.AugmentationSequential:
    steps = [kornia.RandomHorizontalFlip(p=0.5)]
    if kind == "photo":
        steps += [
            kornia.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(0.8, 1.25), p=0.8),
            # No hue: it would cost more than everything else together.
            kornia.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.4, p=0.8),
            kornia.RandomGrayscale(p=0.1),
            kornia.RandomGaussianBlur((5, 5), sigma=(0.1, 1.0), p=0.2),
            kornia.RandomSharpness(sharpness=2.0, p=0.2),
            kornia.RandomGaussianNoise(std=0.04, p=0.3),
        ]
    return kornia.AugmentationSequential(*steps, data_keys=["input"])
