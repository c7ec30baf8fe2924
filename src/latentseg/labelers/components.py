"""The connected components of masks."""

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray

from latentseg.labelers.mask_measures import Masks

WITHIN_IMAGE = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))], dtype=bool)


ACROSS_SIDES = scipy.ndimage.generate_binary_structure(2, 1)[None]


def large_components(masks: Masks, min_share: float) -> Masks:
    """Removes components whose area is at most `min_share` of the largest one's in its mask.

    Pixels that touch at a corner belong together. (B, H, W) in and out.
    """
    areas = component_areas(component_ids(masks))
    return areas > min_share * areas.max(axis=(1, 2), keepdims=True)


def component_areas(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """(B, H, W): the area in pixels of the component that each pixel belongs to; 0 outside."""
    # NumPy would count and look up in int64, for which it first copies the numbers.
    areas = torch.bincount(torch.from_numpy(ids).flatten()).int().numpy()
    areas[0] = 0
    return areas.take(ids)


def component_ids(masks: Masks) -> NDArray[np.int32]:
    """(B, H, W): a number for each component of the whole batch, 0 outside."""
    ids = np.zeros(masks.shape, np.int32)
    scipy.ndimage.label(masks, WITHIN_IMAGE, output=ids)
    return ids
