"""How well a mask follows the true outline: trimap IoU and boundary F."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from latentseg.images import IGNORE, Pixels

TOLERANCE = 0.0075  # of the image's diagonal: Csurka et al. 2013, section 4


def trimap(truth: Pixels, width: float) -> NDArray[np.bool_]:
    """Which pixels lie in a band on both sides of the true boundary.

    The boundary runs along the edges between pixels of foreground and background. A pixel lies in
    the band if the Chebyshev distance between its center and the nearest such edge is at most
    `width`: for a width of 3 px these are the three pixels on either side. Neither the border of
    the image nor that of ignored pixels is a boundary, and ignored pixels do not lie in the band.

    Args:
        truth: (H, W) uint8: 0 background, 255 ignored, anything else foreground.
        width: Of the band on each side, in pixels, at least 0.5.

    Returns:
        (H, W).

    Source: Feng et al. 2023, Table 3. The paper gives 3 px but not the side; this is our reading.

    >>> trimap(np.uint8([[0, 0, 0, 1, 1]]), 1.5).astype(int).tolist()
    [[0, 1, 1, 1, 1]]
    """
    reach = 2 * math.floor(width + 0.5) + 1
    background, foreground = truth == 0, (truth > 0) & (truth != IGNORE)
    near_background, near_foreground = (
        ndimage.maximum_filter(side, size=reach, mode="constant")
        for side in (background.astype(np.uint8), foreground.astype(np.uint8))
    )
    return (foreground & (near_background > 0)) | (background & (near_foreground > 0))


def boundary_f(mask: Pixels, truth: Pixels, *, tolerance: float = TOLERANCE) -> float:
    """F1 between the boundary of a mask and the true one, in [0, 1].

    Boundary pixels are those of the foreground that touch the background by a side. One of them is
    right if its distance to the other boundary is below `tolerance` times the image's diagonal.
    Without any boundary in both, F is 1; without one in either, 0.

    Args:
        mask: Predicted, (H, W) uint8: 0 background, anything else foreground.
        truth: The same, and 255 for pixels that do not count.
        tolerance: As a share of the diagonal.

    Source: Csurka et al. 2013, section 4 (BF).
    """
    is_valid = truth != IGNORE
    found, true = (_boundary(picture > 0, is_valid) for picture in (mask, truth))
    if not found.any() or not true.any():
        return float(found.any() == true.any())
    limit = tolerance * math.hypot(*truth.shape)
    precision = (_distance_to(true)[found] < limit).mean()
    recall = (_distance_to(found)[true] < limit).mean()
    total = precision + recall
    return float(2 * precision * recall / total) if total else 0.0


def _boundary(is_foreground: NDArray[np.bool_], is_valid: NDArray[np.bool_]) -> NDArray[np.bool_]:
    near_background = np.asarray(ndimage.binary_dilation(~is_foreground & is_valid), np.bool_)
    return is_foreground & is_valid & near_background


def _distance_to(boundary: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(H, W): Euclidean distance between each pixel's center and the nearest boundary pixel's."""
    return np.asarray(ndimage.distance_transform_edt(~boundary))
