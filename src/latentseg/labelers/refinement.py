"""Which samples are kept and how masks are cleaned: the five filters of Melas-Kyriazi 2021."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.ndimage
import torch
from numpy.typing import NDArray
from torch import Tensor

Masks = NDArray[np.bool_]

FILTERS = ("components", "area", "histogram", "roundness", "overlap")
WITHIN_IMAGE = np.array([np.zeros((3, 3)), np.ones((3, 3)), np.zeros((3, 3))], dtype=bool)
HISTOGRAM_VALUES = 2**20  # whose bins are found together
ACROSS_SIDES = scipy.ndimage.generate_binary_structure(2, 1)[None]


@dataclass(frozen=True)
class RefinementConfig:
    """Thresholds of the filters; all but `min_area` as in the official code, which has 0.

    Attributes:
        min_component: Components stay whose area exceeds this share of the largest one's.
        min_area: Least share of the image that a mask must cover. Above 0, empty masks do not pass.
        max_area: Largest share of the image that a mask may cover.
        bins: Bins of the histogram of the shifted image, over [-1, 1].
        smooth: Width of the box that smooths the histogram, in bins; odd.
        min_peaks: Least number of its local maxima; 0 turns the filter off.
        min_roundness: Least area / perimeter^2 of the largest component; 0: off.
        min_overlap: Least share of pixels on which the light and the dark mask agree; 0: off.
    """

    min_component: float = 0.2
    min_area: float = 0.01
    max_area: float = 0.5
    bins: int = 12
    smooth: int = 3
    min_peaks: int = 2
    min_roundness: float = 0.0
    min_overlap: float = 0.0


def refine(
    masks: Masks, parts: Sequence[Masks], shifted: Sequence[Tensor], config: RefinementConfig
) -> tuple[Masks, NDArray[np.int64]]:
    """Cleans the masks of a batch and says which samples to drop.

    Args:
        masks: (B, H, W).
        parts: The masks of the light and of the dark direction, if `masks` combine the two: their
            areas are judged instead. Else empty.
        shifted: Shifted images (B, 3, H, W) in [-1, 1]; the histogram of each of them is judged.
        config: Thresholds.

    Returns:
        The cleaned masks, and `rejected_by`, (B,): 0 for a good sample, k if `FILTERS[k - 1]` was
        the first to refuse it.

    Source: Melas-Kyriazi 2021, official code. Beyond it, empty masks do not pass unless `min_area`
    is 0; the code lets them pass, and never looks at the area of a combined mask.
    """
    masks = large_components(masks, config.min_component)
    parts = [large_components(part, config.min_component) for part in parts]
    passed = np.ones((len(FILTERS), len(masks)), dtype=bool)
    if config.min_area > 0:
        passed[0] = masks.any(axis=(1, 2))
        passed[1] = area_share(masks) >= config.min_area
    for judged in parts or [masks]:
        share = area_share(judged)
        passed[1] &= (share >= config.min_area) & (share <= config.max_area)
    if config.min_peaks > 0:
        for x in shifted:
            passed[2] &= histogram_peaks(x, config.bins, config.smooth) >= config.min_peaks
    if config.min_roundness > 0:
        passed[3] = roundness(masks) >= config.min_roundness
    if config.min_overlap > 0 and len(parts) == 2:
        passed[4] = area_share(parts[0] == parts[1]) >= config.min_overlap
    return masks, first_refusal(passed)


def first_refusal(passed: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The first filter that refuses each sample, (B,) from 1, or 0 if all pass.

    Args:
        passed: Whether each filter passes each sample, (F, B).
    """
    return np.where(passed.all(axis=0), 0, np.argmin(passed, axis=0) + 1)


def large_components(masks: Masks, min_share: float) -> Masks:
    """Removes components whose area is at most `min_share` of the largest one's in its mask.

    Pixels that touch at a corner belong together. (B, H, W) in and out.
    """
    areas = _component_areas(_component_ids(masks))
    return areas > min_share * areas.max(axis=(1, 2), keepdims=True)


def area_share(masks: Masks) -> NDArray[np.float64]:
    """The share of each image that its mask covers, (B,), in [0, 1]."""
    pixels = [np.count_nonzero(mask) for mask in masks]
    return np.array(pixels, np.float64) / masks[0].size if pixels else np.zeros(0)


def histogram_peaks(x: Tensor, bins: int, smooth: int) -> NDArray[np.int64]:
    """Local maxima of each image's smoothed histogram over all channels, (B,).

    A bin counts if no neighbour exceeds it, at both ends too; so every bin of a plateau counts.

    Args:
        x: (B, 3, H, W) in [-1, 1].
        bins: Number of bins on [-1, 1].
        smooth: Width of the smoothing box in bins, odd; zeros lie beyond the ends.
    """
    # In place and a few images at a time: else most of the time goes to fetching memory.
    few = x.flatten(1).split(max(1, HISTOGRAM_VALUES // x[0].numel()))
    ids = [(part + 1).mul_(bins / 2).clamp_(0, bins - 1).to(torch.uint8) for part in few]
    counts = np.zeros((len(x), bins), np.int64)
    for row, values in zip(counts, torch.cat(ids).cpu(), strict=True):
        row[:] = torch.bincount(values, minlength=bins)
    reach = smooth // 2
    totals = np.pad(np.cumsum(np.pad(counts, ((0, 0), (reach, reach))), axis=1), ((0, 0), (1, 0)))
    box = totals[:, smooth:] - totals[:, :-smooth]
    padded = np.pad(box, ((0, 0), (1, 1)), constant_values=-1)
    return ((box >= padded[:, :-2]) & (box >= padded[:, 2:])).sum(axis=1)


def roundness(masks: Masks) -> NDArray[np.float64]:
    """Area / perimeter^2 of the largest component, (B,): 0.08 for a disc, less for other shapes.

    0 where there is no component between 5 % and 90 % of the image (the official code gives
    1 000 000 there, so that such samples always pass).
    """
    ids = _component_ids(masks)
    areas = _component_areas(ids)
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


def _component_areas(ids: NDArray[np.int32]) -> NDArray[np.int32]:
    """(B, H, W): the area in pixels of the component that each pixel belongs to; 0 outside."""
    # NumPy would count and look up in int64, for which it first copies the numbers.
    areas = torch.bincount(torch.from_numpy(ids).flatten()).int().numpy()
    areas[0] = 0
    return areas.take(ids)


def _component_ids(masks: Masks) -> NDArray[np.int32]:
    """(B, H, W): a number for each component of the whole batch, 0 outside."""
    ids = np.zeros(masks.shape, np.int32)
    scipy.ndimage.label(masks, WITHIN_IMAGE, output=ids)
    return ids
