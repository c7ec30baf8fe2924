"""Measures of masks: their area, the agreement of two of them, and how they follow edges."""

import numpy as np
from numpy.typing import NDArray

Masks = NDArray[np.bool_]


def area_share(masks: Masks) -> NDArray[np.float64]:
    """The share of each image that its mask covers, (B,), in [0, 1]."""
    pixels = [np.count_nonzero(mask) for mask in masks]
    return np.array(pixels, np.float64) / masks[0].size if pixels else np.zeros(0)


def mask_iou(masks: Masks, others: Masks) -> NDArray[np.float64]:
    """Intersection over union of each mask (B, H, W) with its other, (B,); 1 if both are empty."""
    union = (masks | others).sum(axis=(1, 2))
    return np.where(union == 0, 1.0, (masks & others).sum(axis=(1, 2)) / np.maximum(union, 1))


def outline(masks: Masks) -> Masks:
    """Pixels of (B, H, W) masks that have a neighbour of the other kind, on either side."""
    found = np.zeros_like(masks)
    across = masks[:, 1:] != masks[:, :-1]
    found[:, 1:] |= across
    found[:, :-1] |= across
    along = masks[:, :, 1:] != masks[:, :, :-1]
    found[:, :, 1:] |= along
    found[:, :, :-1] |= along
    return found


def edge_alignment(masks: Masks, strength: NDArray[np.float32]) -> NDArray[np.float32]:
    """How much stronger an image's edges are on its mask's outline than elsewhere, (B,).

    The mean of `strength` (B, H, W) on the outline over its mean in the image: 1 for an outline
    that ignores the image; 0 where there is no outline.
    """
    on = outline(masks)
    sums, counts = (strength * on).sum(axis=(1, 2)), on.sum(axis=(1, 2))
    return sums / np.maximum(counts, 1) / np.maximum(strength.mean(axis=(1, 2)), 1e-12)
