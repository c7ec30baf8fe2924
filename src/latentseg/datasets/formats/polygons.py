"""Regions as polygons that hold exactly their pixels, for formats that know nothing else."""

from itertools import pairwise
from typing import Any

import contourpy
import numpy as np
from numpy.typing import NDArray

# Where the outline lies between the centers of the last pixel inside (1) and the first outside (0):
# just within the last pixel. So programs that round its points down to whole pixels and draw the
# outline, too (OpenCV's fillPoly), get the same mask as those that ask which centers lie inside.
LEVEL = 0.55

Ring = NDArray[np.float64]


def polygons(region: NDArray[np.bool_]) -> list[Ring]:
    """Each connected part of a region (H, W) as one closed polygon, (corners, 2) of x, y in pixels.

    All sides are upright or level and lie within pixels of the region, and so do points in between,
    which some readers add. A hole is joined to the ring around it by a cut of no width. The point
    (0, 0) is the corner of the image.
    """
    # Marching squares: a point for each side of a pixel on the outline, holes with their ring.
    outline = contourpy.contour_generator(
        z=np.pad(region.astype(np.float32), 1), fill_type=contourpy.FillType.OuterOffset
    )
    found: Any = outline.filled(LEVEL, 2.0)
    points, offsets = found
    return [
        _without_straight(_squared(_joined([ring[a : b - 1] - 0.5 for a, b in pairwise(at)])))
        for ring, at in zip(points, offsets, strict=True)
    ]


def _joined(rings: list[Ring]) -> Ring:
    """The outer ring and its holes as one ring: from the left end of a hole straight to the left.

    What the cut meets first is the outer ring, or a hole further to the left, which is joined
    already.
    """
    joined = rings[0]
    for hole in sorted(rings[1:], key=lambda ring: ring[:, 0].min()):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = hole[0]
        is_left = (np.abs(joined[:, 1] - y) < 0.01) & (joined[:, 0] < x)
        at = int(np.where(is_left, joined[:, 0], -np.inf).argmax())
        joined = np.concatenate([joined[: at + 1], hole, hole[:1], joined[at:]])
    return joined


def _squared(ring: Ring) -> Ring:
    """Puts a corner where the outline turns: marching squares cuts corners off."""
    after = np.roll(ring, -1, axis=0)
    is_upright = np.abs(ring[:, 1] % 1 - 0.5) < 0.01  # the middle of a pixel's left or right side
    corner = np.where(is_upright[:, None], [1, 0], [0, 1]) * ring
    corner += np.where(is_upright[:, None], [0, 1], [1, 0]) * after
    return np.stack([ring, corner], axis=1).reshape(-1, 2)


def _without_straight(ring: Ring) -> Ring:
    """Leaves out points between their neighbours on a straight line, and repeated ones."""
    ring = ring[np.abs(ring - np.roll(ring, 1, axis=0)).max(axis=1) > 1e-3]
    steps = np.diff(np.concatenate([ring[-1:], ring, ring[:1]]), axis=0)
    before, after = steps[:-1], steps[1:]
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    is_ahead = (before * after).sum(axis=1) > 0
    return ring[~((np.abs(turn) < 1e-3) & is_ahead)]
