"""Masks that another tool made, measured like the answers of a segmenter."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from latentseg.datasets.formats.coco import decode
from latentseg.datasets.listings import Pair
from latentseg.datasets.mask_values import Meaning, class_ids, guess_meaning, stated_meaning
from latentseg.datasets.real import RealDataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.evaluation.measuring import Scores
from latentseg.files import read_json
from latentseg.images import IGNORE, SUFFIXES, Pixels, cover, read_mask

INSTANCES, INVERSIONS, WEIGHTS = "instances.json", "inversions.json", "model.safetensors"
MARK = "_mask"  # of `predict` and `invert`, which write other pictures beside the masks
SHOWN = 8


def holds_masks(path: Path | str) -> bool:
    """Whether `path` is a folder of masks or a COCO file, and not the folder of a segmenter."""
    path = Path(path)
    if path.is_file():
        return path.suffix == ".json"
    is_segmenter = (path / WEIGHTS).is_file() or (path / "model").is_dir()
    return path.is_dir() and not is_segmenter and bool(_listed(path))


@dataclass(frozen=True)
class StoredMasks:
    """Masks of the photos of a data set, which stand in for a segmenter.

    Attributes:
        classes: Names of the classes, without the background.
        read: The mask (H, W) of class ids of a photo, by the photo's name.
    """

    classes: tuple[str, ...]
    read: Callable[[str], Pixels]

    def scores_by_name(self, name: str) -> Scores:
        """(K + 1, H, W): 1 for the class of each pixel, 0 for all others."""
        ids = np.arange(len(self.classes) + 1, dtype=np.uint8)
        return (self.read(name) == ids[:, None, None]).astype(np.float32)


@dataclass(frozen=True)
class MatchedMasks:
    """Masks, and the part of a data set that they are of.

    Attributes:
        masks: The scorer.
        dataset: The photos that have a mask.
        missing: Names of the photos that have none.
        unused: Names of the masks that are of no photo.
    """

    masks: StoredMasks
    dataset: RealDataset
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def note(self) -> str:
        """What was left out, in words; "" if nothing was."""
        parts = []
        if self.missing:
            parts.append(f"{len(self.missing)} photos have no mask: {_some(self.missing)}.")
        if self.unused:
            parts.append(f"{len(self.unused)} masks are of no photo: {_some(self.unused)}.")
        return " ".join(parts)


def open_masks(path: Path | str, dataset: RealDataset) -> MatchedMasks:
    """Opens the masks that a tool made of the photos of `dataset`.

    A mask NAME.png or NAME_mask.png belongs to the photo NAME; `instances.json` or another COCO
    file holds the masks of all its images. Class names are those of a dataset.json beside the
    masks, or else those of `dataset`. Only {0, 255} means that 255 is the foreground; beside other
    ids 255 (not painted) counts as background.

    Masks of `latentseg invert` have the generator's size: photos and truth are fitted to it, as
    the photos were when they were inverted. All other masks have the size of their photo.

    Args:
        path: A folder of masks, or one that holds masks/ or instances.json; or a COCO file.
        dataset: Photos with true masks.

    Raises:
        InputError: no mask belongs to a photo, a mask cannot be read, has another size than its
            photo, or holds values that are no class.
        CorruptFileError: a file is damaged.
    """
    path = Path(path)
    listed = _listed(path)
    names = [pair.name for pair in dataset.pairs]
    mask_of = _matches(names, listed)
    missing = tuple(name for name in names if name not in mask_of)
    if not mask_of:
        raise InputError(
            f"{path}: none of {len(listed)} masks ({_some(tuple(listed))}) is of one of the "
            f"{len(dataset)} photos ({_some(missing)}). A mask has the name of its photo: "
            "NAME.png or NAME_mask.png."
        )
    unused = tuple(sorted(listed.keys() - mask_of.values()))
    kept = tuple(pair for pair in dataset.pairs if pair.name in mask_of)
    matched = replace(dataset, pairs=kept)
    readers = {name: listed[mask] for name, mask in mask_of.items()}
    meaning = _meaning(path, readers, dataset.classes)
    read = partial(_read, readers, meaning)
    if (path / INVERSIONS).is_file():
        matched = replace(matched, read=partial(_fitted, dataset.read, read))
    else:
        _check_sizes(matched, read)
    return MatchedMasks(StoredMasks(meaning.classes, read), matched, missing, unused)


Readers = Mapping[str, Callable[[], Pixels]]


def _listed(path: Path) -> Readers:
    """How to read each mask, by its name: its path below the folder, without suffix and mark."""
    if path.is_file():
        return _in_coco(path)
    if (path / INSTANCES).is_file():
        return _in_coco(path / INSTANCES)
    folder = path / "masks" if (path / "masks").is_dir() else path
    files = sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    marked = [file for file in files if file.stem.endswith(MARK)]
    return {
        file.relative_to(folder).with_suffix("").as_posix().removesuffix(MARK): partial(
            read_mask, file
        )
        for file in marked or files
    }


def _in_coco(path: Path) -> Readers:
    """The masks in a COCO file: the category of each pixel, the later annotation on top."""
    content = read_json(path)
    try:
        numbers = sorted({int(each["id"]) for each in content["categories"]})
        found: dict[int, list[tuple[int, Any]]] = {int(i["id"]): [] for i in content["images"]}
        for each in content["annotations"]:
            number = numbers.index(int(each["category_id"])) + 1
            found[int(each["image_id"])].append((number, each["segmentation"]))
        return {
            Path(str(image["file_name"])).with_suffix("").as_posix(): partial(
                _drawn, path, (int(image["height"]), int(image["width"])), found[int(image["id"])]
            )
            for image in content["images"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{path}: this is not a COCO file with masks ({error}).") from error


def _drawn(path: Path, size: tuple[int, int], regions: list[tuple[int, Any]]) -> Pixels:
    mask = np.zeros(size, np.uint8)
    for number, segmentation in regions:
        try:
            mask[decode(segmentation, size)] = number
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}: {error}") from error
    return mask


def _matches(photos: Sequence[str], masks: Collection[str]) -> dict[str, str]:
    """The mask of each photo: that of the same path, else that of the same stem.

    A stem tells only where it occurs once among the photos and once among the masks.
    """
    photo_stems, mask_stems = _by_stem(photos), _by_stem(masks)
    matches = {}
    for photo in photos:
        stem = PurePosixPath(photo).name
        if photo in masks:
            matches[photo] = photo
        elif len(photo_stems[stem]) == 1 and len(mask_stems.get(stem, ())) == 1:
            matches[photo] = mask_stems[stem][0]
    return matches


def _by_stem(names: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(PurePosixPath(name).name, []).append(name)
    return found


def _meaning(path: Path, readers: Readers, classes: tuple[str, ...]) -> Meaning:
    """What the values in the masks mean."""
    values = [np.bincount(read().ravel(), minlength=256) > 0 for read in readers.values()]
    stated = None if path.is_file() else stated_meaning(path, None, None)
    meaning = stated or (guess_meaning(values) if len(classes) == 1 else None)
    meaning = meaning or class_ids(classes)
    for name, seen in zip(readers, values, strict=True):
        if wrong := [value for value in np.flatnonzero(seen) if meaning.ids[value] < 0]:
            raise InputError(
                f"{path}: the mask of {name} holds the value {wrong[0]}; expected "
                f"{meaning.allowed}."
            )
    return meaning if stated else replace(meaning, classes=classes[: len(meaning.classes)])


def _read(readers: Readers, meaning: Meaning, name: str) -> Pixels:
    ids = meaning.ids[readers[name]()]
    return np.where(ids == IGNORE, 0, ids).astype(np.uint8)


def _fitted(
    read: Callable[[Pair], tuple[Pixels, Pixels]], mask_of: Callable[[str], Pixels], pair: Pair
) -> tuple[Pixels, Pixels]:
    """Photo and truth, scaled to cover the size of the mask, and cut at the center."""
    height, width = mask_of(pair.name).shape
    image, truth = read(pair)
    return cover(image, (height, width)), cover(truth, (height, width))


def _check_sizes(dataset: RealDataset, read: Callable[[str], Pixels]) -> None:
    for name, _, truth in dataset:
        found = read(name).shape
        if found != truth.shape:
            raise InputError(
                f"{name}: its mask has {found[0]} x {found[1]} pixels, but the photo has "
                f"{truth.shape[0]} x {truth.shape[1]} (height x width). They must agree; only in "
                "a folder of `latentseg invert` the masks have the generator's size."
            )


def _some(names: tuple[str, ...]) -> str:
    return ", ".join(names[:SHOWN]) + (", ..." if len(names) > SHOWN else "")
