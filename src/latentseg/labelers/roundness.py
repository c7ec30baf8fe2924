"""How round the largest component of a mask is."""

import numpy as np
from numpy.typing import NDArray

from latentseg.labelers.components import component_areas, component_ids
from latentseg.labelers.mask_measures import Masks, area_share


def roundness(masks: Masks) -> NDArray[np.float64]:
    """Area / perimeter^2 of the largest component, (B,): 0.08 for a disc, less for other shapes.

    0 where there is no component between 5 % and 90 % of the image (the official code gives
    1 000 000 there, so that such samples always pass).
    """
    ids = component_ids(masks)
    areas = component_areas(ids)
    largest = areas.max(axis=(1, 2), keepdims=True)
    # Of several components of equal area the first counts.
    candidates = np.where((areas == largest) & masks, ids, np.iinfo(ids.dtype).max)
    component = masks & (ids == candidates.min(axis=(1, 2), keepdims=True))
    share = area_share(component)
    perimeters = perimeter(component)
    is_fair = (share > 0.05) & (share < 0.9)
    pixels = component.sum(axis=(1, 2))
    return np.where(is_fair, pixels / np.maximum(perimeters, 1) ** 2, 0.0)


def perimeter(masks: Masks) -> NDArray[np.float64]:
    """Length of each mask's outline in pixels, (B,), as skimage.measure.perimeter estimates it.

    Source: Benkrid, Crookes and Benkrid 2000, "Design and FPGA implementation of a perimeter
    estimator".
    """
    frame = ((0, 0), (1, 1), (1, 1))
    padded = np.pad(masks, frame)
    is_inner = (
        padded[:, :-2, 1:-1] & padded[:, 2:, 1:-1] & padded[:, 1:-1, :-2] & padded[:, 1:-1, 2:]
    )
    outline = np.pad(masks & ~is_inner, frame).view(np.uint8)
    # A pixel counts 1, its neighbours across a side 2 each, those across a corner 10 each.
    row, beside = outline[:, 1:-1], outline[:, :-2] + outline[:, 2:]
    ends = 2 * row + 10 * beside
    kinds = (row + 2 * beside)[:, :, 1:-1] + ends[:, :, :-2] + ends[:, :, 2:]
    lengths = np.zeros(50)
    lengths[[5, 7, 15, 17, 25, 27]] = 1
    lengths[[21, 33]] = np.sqrt(2)
    lengths[[13, 23]] = (1 + np.sqrt(2)) / 2
    return lengths[kinds].sum(axis=(1, 2))
