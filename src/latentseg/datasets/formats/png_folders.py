"""Photos beside masks as indexed PNG: latentseg's own dataset folder, and that of PASCAL VOC."""

from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.formats.layout import (
    DESCRIPTION,
    Facts,
    Format,
    Record,
    Sample,
    StoredDataset,
    Target,
    check_classes,
    check_size,
    facts_in,
    problems_in,
    read_description,
)
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import write_text
from latentseg.images import IGNORE, SUFFIXES, Pixels, class_colours, read_mask, write_mask

IMAGES, MASKS = "images", "masks"
VOC_IMAGES, VOC_MASKS = "JPEGImages", "SegmentationClass"
LIST = "ImageSets/Segmentation/train.txt"
COLOURS = "labelmap.txt"


def _write(masks: str, target: Target, sample: Sample) -> Record:
    write_mask(target.folder / masks / f"{sample.name}.png", sample.mask)
    return {"name": sample.name}


def read_values(
    values: NDArray[np.int16], files: Sequence[Path], index: int, size: tuple[int, int]
) -> Pixels:
    """The mask in `files[index]` as class ids.

    Args:
        values: (256,): the class id of each value in the file, -1 where it has no meaning.
        files: All mask files.
        index: Which of them.
        size: (height, width) of the photo.

    Raises:
        InputError: the size differs, or a value has no meaning; the first such pixel is named.
    """
    path = files[index]
    stored = check_size(read_mask(path), size, path)
    ids = values[stored]
    if (wrong := ids < 0).any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{path}: pixel ({row}, {column}) has the value {stored[row, column]}, which is no "
            "class of this data set."
        )
    return ids.astype(np.uint8)


def meaning(
    n_classes: int, ignore: int | None = IGNORE, foreground: int | None = None
) -> NDArray[np.int16]:
    """(256,) int16: the class id of each value in a mask file, -1 where it has none."""
    ids = np.full(256, -1, np.int16)
    ids[: n_classes + 1] = np.arange(n_classes + 1)
    if foreground is not None:
        ids[1:] = -1
    if ignore is not None:
        ids[ignore] = IGNORE
    if foreground is not None:
        ids[foreground] = 1
    return ids


def paired(
    folder: Path, images: Path, masks: Path, *, needs_masks: bool
) -> tuple[list[str], list[Path]]:
    """Names and files of the photos that have a mask of the same stem.

    Args:
        folder: For messages.
        images: Folder of the photos.
        masks: Folder of NAME.png.
        needs_masks: Whether each photo must have a mask.

    Raises:
        InputError: photos or masks are alone, or two photos have one name; all are listed.
    """
    problems: list[str] = []
    photos: dict[str, Path] = {}
    for path in sorted(images.rglob("*")):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith("."):
            name = path.relative_to(images).with_suffix("").as_posix()
            if photos.setdefault(name, path) != path:
                problems.append(f"{path}: has the same name as {photos[name].name}.")
    truths = {
        path.relative_to(masks).with_suffix("").as_posix()
        for path in masks.rglob("*.png")
        if not path.name.startswith(".")
    }
    if needs_masks:
        problems += [
            f"{photos[n]}: has no mask {masks.name}/{n}.png." for n in photos.keys() - truths
        ]
    problems += [f"{masks / n}.png: has no image of that name." for n in truths - photos.keys()]
    names = sorted(photos.keys() & truths)
    if not names:
        problems.append(f"{folder}: no photo with a mask.")
    if problems:
        raise problems_in(folder, sorted(problems))
    return names, [photos[name] for name in names]


# latentseg's own


def _is_own(path: Path) -> bool:
    return (path / DESCRIPTION).is_file() and all((path / n).is_dir() for n in (IMAGES, MASKS))


def _read_own(folder: Path) -> StoredDataset:
    description = read_description(folder)
    where = folder / DESCRIPTION
    foreground = description.get("foreground")
    default = None if foreground is None else ["foreground"]
    classes = check_classes(description.get("classes", default), where)
    ignore = description.get("ignore", IGNORE)
    for key, value in (("ignore", ignore), ("foreground", foreground)):
        if value is not None and (type(value) is not int or not 1 <= value <= 255):
            raise CorruptFileError(f"{where}: {key} is {value!r}; expected 1 to 255, or null.")
    if foreground is not None and len(classes) != 1:
        raise CorruptFileError(f"{where}: foreground means one class, but there are {classes}.")
    names, images = paired(folder, folder / IMAGES, folder / MASKS, needs_masks=True)
    files = [folder / MASKS / f"{name}.png" for name in names]
    return StoredDataset(
        folder=folder,
        classes=classes,
        facts=facts_in(description),
        names=tuple(names),
        images=tuple(images),
        read_mask=partial(read_values, meaning(len(classes), ignore, foreground), files),
    )


def _nothing(target: Target, records: Collection[Record]) -> Facts:
    return {}


# PASCAL VOC


def _is_voc(path: Path) -> bool:
    return all((path / name).is_dir() for name in (VOC_IMAGES, VOC_MASKS))


def _read_voc(folder: Path) -> StoredDataset:
    path = folder / COLOURS
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; it names the classes, one in a line.")
    lines = [line.split(":")[0].strip() for line in path.read_text().splitlines()]
    listed = [name for name in lines if name and not name.startswith("#")]
    classes = check_classes(listed[1:], path)
    names, images = paired(folder, folder / VOC_IMAGES, folder / VOC_MASKS, needs_masks=False)
    files = [folder / VOC_MASKS / f"{name}.png" for name in names]
    return StoredDataset(
        folder=folder,
        classes=classes,
        facts=facts_in(read_description(folder)),
        names=tuple(names),
        images=tuple(images),
        read_mask=partial(read_values, meaning(len(classes)), files),
    )


def _finish_voc(target: Target, records: Collection[Record]) -> Facts:
    """The list of photos, and the names and colours of the classes as CVAT has them.

    Raises:
        InputError: a name that this file cannot hold.
    """
    if odd := [n for n in target.classes if ":" in n or n.startswith("#") or n != n.strip()]:
        raise InputError(f"{COLOURS}: cannot hold the class {odd[0]!r}; rename it, or take folder.")
    write_text(target.folder / LIST, "".join(f"{record['name']}\n" for record in records))
    names = ("background", *target.classes)
    rows = [
        f"{name}:{','.join(map(str, colour))}::"
        for name, colour in zip(names, class_colours().tolist(), strict=False)
    ]
    text = "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n"
    write_text(target.folder / COLOURS, text)
    return {}


FOLDER = Format("folder", IMAGES, _is_own, _read_own, partial(_write, MASKS), _nothing)
VOC = Format("voc", VOC_IMAGES, _is_voc, _read_voc, partial(_write, VOC_MASKS), _finish_voc)
