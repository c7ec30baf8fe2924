"""Equality of what products of matrices made: the last bits differ between processors."""

import numpy as np
from numpy.typing import ArrayLike

PIXELS = 0.002  # share of pixels that may lie so near to a border that rounding decides


def assert_same_masks(actual: ArrayLike, expected: ArrayLike) -> None:
    """Masks (..., H, W) of one shape that differ in two of a thousand pixels at most."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    share = (actual != expected).mean()
    assert share <= PIXELS, f"{share:.2%} of the pixels differ"


def assert_same_pictures(actual: ArrayLike, expected: ArrayLike) -> None:
    """Pictures (..., H, W, 3) uint8 of one shape that differ by one level at most."""
    actual, expected = np.asarray(actual, np.int16), np.asarray(expected, np.int16)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max(initial=0) <= 1
