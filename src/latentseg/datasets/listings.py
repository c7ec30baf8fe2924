"""The pairs of photo and mask of a data set, found by file names, and how they are read."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from latentseg.datasets.groupings import Grouping
from latentseg.datasets.mask_values import Meaning
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.images import Pixels, read_image, read_mask


@dataclass(frozen=True)
class Pair:
    """A photo and its mask.

    Attributes:
        name: The photo's path below its folder, without suffix.
        image: The photo's file.
        mask: The mask's file, or the common beginning of its files.
        box: (top, left, bottom, right) of the part of both that counts, or None: all.
    """

    name: str
    image: Path
    mask: Path
    box: tuple[int, int, int, int] | None = None


def _image(pair: Pair) -> Pixels:
    return read_image(pair.image)


def _mask(pair: Pair) -> Pixels:
    return read_mask(pair.mask)


@dataclass(frozen=True)
class Listing:
    """The pairs of a data set, found by file names alone.

    Attributes:
        name: Shown beside results.
        pairs: In order of names.
        problems: What keeps files from being paired, by name.
        crops: Whether the published protocols take the centre square of its photos.
        meaning: What the values mean that `read_mask` gives; None if the layout does not say it.
        groupings: What is still to be done to that meaning, in this order.
        read_image: A pair's photo, (H, W, 3) uint8.
        read_mask: The values in its mask, (H, W) uint8.
    """

    name: str
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...]
    crops: bool = False
    meaning: Meaning | None = None
    groupings: tuple[Grouping, ...] = ()
    read_image: Callable[[Pair], Pixels] = _image
    read_mask: Callable[[Pair], Pixels] = _mask


def read_columns(path: Path, n: int = 2) -> dict[str, str]:
    """The last of `n` columns of a text file by the first.

    Raises:
        InputError: there is no such file.
        CorruptFileError: a line has not `n` columns.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; it is part of the published data set.")
    rows = [line.split() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if any(len(row) != n for row in rows):
        raise CorruptFileError(f"{path}: expected {n} columns in every line.")
    return {row[0]: row[-1] for row in rows}


def below(root: Path, path: Path) -> str:
    """`path` as it is called below `root`, for messages."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def message_below(root: Path, error: LatentsegError) -> str:
    """What `error` says, with files as they are called below `root`."""
    return str(error).replace(f"{root}{os.sep}", "")
