"""One rule for all pictures that are read together: the same black and white in all of them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from latentseg.errors import LatentsegError
from latentseg.images.headers import is_deep, pages_of
from latentseg.images.reading import Reading, read_stored
from latentseg.images.value_range import Extent, choose_range, extent_of

LOOKED_AT = 256  # of more files, as many are looked at, evenly spread
FULL = (0.0, 65535.0)


def with_range(reading: Reading, paths: Sequence[Path]) -> tuple[Reading, str]:
    """`reading` with one range for all files, if some of them have more than 8 bits.

    The range that the user gave stays; otherwise it is that of `choose_range`.

    Returns:
        The reading, and one sentence that says what was chosen; "" if there is nothing to say.
    """
    if reading.range is not None:
        return reading, ""
    deep = [path for path in dict.fromkeys(paths) if is_deep(path)]
    if not deep:
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


def _extents(path: Path, reading: Reading) -> list[Extent]:
    """Of the first, the middle and the last page; of files that cannot be read, none."""
    try:
        pages = pages_of(path, reading)
        chosen = {pages[0], pages[len(pages) // 2], pages[-1]}
        stored = [read_stored(path, reading, page) for page in chosen]
    except LatentsegError:
        return []
    extents = [extent_of(each) for each in stored if each is not None]
    return [extent for extent in extents if extent is not None]
