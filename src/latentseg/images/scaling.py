"""Pictures of another size, and as tensors."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latentseg.images.kinds import Pixels


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes a photo (H, W, 3) to `size` = (height, width), bilinear with antialiasing."""
    # Width, then height: which comes first in one call, and so the rounding, Pillow 13 changed.
    picture = Image.fromarray(image).resize((size[1], len(image)), Image.Resampling.BILINEAR)
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes a mask (H, W) to `size` = (height, width) by nearest neighbour: no new values."""
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def cover(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """Scales an image or a mask, keeping its aspect, until it covers `size`; cuts out the center.

    Args:
        picture: (H, W, 3) image or (H, W) mask, uint8.
        size: (height, width) of the result.
    """
    height, width = picture.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    if scaled != (height, width):
        picture = resize_mask(picture, scaled) if picture.ndim == 2 else resize(picture, scaled)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    # Copied, so that a cache does not hold the whole picture.
    return picture[top : top + size[0], left : left + size[1]].copy()


def to_tensor(image: Pixels) -> Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32 in [-1, 1]."""
    # Copied: the array may be read-only, and torch shares memory only with what it may write.
    return torch.from_numpy(np.array(image)).movedim(-1, -3).float() / 127.5 - 1


def to_pixels(x: Tensor) -> Pixels:
    """(..., 3, H, W) float in [-1, 1], clamped, to (..., H, W, 3) uint8 by rounding."""
    scaled = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(-3, -1).contiguous().cpu().numpy()
