"""Random changes of a training batch that carry a student from generated to real pictures."""

import math
from functools import lru_cache

import torch
from kornia import augmentation as kornia
from torch import Tensor
from torch.nn import functional

from latentseg.datasets.pairs import Batch
from latentseg.seeds import derive_seeds

AUGMENTATIONS = ("none", "flip", "photo", "parts", "parts-photo")
MOST_TURN = math.radians(10)
SCALES = (0.5, 2.0)
MOST_SHIFT = 0.5  # of height and width
_AUGMENTATION_KEY = 0xA06  # keeps these random numbers apart from others of the same seed and step


def augment(batch: Batch, kind: str, *, seed: int, step: int) -> Batch:
    """Changes the pairs of a batch at random; images and masks move together.

    A pure function of its arguments. Sizes stay; class ids get no new values, probabilities still
    sum to 1; images stay in [-1, 1]. Classes keep their ids in a mirror image: none may be a left
    or a right one.

    Args:
        batch: Pairs of a training step; masks as class ids or as probabilities.
        kind: "none"; "flip": left and right; "photo": besides, crops of another scale and
            aspect, colours, greyness, blur, sharpness and noise, as photos are sharper and more
            varied than the images of a generator; "parts": see `move`; "parts-photo": that, and
            what "photo" does to colours.
        seed: Of the training.
        step: Of the training.
    """
    if kind == "none":
        return batch
    device = batch.images.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(derive_seeds(seed, _AUGMENTATION_KEY, step)))
        if not kind.startswith("parts"):
            return _changed(batch, kind)
        moved = move(batch)
        return _changed(moved, "colours") if kind == "parts-photo" else moved


def move(batch: Batch) -> Batch:
    """Mirrors half of the pairs; turns all by up to 10 degrees, scales by 0.5 to 2, shifts by up to
    half of height and width.

    What comes in from outside is black and weighs nothing: nobody knows what was there.

    Source: Tritrong 2021 (auto-shot); the official code fills images and masks with 0.
    """
    n, _, height, width = batch.images.shape
    sign = torch.where(torch.rand(n) < 0.5, -1.0, 1.0)
    angle = _uniform(n, -MOST_TURN, MOST_TURN)
    scale = _uniform(n, *SCALES)
    shift = _uniform((n, 2, 1), -2 * MOST_SHIFT, 2 * MOST_SHIFT)  # in a grid that is 2 wide
    # From a pixel to the one that it shows. Turned as pixels are, which need not fill a square.
    across, down = angle.sin() * height / width, -angle.sin() * width / height
    rows = [torch.stack([sign * angle.cos(), sign * across]), torch.stack([down, angle.cos()])]
    linear = torch.stack(rows).movedim(2, 0) / scale[:, None, None]
    matrix = torch.cat([linear, -linear @ shift], dim=2).to(batch.images.device)
    grid = functional.affine_grid(matrix, [n, 1, height, width], align_corners=False)
    is_inside = (grid.abs() <= 1).all(dim=3)
    images = torch.where(is_inside[:, None], _sampled(batch.images, grid, "bilinear"), -1.0)
    if batch.masks.ndim == 4:
        masks = _sampled(batch.masks, grid, "bilinear")
    else:
        masks = _sampled(batch.masks[:, None].float(), grid, "nearest")[:, 0].to(torch.uint8)
    weights = is_inside.float()
    if batch.weights is not None:
        weights = weights * _sampled(batch.weights[:, None], grid, "nearest")[:, 0]
    return Batch(images, masks, weights)


def _uniform(shape: int | tuple[int, ...], low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(shape)


def _sampled(layer: Tensor, grid: Tensor, mode: str) -> Tensor:
    """Beyond the border the border goes on: so a pixel that is half outside mixes in nothing."""
    return functional.grid_sample(layer, grid, mode, padding_mode="border", align_corners=False)


def _changed(batch: Batch, kind: str) -> Batch:
    """The batch after the transformations of `kind`: masks and weights by nearest neighbour."""
    masks = batch.masks[:, None] if batch.masks.ndim == 3 else batch.masks
    layers = [masks.float()] if batch.weights is None else [masks.float(), batch.weights[:, None]]
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
    steps = []
    if kind in ("flip", "photo"):
        steps += [kornia.RandomHorizontalFlip(p=0.5)]
    if kind == "photo":
        steps += [kornia.RandomResizedCrop(size, scale=(0.5, 1.0), ratio=(0.8, 1.25), p=0.8)]
    if kind in ("photo", "colours"):
        steps += [
            # No hue: it would cost more than everything else together.
            kornia.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.4, p=0.8),
            kornia.RandomGrayscale(p=0.1),
            kornia.RandomGaussianBlur((5, 5), sigma=(0.1, 1.0), p=0.2),
            kornia.RandomSharpness(sharpness=2.0, p=0.2),
            kornia.RandomGaussianNoise(std=0.04, p=0.3),
        ]
    return kornia.AugmentationSequential(*steps, data_keys=["input"])
