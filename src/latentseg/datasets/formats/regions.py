"""Regions of pixels as other tools write them: run lengths, and polygons, filled exactly."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.coco_files import mask_api
from latentseg.errors import CorruptFileError

LONGEST_RUN_BITS = 40  # a hostile text could ask for numbers of any length


def decode(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A `segmentation` of COCO as a region (H, W): run lengths, compressed or not, or polygons.

    Raises:
        CorruptFileError: it is neither, or not of this size.
    """
    if isinstance(segmentation, list):
        return fill(segmentation, size)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise CorruptFileError("segmentation: expected run lengths with size, or polygons.")
    counts = segmentation["counts"]
    if segmentation["size"] != [*size]:
        raise CorruptFileError(f"segmentation: size {segmentation['size']}, not {[*size]}.")
    # Counted first: pycocotools takes runs that end early for a whole mask.
    runs = _runs(counts) if isinstance(counts, str) else counts
    is_sound = isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs)
    if not is_sound or sum(runs) != size[0] * size[1]:
        raise CorruptFileError(f"segmentation: the runs do not make {size[0]} x {size[1]} pixels.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size, order="F")


def is_degenerate(polygon: Any) -> bool:
    """Whether a polygon [x1, y1, x2, y2, ...] has fewer than three corners, or no area.

    What is no polygon at all is not degenerate, but wrong: `fill` says so.
    """
    if not _is_flat(polygon):
        return False
    if len(polygon) < 6:
        return True
    x, y = np.array(polygon, np.float64).reshape(-1, 2).T
    with np.errstate(over="ignore", invalid="ignore"):  # corners that are much too far away
        return bool(np.dot(x, np.roll(y, 1)) == np.dot(y, np.roll(x, 1)))


def _is_flat(polygon: Any) -> bool:
    is_even = isinstance(polygon, list) and len(polygon) % 2 == 0
    return is_even and all(type(v) in (int, float) and math.isfinite(v) for v in polygon)


def _runs(counts: str) -> list[int]:
    """The lengths of the runs in COCO's text: 5 bits a letter, from the third on differences.

    Source: cocoapi, common/maskApi.c, rleFrString.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > LONGEST_RUN_BITS:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [-1] if shift else runs


def fill(polygons: list[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Polygons [x1, y1, x2, y2, ...] in pixels as a region (H, W), as pycocotools fills them.

    Raises:
        CorruptFileError: less than three corners, or a corner that is no number or more than the
            size of the image away from it.
    """
    height, width = size
    for polygon in polygons:
        if not _is_flat(polygon) or len(polygon) < 6:
            raise CorruptFileError(f"polygon {str(polygon)[:60]}: expected x1, y1, x2, y2, x3, ...")
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                raise CorruptFileError(f"polygon {str(polygon)[:60]}: lies outside the image.")
    if not polygons:
        return np.zeros(size, bool)
    api = mask_api()
    return api.decode(api.merge(api.frPyObjects(polygons, height, width))).astype(bool)
