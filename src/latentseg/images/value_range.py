"""Which values become black and white in pictures of more than 8 bits."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from latentseg.images.kinds import Pixels, Stored, Values

SENSOR_BITS = (8, 10, 12, 14, 16)


@dataclass(frozen=True)
class Extent:
    """The values in a picture.

    Attributes:
        low: The least; or the black of a window that the file itself names.
        high: The largest; or its white.
        is_sensor: Whether they are unsigned integers, whose range is one of bits.
        is_window: Whether they are such a window.
    """

    low: float
    high: float
    is_sensor: bool = False
    is_window: bool = False


def extent_of(stored: Stored) -> Extent | None:
    """The values in a picture; None if none of them is finite."""
    if stored.window is not None:
        return Extent(*stored.window, is_window=True)
    values = stored.values
    if values.dtype.kind == "f":
        values = values[np.isfinite(values)]
    if not values.size:
        return None
    return Extent(
        float(values.min()), float(values.max()), is_sensor=stored.values.dtype.kind == "u"
    )


def choose_range(extents: Sequence[Extent]) -> tuple[float, float]:
    """(black, white) for pictures that are read together.

    Where files name a window of their own (DICOM), it is the widest of these. Where all values are
    unsigned integers it goes from 0 to the largest number of 8, 10, 12, 14 or 16 bits that the
    brightest value of all needs. Fractions from 0 to 1, or to 255, keep these ends. All others go
    from the least to the largest value.
    """
    windows = [extent for extent in extents if extent.is_window]
    used = windows or extents
    low, high = min(extent.low for extent in used), max(extent.high for extent in used)
    if windows or low < 0:
        return low, max(high, low + 1)
    if all(extent.is_sensor for extent in used):
        ends = [float(2**bits - 1) for bits in SENSOR_BITS]
        return 0.0, next((end for end in ends if high <= end), high)
    for end in (1.0, 255.0):
        if high <= end:
            return 0.0, end
    return low, max(high, low + 1)


def to_8_bits(stored: Stored, ends: tuple[float, float] | None) -> Pixels:
    """A picture as an image (H, W, 3) uint8, transparency laid over white.

    Args:
        stored: The picture.
        ends: Its black and white; None: those of `choose_range` for this picture alone.
    """
    if ends is None:
        extent = extent_of(stored)
        ends = (0.0, 1.0) if extent is None else choose_range([extent])
    black, white = ends
    shown = np.nan_to_num((stored.values.astype(np.float32) - black) / (white - black))
    shown = 255 * shown.clip(0, 1)
    image = over_white(255 - shown if stored.is_inverted else shown, stored.opacity)
    return np.dstack([image] * 3) if image.ndim == 2 else image


def over_white(values: Values, opacity: Values | None) -> Pixels:
    """Values 0 to 255, (H, W) or (H, W, 3), with transparency laid over white, as uint8."""
    if opacity is not None:
        share = opacity if values.ndim == 2 else opacity[..., None]
        values = values * share + 255 * (1 - share)
    return np.round(values).astype(np.uint8)
