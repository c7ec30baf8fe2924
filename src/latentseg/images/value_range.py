"""Which values become black and white: one rule for all pictures that are read together."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from latentseg.errors import LatentsegError
from latentseg.images.kinds import Values
from latentseg.images.reading import Reading, is_deep, pages_of, read_values

SENSOR_BITS = (8, 10, 12, 14, 16)
LOOKED_AT = 256  # of more files, as many are looked at, evenly spread
FULL = (0.0, 65535.0)


@dataclass(frozen=True)
class _Extent:
    low: float
    high: float
    is_sensor: bool  # unsigned integers, whose range is one of bits
    is_window: bool = False  # the file itself says what is black and white


def with_range(reading: Reading, paths: Sequence[Path]) -> tuple[Reading, str]:
    """`reading` with one range for all files, if some of them have more than 8 bits.

    The range that the user gave stays. Otherwise, where files name a window of their own (DICOM),
    it is the widest of these. Where all values are unsigned integers it goes from 0 to the largest
    number of 8, 10, 12, 14 or 16 bits that the brightest value of all files needs. Fractions from 0
    to 1, or to 255, keep these ends. All others go from their smallest to their largest value.

    Returns:
        The reading, and one sentence that says what was chosen; "" if there is nothing to say.
    """
    deep = [path for path in dict.fromkeys(paths) if is_deep(path)]
    if reading.range is not None or not deep:
        return reading, ""
    chosen = deep[:: -(-len(deep) // LOOKED_AT)]
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda path: _extents(path, reading), chosen)
        extents = [extent for several in found for extent in several]
    if not extents:
        return reading, ""  # none of them can be read; each will say why
    low, high = choose_range(extents)
    files = "1 file" if len(deep) == 1 else f"{len(deep)} files"
    text = (
        f"{files} of more than 8 bits: values from {low:g} to {high:g} become black to white, in "
        "all of them alike; `range` sets other ends."
    )
    return replace(reading, range=(low, high)), "" if (low, high) == FULL else text


def choose_range(extents: Sequence[_Extent]) -> tuple[float, float]:
    """The range that `with_range` describes."""
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
    return low, max(high, low + 1e-6)


def _extents(path: Path, reading: Reading) -> list[_Extent]:
    """Of the first, the middle and the last page; of files that cannot be read, none."""
    try:
        pages = pages_of(path, reading)
        chosen = {pages[0], pages[len(pages) // 2], pages[-1]}
        return [extent for page in chosen if (extent := _extent(path, reading, page))]
    except LatentsegError:
        return []


def _extent(path: Path, reading: Reading, page: int | None) -> _Extent | None:
    stored = read_values(path, reading, page)
    if stored is None:
        return None
    if stored.window is not None:
        return _Extent(*stored.window, is_sensor=False, is_window=True)
    values = _finite(stored.values)
    if not values.size:
        return None
    return _Extent(float(values.min()), float(values.max()), is_sensor=stored.is_sensor)


def _finite(values: Values) -> Values:
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values
