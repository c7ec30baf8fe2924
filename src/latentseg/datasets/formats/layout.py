"""What a format is: how its folders are recognised, read and written, sample by sample."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import IGNORE, Pixels, read_image

MAX_CLASSES = 254  # ids are one byte: 0 is the background, 255 is ignored
SHOWN_PROBLEMS = 20
DESCRIPTION = "dataset.json"
MEANING = ("classes", "ignore", "foreground")  # what dataset.json says of the masks; the rest tells

Record = dict[str, Any]
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class StoredDataset:
    """Photos in files, with masks in any format.

    `dataset[i]` is (name, image (H, W, 3) uint8, mask (H, W) uint8: 0 background, 1..K classes,
    255 ignored).

    Attributes:
        folder: Where it lies.
        classes: Names of the classes, without the background.
        facts: What else is known: licence, generator, labeler.
        names: Of the photos, without suffix; "/" where they lie in folders.
        images: Their files.
        read_mask: (index, (height, width)) to the mask of a photo of that size.
    """

    folder: Path
    classes: tuple[str, ...]
    facts: Facts
    names: tuple[str, ...]
    images: tuple[Path, ...]
    read_mask: Callable[[int, tuple[int, int]], Pixels]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        image = read_image(self.images[index])
        height, width = image.shape[:2]
        return self.names[index], image, self.read_mask(index, (height, width))


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
    """A layout of labelled photos on disk.

    Attributes:
        name: As `--format` has it.
        images: Folder of the photos in what is written.
        is_in: Whether a folder (or file) has this layout, by the names in it.
        read: Opens it; InputError or CorruptFileError lists all that does not fit together.
        write: Writes what belongs to one sample, and returns what `finish` must know of it as
            JSON values. The photo itself is written already.
        finish: Writes what belongs to the whole, from the records in order; returns what else
            dataset.json should say.
    """

    name: str
    images: str
    is_in: Callable[[Path], bool]
    read: Callable[[Path], StoredDataset]
    write: Callable[[Target, Sample], Record]
    finish: Callable[[Target, Collection[Record]], Facts]


def read_description(folder: Path) -> dict[str, Any]:
    """What dataset.json in `folder` says; {} without one.

    Raises:
        CorruptFileError: it is not a JSON object.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return {}
    description = read_json(path)
    if not isinstance(description, dict):
        raise CorruptFileError(f'{path}: expected an object such as {{"classes": ["cat"]}}.')
    return description


def facts_in(description: Facts) -> dict[str, Any]:
    """Licence, generator, labeler and the like: all of dataset.json but the masks' meaning."""
    return {key: value for key, value in description.items() if key not in MEANING}


def check_classes(names: Any, where: Path) -> tuple[str, ...]:
    """Names of classes, without the background, as a file has them.

    Raises:
        CorruptFileError: they are no list of 1 to 254 different names.
    """
    is_list = isinstance(names, list | tuple) and all(
        isinstance(n, str) and n and n.isprintable() for n in names
    )
    if not is_list or not 1 <= len(names) <= MAX_CLASSES or len(set(names)) < len(names):
        raise CorruptFileError(
            f"{where}: classes are {str(names)[:200]}; expected 1 to {MAX_CLASSES} different "
            "names, without the background."
        )
    return tuple(names)


def is_inside(name: str) -> bool:
    """Whether a path that a file names stays in its folder, on any system."""
    return (
        bool(name)
        and name.isprintable()
        and not PurePosixPath(name).is_absolute()
        and not PureWindowsPath(name).anchor
        and ".." not in PureWindowsPath(name).parts
    )


def problems_in(folder: Path | str, problems: list[str]) -> InputError:
    """The error that lists what is wrong with a data set."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"  and {len(problems) - SHOWN_PROBLEMS} more.")
    return InputError("\n".join([f"{folder}: {count}:", *shown]))


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
