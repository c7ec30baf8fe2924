"""Real photos with true masks: opened when every file is sound, else refused with all problems."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.groupings import Grouping, find_grouping
from latentseg.datasets.listings import Listing, Pair, below, message_below
from latentseg.datasets.mask_values import (
    Meaning,
    class_ids,
    guess_meaning,
    regrouped,
    stated_meaning,
)
from latentseg.datasets.published import find_layout
from latentseg.errors import InputError, LatentsegError
from latentseg.images import IGNORE, Pixels

READING_THREADS = min(8, os.cpu_count() or 1)

Groups = str | Path | Grouping | Sequence[str | Path | Grouping]


@dataclass(frozen=True)
class RealDataset:
    """Photos with true masks.

    `dataset[i]` is (name, image (H, W, 3) uint8, mask (H, W) uint8: 0 background, 1..K classes,
    255 ignored).

    Attributes:
        name: Shown beside results.
        classes: Names of the classes, without the background.
        pairs: The files.
        crops: Whether the published protocols take the centre square of its photos.
        read: Image and mask of a pair.
    """

    name: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    crops: bool
    read: Callable[[Pair], tuple[Pixels, Pixels]]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        pair = self.pairs[index]
        return pair.name, *self.read(pair)

    def __iter__(self) -> Iterator[tuple[str, Pixels, Pixels]]:
        """All photos in order, a few of them read ahead."""
        with ThreadPoolExecutor(READING_THREADS) as pool:
            for start in range(0, len(self), 64):
                yield from pool.map(self.__getitem__, range(start, min(start + 64, len(self))))

    def thinned(self, limit: int | None) -> "RealDataset":
        """At most `limit` photos, evenly spread over the data set; all of them if `limit` is None.

        Raises:
            InputError: `limit` is less than 1.
        """
        if limit is None or limit >= len(self):
            return self
        if limit < 1:
            raise InputError(f"`limit`: expected at least 1, found {limit}.")
        kept = tuple(self.pairs[i * len(self) // limit] for i in range(limit))
        return replace(self, pairs=kept)


def open_dataset(
    path: Path | str,
    *,
    classes: Sequence[str] | None = None,
    foreground: int | None = None,
    grouping: Groups = (),
) -> RealDataset:
    """Opens a folder of photos with masks, after reading every file of it once.

    Dataset folders (images/, masks/, and dataset.json in the folder or the one above), folders
    with labels (images/, labels/, and labels.json likewise) and the published layouts of ECSSD,
    DUTS, DUT-OMRON, CUB-200-2011, Oxford Flowers, CelebAMask-HQ and PASCAL-Part are recognised.
    Without dataset.json the masks speak for themselves: only {0, 255} means that 255 is the
    foreground; {0, 1, 255} that 255 is ignored.

    Args:
        path: The folder.
        classes: Names of the classes 1..K, without the background; goes before dataset.json.
        foreground: The value in the mask files that is the only class; goes before dataset.json.
        grouping: Classes to make of those classes: a name of `groupings.GROUPINGS`, or a JSON
            file {"top": ["shirt", "coat"], "background": ["*"]}; or several, one after the other.

    Raises:
        InputError: the folder or any file in it is not as it should be; every problem is listed.
    """
    dataset, problems = _inspect(Path(path), classes, foreground, grouping)
    if problems or dataset is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(
            f"{path}: {count}:\n{listed}\n"
            f"Mend or remove these files. The list again: latentseg check {path}"
        )
    return dataset


def check_dataset(
    path: Path | str,
    *,
    classes: Sequence[str] | None = None,
    foreground: int | None = None,
    grouping: Groups = (),
) -> list[str]:
    """Every problem of a data set at once, each with its file name; empty if there is none.

    Found are: missing and unreadable files, images without mask and the reverse, two files of one
    name, names that differ only in case, differing sizes, masks with colours, values that are no
    class (the first such pixel is named), and masks without any foreground.

    Raises:
        InputError: `path` is not a data set at all, or the options contradict each other.
    """
    return _inspect(Path(path), classes, foreground, grouping)[1]


def _inspect(
    folder: Path, classes: Sequence[str] | None, foreground: int | None, grouping: Groups
) -> tuple[RealDataset | None, list[str]]:
    names = [grouping] if isinstance(grouping, str | Path | Grouping) else grouping
    listing = find_layout(folder, [find_grouping(name) for name in names])
    meaning = _known_meaning(folder, listing, classes, foreground)
    with ThreadPoolExecutor(READING_THREADS) as pool:
        files = list(pool.map(lambda pair: _examine(folder, listing, pair), listing.pairs))
    problems = [*listing.problems, *(problem for file in files for problem in file.problems)]
    values = [file.values for file in files if file.values is not None]
    if not values:
        return None, problems or [f"{folder}: no photo with a mask."]
    meaning = meaning or guess_meaning(values)
    if meaning is None:
        every = np.flatnonzero(np.any(values, axis=0))
        shown = ", ".join(map(str, every[:12])) + (", ..." if len(every) > 12 else "")
        problems.append(
            f"masks: hold the values {shown}, and nothing says what they mean. Name the classes "
            "1, 2, ... with `classes` or in dataset.json: "
            '{"classes": ["A", "B"], "ignore": 255}.'
        )
        return None, problems
    for one in listing.groupings:
        meaning = regrouped(meaning, one)
    for pair, file in zip(listing.pairs, files, strict=True):
        if file.values is not None and (meaning.ids[file.values] < 0).any():
            problems.append(_wrong_values(folder, listing, pair, meaning))
    problems.extend(_nothing_to_find(values, meaning))
    read = partial(_read, listing, meaning)
    return RealDataset(listing.name, meaning.classes, listing.pairs, listing.crops, read), problems


def _known_meaning(
    folder: Path, listing: Listing, classes: Sequence[str] | None, foreground: int | None
) -> Meaning | None:
    if listing.meaning is None:
        return stated_meaning(folder, classes, foreground)
    if classes is None:
        return listing.meaning
    if len(classes) != len(listing.meaning.classes):
        raise InputError(
            f"{folder}: {listing.name} has {len(listing.meaning.classes)} classes "
            f"({', '.join(listing.meaning.classes)}), but `classes` names {len(classes)}. "
            "Merge or leave out classes with a `grouping`."
        )
    return replace(listing.meaning, classes=class_ids(classes).classes)


def _read(listing: Listing, meaning: Meaning, pair: Pair) -> tuple[Pixels, Pixels]:
    return listing.read_image(pair), meaning.ids[listing.read_mask(pair)].astype(np.uint8)


@dataclass(frozen=True)
class _Examined:
    problems: tuple[str, ...]
    values: NDArray[np.bool_] | None  # (256,): which values occur in the mask


def _examine(folder: Path, listing: Listing, pair: Pair) -> _Examined:
    image = mask = None
    problems = []
    try:
        image = listing.read_image(pair)
    except LatentsegError as error:
        problems.append(message_below(folder, error))
    try:
        mask = listing.read_mask(pair)
    except LatentsegError as error:
        problems.append(message_below(folder, error))
    if image is not None and mask is not None and image.shape[:2] != mask.shape:
        problems.append(
            f"{below(folder, pair.mask)}: {mask.shape[0]} x {mask.shape[1]} pixels, but its image "
            f"has {image.shape[0]} x {image.shape[1]} (height x width). They must agree."
        )
    values = None if mask is None else np.bincount(mask.ravel(), minlength=256) > 0
    return _Examined(tuple(problems), values)


def _wrong_values(folder: Path, listing: Listing, pair: Pair, meaning: Meaning) -> str:
    mask = listing.read_mask(pair)
    wrong = meaning.ids[mask] < 0
    y, x = np.argwhere(wrong)[0]
    if listing.meaning is not None:
        cause = "Mend the mask."
    elif len(np.unique(mask[wrong])) > 3:
        cause = "So many values come from smoothing or from JPEG: save it without either."
    else:
        cause = f'If {mask[y, x]} means "no label", say "ignore": {mask[y, x]} in dataset.json.'
    return (
        f"{below(folder, pair.mask)}: pixel ({y}, {x}) has the value {mask[y, x]} "
        f"(wrong pixels: {int(wrong.sum())}). Expected: {meaning.allowed}. {cause}"
    )


def _nothing_to_find(values: Sequence[NDArray[np.bool_]], meaning: Meaning) -> list[str]:
    ids = meaning.ids[np.any(values, axis=0)]
    if ((ids > 0) & (ids != IGNORE)).any():
        return []
    if (ids == IGNORE).any():
        return [
            "masks: hold only background and 255, which is ignored, so there is no foreground. "
            'If 255 is the foreground, say `foreground` 255, or "foreground": 255 in dataset.json.'
        ]
    return ["masks: all of them are empty; nothing can be measured on them."]
