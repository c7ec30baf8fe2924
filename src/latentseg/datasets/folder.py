"""Our own dataset folder, and others like it: photos beside masks of the same names."""

from functools import partial
from pathlib import Path

import numpy as np

from latentseg.datasets.descriptions import read_description
from latentseg.datasets.listings import Listing, Pair, below, pair_by_stem, plain_layout
from latentseg.datasets.mask_values import class_ids
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST
from latentseg.images import Pixels, read_mask

IMAGES, MASKS = "images", "masks"
SOFT = "soft"  # the folder of class probabilities beside images and masks
RECORDS = ("samples.jsonl", ".samples.jsonl")  # of samples that a command of ours has written
PARTS = ("train", "val", "test")  # a folder of one of these names is called by the one above, too


def find_folder(folder: Path) -> Listing | None:
    """images/ and masks/ with a dataset.json in the folder or above it; None if it is none.

    Raises:
        InputError: the command that writes it has not finished; dataset.json is wrong.
    """
    if not (folder / IMAGES).is_dir() or not (folder / MASKS).is_dir():
        return None
    if not (folder / MANIFEST).is_file() and any((folder / name).is_file() for name in RECORDS):
        raise InputError(
            f"{folder}: no {MANIFEST}; the folder was never finished. Give the command that makes "
            "it again: it goes on where it stopped."
        )
    pairs, problems = pair_by_stem(folder, folder / IMAGES, folder / MASKS)
    facts = read_description(folder).facts
    return Listing(called(folder), folder, pairs, problems, facts=facts)


def called(folder: Path) -> str:
    """What a dataset is called: the name of its folder, with the one above for a part of it."""
    place = folder.absolute()
    return f"{place.parent.name}/{place.name}" if place.name in PARTS else place.name


def has_soft_labels(folder: Path | str) -> bool:
    """Whether a dataset folder keeps class probabilities beside its masks."""
    folder = Path(folder)
    return (folder / IMAGES).is_dir() and read_description(folder).values.get(SOFT) is True


def find_soft(folder: Path) -> Listing:
    """A dataset folder with class probabilities, whose masks are (K, H, W) uint8: `to_levels`.

    Raises:
        InputError: a photo has none, or dataset.json does not name the classes.
    """
    classes = read_description(folder).classes
    if classes is None:
        raise InputError(f"{folder}: dataset.json names no classes for the probabilities in it.")
    pairs, problems = pair_by_stem(folder, folder / IMAGES, folder / SOFT)
    return Listing(
        called(folder),
        folder,
        pairs,
        problems,
        meaning=class_ids(classes),
        facts=read_description(folder).facts,
        read_mask=partial(_read_planes, folder, len(classes)),
    )


def _read_planes(folder: Path, n_classes: int, pair: Pair) -> Pixels:
    """The levels (K, H, W) of all classes, which lie below each other in a picture (K * H, W)."""
    picture = read_mask(pair.mask)
    height, width = picture.shape
    planes = picture.reshape(n_classes, -1, width) if height % n_classes == 0 else None
    if planes is None or (planes.sum(axis=0, dtype=np.int32) > 255).any():
        raise CorruptFileError(
            f"{below(folder, pair.mask)}: does not hold the probabilities of {n_classes} classes."
        )
    return planes


FOLDER = plain_layout(
    "dataset folder", "the folders images and masks, and dataset.json beside or above", find_folder
)
