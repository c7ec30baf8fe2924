"""Batches in parts, so that the memory of large images stays bounded."""

from collections.abc import Callable

import torch
from torch import Tensor

# Of images that are drawn at once. With gradients a StyleGAN2 of 256 px holds about 3 GB for them.
PIXELS = 2**18


def parts(n: int, size: tuple[int, int]) -> list[slice]:
    """Consecutive slices of `n` images of `size` = (height, width), at least one image each."""
    length = max(PIXELS // (size[0] * size[1]), 1)
    return [slice(start, min(start + length, n)) for start in range(0, n, length)]


def draw_in_parts(draw: Callable[[Tensor], Tensor], rows: Tensor, size: tuple[int, int]) -> Tensor:
    """Images (B, 3, H, W) that `draw` makes of `rows` (B, ...): in parts, if none needs a gradient.

    Args:
        draw: Rows to images, of which each depends on its own row only.
        rows: Latents, or what layers take.
        size: (height, width) of the images.
    """
    slices = parts(len(rows), size)
    if len(slices) < 2 or (torch.is_grad_enabled() and rows.requires_grad):
        return draw(rows)
    return torch.cat([draw(rows[part]) for part in slices])
