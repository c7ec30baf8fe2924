"""One door to labeled photos: opened when every file is sound, else refused with all problems."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.folder import find_soft, has_soft_labels
from latentseg.datasets.groupings import Grouping, find_grouping
from latentseg.datasets.layouts import find_layout
from latentseg.datasets.listings import Listing, Pair, below, message_below
from latentseg.datasets.mask_values import (
    Meaning,
    class_ids,
    guess_meaning,
    inverted,
    regrouped,
    stated_meaning,
)
from latentseg.datasets.shard_files import check_shards, is_sharded
from latentseg.datasets.stored_pictures import as_asked
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.files import MANIFEST, verify_manifest
from latentseg.images import IGNORE, PLAIN, Pixels, Reading

READING_THREADS = min(8, os.cpu_count() or 1)

HINT_MASKS, HINT_SHARE = 3, 0.9  # fewer masks, or a smaller share of them, tell nothing
SOFT_VALUES, ALMOST_WHITE = 8, 250  # more different values, up to white, come from soft edges

Groups = str | Path | Grouping | Sequence[str | Path | Grouping]


@dataclass(frozen=True)
class RealDataset:
    """Photos with masks.

    `dataset[i]` is (name, image (H, W, 3) uint8, mask (H, W) uint8: 0 background, 1..K classes,
    255 ignored). Where class probabilities were asked for, a mask is (K, H, W) uint8: `to_levels`.

    Attributes:
        name: Shown beside results.
        classes: Names of the classes, without the background.
        pairs: The files.
        crops: Whether the published protocols take the center square of its photos.
        read: Image and mask of a pair.
        folder: Where it lies.
        facts: License, generator, labeler and what else is known of its origin.
        notes: What a user should be told of how it was read.
        copies_photos: Whether each photo is a file of its own, which can be copied as it is.
        asked: What was asked of the reading of pictures and masks beside the defaults.
    """

    name: str
    classes: tuple[str, ...]
    pairs: tuple[Pair, ...]
    crops: bool
    read: Callable[[Pair], tuple[Pixels, Pixels]]
    folder: Path
    facts: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    copies_photos: bool = True
    asked: Mapping[str, Any] = field(default_factory=dict)

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
        """At most `limit` photos, evenly spread over the dataset; all of them if `limit` is None.

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
    reading: Reading = PLAIN,
    binarize: bool = False,
    invert: bool = False,
    soft: bool = False,
    examine: bool = True,
) -> RealDataset:
    """Opens labeled photos in any layout of `layouts.LAYOUTS`, after reading every file once.

    A folder that is as its MANIFEST.json says, and whose masks are explained, is not read before
    it is used. Without dataset.json the masks speak for themselves: only {0, 255} means that 255
    is the foreground; {0, 1, 255} that 255 is ignored.

    Args:
        path: The folder, or a file where the layout is one.
        classes: Names of the classes 1..K, without the background; goes before dataset.json.
        foreground: The value in the mask files that is the only class; goes before dataset.json.
        grouping: Classes to make of those classes: a name of `groupings.GROUPINGS`, or a JSON
            file {"top": ["shirt", "coat"], "background": ["*"]}; or several, one after the other.
        reading: How photos become images where there is a choice.
        binarize: Masks are black and white with soft edges, or were saved as JPEG: more than half
            of white is the foreground.
        invert: The masks show the background: in masks of one class, foreground and background
            change places.
        soft: Give class probabilities in place of masks, if it is a dataset folder that has them.
        examine: Read every file before it is used, to list all problems at once. Without, what is
            wrong with a file is said when it is read.

    Raises:
        InputError: the folder or any file in it is not as it should be; every problem is listed.
        CorruptFileError: files differ from the folder's MANIFEST.json; all are named.
    """
    is_vouched = (Path(path) / MANIFEST).is_file()
    if is_vouched:
        verify_manifest(path)
    listing = as_asked(_find(Path(path), grouping, soft), reading, binarize=binarize)
    dataset, problems = _inspect(
        listing, classes, foreground, examine=examine and not is_vouched, invert=invert
    )
    if problems or dataset is None:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        listed = "\n".join(f"  {problem}" for problem in problems)
        raise InputError(
            f"{path}: {count}:\n{listed}\n"
            f"Mend or remove these files. The list again: latentseg check {path}"
        )
    switches = {"binarize": binarize, "invert": invert}
    switched_on = {name: True for name, is_on in switches.items() if is_on}
    return replace(dataset, asked=reading.chosen | switched_on)


def check_dataset(
    path: Path | str,
    *,
    classes: Sequence[str] | None = None,
    foreground: int | None = None,
    grouping: Groups = (),
    reading: Reading = PLAIN,
    binarize: bool = False,
    invert: bool = False,
) -> list[str]:
    """Every problem of a dataset at once, each with its file name; empty if there is none.

    Found are: missing and unreadable files, files that differ from MANIFEST.json, images without
    mask and the reverse, two files of one name, names that differ only in case, differing sizes,
    masks with colors, values that are no class (the first such pixel is named), and masks without
    any foreground.

    Raises:
        InputError: `path` is not a dataset at all, or the options contradict each other.
    """
    problems = []
    try:
        if (Path(path) / MANIFEST).is_file():
            verify_manifest(path)
    except CorruptFileError as error:
        problems.append(str(error))
    if is_sharded(path):
        return problems + check_shards(path)
    found = _find(Path(path), grouping, soft=False)
    listing = as_asked(found, reading, binarize=binarize)
    return problems + _inspect(listing, classes, foreground, examine=True, invert=invert)[1]


def _find(path: Path, grouping: Groups, soft: bool) -> Listing:
    names = [grouping] if isinstance(grouping, str | Path | Grouping) else grouping
    if soft and not names and has_soft_labels(path):
        return find_soft(path)
    return find_layout(path, [find_grouping(name) for name in names])


def _inspect(
    listing: Listing,
    classes: Sequence[str] | None,
    foreground: int | None,
    *,
    examine: bool,
    invert: bool,
) -> tuple[RealDataset | None, list[str]]:
    meaning = _known_meaning(listing, classes, foreground)
    problems = list(listing.problems)
    if not listing.pairs:
        return None, problems or [f"{listing.folder}: no photo with a mask."]
    files: list[_Examined] = []
    if examine or meaning is None:
        with ThreadPoolExecutor(READING_THREADS) as pool:
            files = list(pool.map(lambda pair: _examine(listing, pair), listing.pairs))
    problems += [problem for file in files for problem in file.problems]
    values = [file.values for file in files if file.values is not None]
    if problems and not values:
        return None, problems
    meaning = meaning or guess_meaning(values)
    if meaning is None:
        return None, [*problems, _unexplained(values)]
    if invert:
        meaning = inverted(meaning)
    for one in listing.groupings:
        meaning = regrouped(meaning, one)
    for pair, file in zip(listing.pairs, files, strict=False):
        if file.values is not None and (meaning.ids[file.values] < 0).any():
            problems.append(_wrong_values(listing, pair, meaning))
    problems += _nothing_to_find(values, meaning)
    borders = [file.border for file in files if file.border is not None]
    return (
        RealDataset(
            listing.name,
            meaning.classes,
            listing.pairs,
            listing.crops,
            partial(_read, listing, meaning),
            listing.folder,
            listing.facts,
            (*listing.notes, *_inverted_hint(borders, meaning)),
            listing.copies_photos,
        ),
        problems,
    )


def _known_meaning(
    listing: Listing, classes: Sequence[str] | None, foreground: int | None
) -> Meaning | None:
    if listing.meaning is None:
        return stated_meaning(listing.folder, classes, foreground)
    if classes is None:
        return listing.meaning
    if len(classes) != len(listing.meaning.classes):
        raise InputError(
            f"{listing.folder}: {listing.name} has {len(listing.meaning.classes)} classes "
            f"({', '.join(listing.meaning.classes)}), but `classes` names {len(classes)}. "
            "Merge or leave out classes with a `grouping`."
        )
    return replace(listing.meaning, classes=class_ids(classes).classes)


def _read(listing: Listing, meaning: Meaning, pair: Pair) -> tuple[Pixels, Pixels]:
    image, values = listing.read_image(pair), listing.read_mask(pair)
    if image.shape[:2] != values.shape[-2:]:
        raise InputError(_other_size(listing, pair, image, values))
    if values.ndim == 3:  # class probabilities
        return image, values
    ids = meaning.ids[values]
    if (ids < 0).any():
        raise InputError(_wrong_values(listing, pair, meaning))
    return image, ids.astype(np.uint8)


@dataclass(frozen=True)
class _Examined:
    problems: tuple[str, ...]
    values: NDArray[np.bool_] | None = None  # (256,): which values occur in the mask
    border: NDArray[np.int64] | None = None  # (256,): how often, in its first and last rows


def _examine(listing: Listing, pair: Pair) -> _Examined:
    image = mask = None
    problems = []
    try:
        image = listing.read_image(pair)
    except LatentsegError as error:
        problems.append(message_below(listing.folder, error))
    try:
        mask = listing.read_mask(pair)
    except LatentsegError as error:
        problems.append(message_below(listing.folder, error))
    if image is not None and mask is not None and image.shape[:2] != mask.shape[-2:]:
        problems.append(_other_size(listing, pair, image, mask))
    if mask is None or mask.ndim == 3:
        return _Examined(tuple(problems))
    border = np.concatenate([mask[0], mask[-1], mask[:, 0], mask[:, -1]])
    return _Examined(
        tuple(problems),
        np.bincount(mask.ravel(), minlength=256) > 0,
        np.bincount(border, minlength=256),
    )


def _other_size(listing: Listing, pair: Pair, image: Pixels, mask: Pixels) -> str:
    return (
        f"{below(listing.folder, pair.mask)}: {mask.shape[-2]} x {mask.shape[-1]} pixels, but its "
        f"image {below(listing.folder, pair.image)} has {image.shape[0]} x {image.shape[1]} "
        "(height x width). They must agree."
    )


def _inverted_hint(borders: Sequence[NDArray[np.int64]], meaning: Meaning) -> list[str]:
    """A note if the only class covers the borders of nearly all masks, as backgrounds do."""
    if len(meaning.classes) != 1 or len(borders) < HINT_MASKS:
        return []
    covered = np.array([each[meaning.ids == 1].sum() / each.sum() for each in borders])
    n_covered = int((covered >= HINT_SHARE).sum())
    if n_covered < HINT_SHARE * len(borders):
        return []
    return [
        f"masks: in {n_covered} of {len(borders)} the {meaning.classes[0]} covers the borders, as "
        "a background does. If they are inverted: `invert`."
    ]


def _unexplained(values: Sequence[NDArray[np.bool_]]) -> str:
    every = np.flatnonzero(np.any(values, axis=0))
    shown = ", ".join(map(str, every[:12])) + (", ..." if len(every) > 12 else "")
    if len(every) > SOFT_VALUES and every[0] == 0 and every[-1] >= ALMOST_WHITE:
        return (
            f"masks: hold the values {shown}: black and white with soft edges, or saved as JPEG. "
            "`binarize` takes what is brighter than half of white as the foreground. If they are "
            "class ids, name the classes 1, 2, ... with `classes`."
        )
    return (
        f"masks: hold the values {shown}, and nothing says what they mean. Name the classes "
        '1, 2, ... with `classes`, or in dataset.json: {"classes": ["A", "B"], "ignore": 255}.'
    )


def _wrong_values(listing: Listing, pair: Pair, meaning: Meaning) -> str:
    mask = listing.read_mask(pair)
    wrong = meaning.ids[mask] < 0
    y, x = np.argwhere(wrong)[0]
    if listing.meaning is not None:
        cause = "Mend the mask."
    elif len(np.unique(mask[wrong])) > 3:
        cause = "So many values come from soft edges or from JPEG: `binarize` cuts them at half."
    else:
        cause = f'If {mask[y, x]} means "no label", say "ignore": {mask[y, x]} in dataset.json.'
    return (
        f"{below(listing.folder, pair.mask)}: pixel ({y}, {x}) has the value {mask[y, x]} "
        f"(wrong pixels: {int(wrong.sum())}). Expected: {meaning.allowed}. {cause}"
    )


def _nothing_to_find(values: Sequence[NDArray[np.bool_]], meaning: Meaning) -> list[str]:
    if not values:
        return []
    ids = meaning.ids[np.any(values, axis=0)]
    if ((ids > 0) & (ids != IGNORE)).any():
        return []
    if (ids == IGNORE).any():
        return [
            "masks: hold only background and 255, which is ignored, so there is no foreground. "
            'If 255 is the foreground, say `foreground` 255, or "foreground": 255 in dataset.json.'
        ]
    return ["masks: all of them are empty; nothing can be measured on them."]
