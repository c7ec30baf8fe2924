"""A dataset as it lies on disk: its pairs of photo and mask, found by names, and their readers."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from latentseg.datasets.groupings import Grouping
from latentseg.datasets.mask_values import Meaning
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.images import (
    PLAIN,
    SUFFIXES,
    Pixels,
    Reading,
    list_pictures,
    name_of,
    read_image,
    read_mask,
)

SHOWN_PROBLEMS = 20
MARKS = ("_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_matte")


@dataclass(frozen=True)
class Pair:
    """A photo and its mask.

    Attributes:
        name: The photo's path below its folder, without suffix.
        image: The photo's file.
        mask: The mask's file, or the common beginning of its files.
        box: (top, left, bottom, right) of the part of both that counts, or None: all.
        page: The page of both files, where they are stacks; from 0.
    """

    name: str
    image: Path
    mask: Path
    box: tuple[int, int, int, int] | None = None
    page: int | None = None


def read_photo(pair: Pair, reading: Reading = PLAIN) -> Pixels:
    """The photo of a pair that is a file."""
    return read_image(pair.image, reading, pair.page)


def read_ids(pair: Pair) -> Pixels:
    """The values in the mask of a pair that is a file."""
    return read_mask(pair.mask, pair.page)


@dataclass(frozen=True)
class Listing:
    """The pairs of a dataset, found by names alone; no picture has been read.

    Attributes:
        name: Shown beside results.
        folder: Where it lies; messages call files as they are called below it.
        pairs: In order of names.
        problems: What keeps files from being paired, by name.
        crops: Whether the published protocols take the center square of its photos.
        meaning: What the values mean that `read_mask` gives; None if the layout does not say it.
        groupings: What is still to be done to that meaning, in this order.
        facts: License, generator, labeler and what else is known of its origin.
        notes: What a user should be told of how it was read.
        read_image: A pair's photo, (H, W, 3) uint8.
        read_mask: The values in its mask, (H, W) uint8; (K, H, W) for class probabilities.
        copies_photos: Whether each photo is a file of its own, which can be copied as it is.
    """

    name: str
    folder: Path
    pairs: tuple[Pair, ...]
    problems: tuple[str, ...] = ()
    crops: bool = False
    meaning: Meaning | None = None
    groupings: tuple[Grouping, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    read_image: Callable[[Pair], Pixels] = read_photo
    read_mask: Callable[[Pair], Pixels] = read_ids
    copies_photos: bool = True


@dataclass(frozen=True)
class Layout:
    """A way in which datasets lie on disk, and its reader.

    Attributes:
        name: What people call it.
        looks_for: The files and folders by which it is recognized, in words.
        find: (path, groupings) to the dataset, whose labels are to be grouped so; None if `path`
            has another layout.
    """

    name: str
    looks_for: str
    find: Callable[[Path, Sequence[Grouping]], Listing | None]


def plain_layout(name: str, looks_for: str, find: Callable[[Path], Listing | None]) -> Layout:
    """A layout whose classes are there without any grouping, and are grouped afterwards."""

    def found(path: Path, groupings: Sequence[Grouping]) -> Listing | None:
        listing = find(path)
        return None if listing is None else replace(listing, groupings=tuple(groupings))

    return Layout(name, looks_for, found)


def pair_by_stem(
    folder: Path, images: Path, masks: Path, *, needs_masks: bool = True
) -> tuple[tuple[Pair, ...], tuple[str, ...]]:
    """Pairs of the photos and masks that have the same path without suffix, and what is alone.

    Args:
        folder: The dataset, for messages.
        images: Folder of photos, with folders inside.
        masks: Folder of masks, with the same folders inside.
        needs_masks: Whether a photo without mask is a problem; otherwise it is left out.
    """
    photos, doubled_photos = _by_stem(folder, images)
    truths, doubled_truths = _by_stem(folder, masks)
    truths = _without_mark(truths, photos)
    problems = doubled_photos + doubled_truths
    if not photos:
        problems.append(f"{below(folder, images)}: no images ({', '.join(SUFFIXES)}) in it.")
    same_letters = {stem.lower(): path for stem, path in truths.items()}
    for stem in sorted(photos.keys() - truths.keys()) if needs_masks else ():
        near = same_letters.get(stem.lower())
        hint = f"; {below(folder, near)} differs in case" if near else ""
        problems.append(
            f"{below(folder, photos[stem])}: has no mask {below(folder, masks)}/{stem}.png{hint}."
        )
    problems.extend(
        f"{below(folder, truths[stem])}: has no image of that name in {below(folder, images)}."
        for stem in sorted(truths.keys() - photos.keys())
    )
    both = sorted(photos.keys() & truths.keys())
    return tuple(Pair(stem, photos[stem], truths[stem]) for stem in both), tuple(problems)


def _without_mark(masks: Mapping[str, Path], photos: Mapping[str, Path]) -> dict[str, Path]:
    """The masks by the stems of their photos: many tools write a_mask.png for a.jpg."""
    found = {}
    for stem, path in masks.items():
        ends = (stem.removesuffix(mark) for mark in MARKS if stem.endswith(mark))
        plain = next((end for end in ends if end in photos and end not in masks), stem)
        found[stem if stem in photos else plain] = path
    return found


def _by_stem(root: Path, folder: Path) -> tuple[dict[str, Path], list[str]]:
    found: dict[str, Path] = {}
    pictures = list_pictures(folder)
    problems = [message.replace(f"{root}{os.sep}", "") for message in pictures.problems]
    for path in pictures.paths:
        stem = name_of(path.relative_to(folder))
        earlier = found.setdefault(stem, path)
        if earlier != path:
            problems.append(
                f"{below(root, path)}: has the same name as {earlier.name}. Keep one of them."
            )
    return found, problems


def read_columns(path: Path, n: int = 2) -> dict[str, str]:
    """The last of `n` columns of a text file by the first.

    Raises:
        InputError: there is no such file.
        CorruptFileError: a line has not `n` columns.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; it is part of the published dataset.")
    rows = [line.split() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    if any(len(row) != n for row in rows):
        raise CorruptFileError(f"{path}: expected {n} columns in every line.")
    return {row[0]: row[-1] for row in rows}


def is_inside(name: str) -> bool:
    """Whether a path that a file names stays in its folder, on any system."""
    return (
        bool(name)
        and name.isprintable()
        and not PurePosixPath(name).is_absolute()
        and not PureWindowsPath(name).anchor
        and ".." not in PureWindowsPath(name).parts
    )


def below(root: Path, path: Path) -> str:
    """`path` as it is called below `root`, for messages."""
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()


def message_below(root: Path, error: LatentsegError) -> str:
    """What `error` says, with files as they are called below `root`."""
    return str(error).replace(f"{root}{os.sep}", "")


def problems_in(folder: Path | str, problems: Sequence[str]) -> InputError:
    """The error that lists what is wrong with a dataset."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    shown = [f"  {problem}" for problem in problems[:SHOWN_PROBLEMS]]
    if len(problems) > SHOWN_PROBLEMS:
        shown.append(f"  and {len(problems) - SHOWN_PROBLEMS} more.")
    return InputError("\n".join([f"{folder}: {count}:", *shown]))
