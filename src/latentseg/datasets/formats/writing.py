"""What a format is that we write: its folders and files, sample by sample."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from latentseg.datasets.descriptions import Facts
from latentseg.errors import InputError
from latentseg.images import IGNORE, Pixels

Record = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One photo to be written.

    Attributes:
        name: File name without suffix, unlike that of any other sample.
        suffix: ".png", ".jpg" or ".jpeg".
        mask: (H, W) uint8, 0 background, 1..K classes, 255 ignored.
    """

    name: str
    suffix: str
    mask: Pixels


@dataclass(frozen=True)
class Target:
    """The folder that is being written.

    Attributes:
        folder: Its place.
        classes: Names of the classes, without the background.
        facts: Licence, generator, labeler and what else is known.
        lossy: Accept what the format cannot hold.
        instances: COCO: one annotation for each connected component instead of each class.
    """

    folder: Path
    classes: tuple[str, ...]
    facts: Facts
    lossy: bool = False
    instances: bool = False


@dataclass(frozen=True)
class Format:
    """How labeled photos are written.

    Attributes:
        name: As `--format` has it.
        images: Folder of the photos.
        write: Writes what belongs to one sample, and returns what `finish` must know of it as
            JSON values. The photo itself is written already.
        finish: Writes what belongs to the whole, from the records in order; returns what else
            dataset.json should say.
    """

    name: str
    images: str
    write: Callable[[Target, Sample], Record]
    finish: Callable[[Target, Collection[Record]], Facts]


def check_size(mask: Pixels, size: tuple[int, int], where: Path) -> Pixels:
    """`mask`, if it has the size of its photo.

    Raises:
        InputError: it has another.
    """
    if mask.shape != size:
        raise InputError(
            f"{where}: {mask.shape[0]} x {mask.shape[1]} pixels, but its image has "
            f"{size[0]} x {size[1]} (height x width). They must agree."
        )
    return mask


def classes_in(mask: Pixels) -> list[int]:
    """The ids of the classes that occur in a mask, without background and 255."""
    return [int(k) for k in np.unique(mask) if k not in (0, IGNORE)]
