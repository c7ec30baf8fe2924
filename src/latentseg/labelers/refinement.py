"""Which samples are kept, and how masks are cleaned: the filters of Melas-Kyriazi et al. 2021."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from latentseg.labelers.components import large_components
from latentseg.labelers.directions_settings import RefinementConfig
from latentseg.labelers.mask_measures import Masks, area_share
from latentseg.labelers.roundness import roundness

FILTERS = ("components", "area", "histogram", "roundness", "overlap")


HISTOGRAM_VALUES = 2**20  # whose bins are found together


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
