"""YOLO-seg: one line of text for each connected part, a polygon in shares of width and height."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from latentseg.datasets.descriptions import Facts, read_description
from latentseg.datasets.formats.polygons import Ring, polygons
from latentseg.datasets.formats.regions import fill, is_degenerate
from latentseg.datasets.formats.writing import Format, Record, Sample, Target, classes_in
from latentseg.datasets.listings import (
    Listing,
    Pair,
    below,
    is_inside,
    plain_layout,
    problems_in,
)
from latentseg.datasets.mask_values import class_ids, number_classes
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_text, read_yaml, write_text
from latentseg.images import IGNORE, Pixels, is_picture, name_of, size_of

DATA = "data.yaml"
IMAGES, LABELS = "images", "labels"
PARTS = ("train", "val", "test")
LIST_SUFFIX = ".txt"
LEAST_IOU = 0.99
DIGITS = 6
TOLERANCE = 0.01  # how far outside of [0, 1] a corner may lie


# Writing


def _write(target: Target, sample: Sample) -> Record:
    """labels/NAME.txt; its record tells what is lost: the IoU of each class, ignored pixels."""
    size = sample.mask.shape
    lines, kept = [], {}
    for k in classes_in(sample.mask):
        region = sample.mask == k
        corners = [polygon / size[::-1] for polygon in polygons(region)]
        lines += [_line(k - 1, each) for each in corners]
        again = fill([_in_pixels(each.round(DIGITS), size) for each in corners], size)
        kept[k] = float((region & again).sum() / (region | again).sum())
    write_text(target.folder / LABELS / f"{sample.name}.txt", "".join(lines))
    return {"name": sample.name, "iou": kept, "ignored": int((sample.mask == IGNORE).sum())}


def _line(class_index: int, corners: Ring) -> str:
    return f"{class_index} {' '.join(f'{v:.{DIGITS}f}' for v in corners.ravel())}\n"


def _in_pixels(corners: Ring, size: tuple[int, ...]) -> list[float]:
    return (corners * size[::-1]).ravel().tolist()


def _finish(target: Target, records: Collection[Record]) -> Facts:
    """data.yaml, and what was lost.

    Raises:
        InputError: more was lost than `target.lossy` allows; the masks are named.
    """
    ious = [iou for record in records for iou in record["iou"].values()]
    loss = {
        "iou_mean": float(np.mean(ious)) if ious else 1.0,
        "iou_worst": min(ious, default=1.0),
        "masks_with_ignored_pixels": sum(record["ignored"] > 0 for record in records),
    }
    problems = [problem for record in records for problem in _losses(record, target.classes)]
    if problems and not target.lossy:
        raise InputError(
            f"{problems_in(target.folder, problems)}\nThe polygons of YOLO cannot hold these "
            f"masks. IoU of what they hold: mean {loss['iou_mean']:.4f}, worst "
            f"{loss['iou_worst']:.4f}. Accept this with `lossy`; coco, folder and hf are exact."
        )
    lines = [
        *(f"# {key}: {json.dumps(value)}" for key, value in target.facts.items()),
        "# Nothing is held out: val names the same photos, as readers ask for both.",
        f"train: {IMAGES}",
        f"val: {IMAGES}",
        "names:",
        *(f"  {index}: {json.dumps(name)}" for index, name in enumerate(target.classes)),
    ]
    write_text(target.folder / DATA, "\n".join(lines) + "\n")
    return {"loss": loss}


def _losses(record: Record, classes: tuple[str, ...]) -> Iterator[str]:
    for k, iou in record["iou"].items():
        if iou < LEAST_IOU:
            yield f"{record['name']}: IoU {iou:.4f} of {classes[int(k) - 1]} after a round trip."
    if record["ignored"]:
        yield f"{record['name']}: {record['ignored']} ignored pixels would become background."


# Reading


@dataclass(frozen=True)
class _Labels:
    """What the label files mean."""

    files: Mapping[Path, Path]  # of each photo
    ids: tuple[int, ...]  # the class id of each number in them


def _find(folder: Path) -> Listing | None:
    """All photos that data.yaml names. Where polygons overlap the later line holds.

    A photo without a label file has no object, as these programs have it. What only boxes cover is
    ignored: there is an object in it, but nobody knows where.
    """
    file = _data_file(folder)
    if file is None:
        return None
    data = read_yaml(file)
    names = data["names"]
    if isinstance(names, dict):
        names = [names.get(index) for index in range(len(names))]
    if not isinstance(names, list):
        raise CorruptFileError(f"{file}: names is {names!r:.80}; expected a list of names.")
    classes, ids = number_classes(names, file)
    problems: list[str] = []
    root = data.get("path", "")
    root = root if isinstance(root, str) and is_inside(root or ".") else ""
    places: dict[Path, None] = {}
    images: dict[Path, None] = {}
    for part in PARTS:
        for name in _named(data.get(part)):
            found = _photos_in(folder, root, part, name, problems)
            places |= dict.fromkeys(found.places)
            images |= dict.fromkeys(found.images)
    if not images and not problems:
        shown = ", ".join(below(folder, place) for place in places) or ", ".join(PARTS)
        problems.append(f"{file.name}: no photos in {shown}.")
    files = {path: _label_file(path, folder) for path in sorted(images)}
    kinds = [_kinds_in(each) for each in files.values()]
    if sum(kind.boxes for kind in kinds) and not any(kind.polygons for kind in kinds):
        problems.append(
            f"{file.name}: {LABELS} hold {sum(kind.boxes for kind in kinds)} boxes and no polygon. "
            "Masks cannot be made of boxes; export this dataset for segmentation."
        )
    return Listing(
        folder.absolute().name,
        folder,
        tuple(Pair(_name(path, folder, places), path, files[path]) for path in files),
        tuple(problems),
        meaning=class_ids(classes),
        facts=read_description(folder).facts,
        notes=_notes(kinds),
        read_mask=partial(_read_mask, _Labels(files, tuple(ids))),
    )


def _data_file(folder: Path) -> Path | None:
    """data.yaml, or the one YAML of any name that names classes and photos.

    Raises:
        InputError: there are several.
        CorruptFileError: data.yaml is damaged, or names nothing.
    """
    if not folder.is_dir():
        return None
    if (folder / DATA).is_file():
        if not _names_photos(read_yaml(folder / DATA)):
            raise CorruptFileError(f"{folder / DATA}: expected train, val and names.")
        return folder / DATA
    found = []
    for path in sorted([*folder.glob("*.yaml"), *folder.glob("*.yml")]):
        try:
            if not path.name.startswith(".") and _names_photos(read_yaml(path)):
                found.append(path)
        except (CorruptFileError, InputError):
            continue  # of another program
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder}: several YOLO files: {names}. Call the right one {DATA}.")
    return found[0] if found else None


def _names_photos(data: Any) -> bool:
    return isinstance(data, dict) and "names" in data and any(part in data for part in PARTS)


def _named(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return value if isinstance(value, list) else [value]


@dataclass(frozen=True)
class _Found:
    places: tuple[Path, ...]
    images: tuple[Path, ...]


def _photos_in(folder: Path, root: str, part: str, name: Any, problems: list[str]) -> _Found:
    """The photos of a part: in a folder, or in a list. Roboflow writes ../train/images."""
    inner = name.removeprefix("../") if isinstance(name, str) else ""
    if not is_inside(inner):
        problems.append(f"{DATA}: {part} {name!r:.80} is no place inside of this folder.")
        return _Found((), ())
    for place in (folder / root / inner, folder / inner):
        if place.is_dir():
            return _Found((place,), tuple(path for path in place.rglob("*") if is_picture(path)))
        if place.is_file() and place.suffix == LIST_SUFFIX:
            images = _listed(folder, place, problems)
            return _Found(tuple({path.parent for path in images}), images)
    if part != "test":  # often named, seldom there
        problems.append(f"{DATA}: {part} {name!r}: there is no such folder or list.")
    return _Found((), ())


def _listed(folder: Path, file: Path, problems: list[str]) -> tuple[Path, ...]:
    """The photos in a list, whose paths go out from its folder or from a folder above."""
    found = []
    for line in read_text(file).splitlines():
        name = line.strip().replace("\\", "/").removeprefix("./")
        if not name:
            continue
        # CVAT and Darknet put the name of a folder before it that the export has not.
        inner = name.partition("/")[2]
        tried = [(place, each) for place in (file.parent, folder) for each in (name, inner)]
        paths = (place / each for place, each in tried if is_inside(each))
        path = next((path for path in paths if path.is_file()), None)
        if path is None:
            problems.append(f"{below(folder, file)}: {name[:80]} is listed, but missing.")
        else:
            found.append(path)
    return tuple(found)


def _name(image: Path, folder: Path, places: Collection[Path]) -> str:
    root = next(iter(places)) if len(places) == 1 else folder
    return name_of(image.relative_to(root))


def _label_file(image: Path, folder: Path) -> Path:
    """The last "images" in the path becomes "labels"; without one the file lies beside."""
    parts = list(image.relative_to(folder).with_suffix(".txt").parts)
    if IMAGES in parts:
        parts[len(parts) - 1 - parts[::-1].index(IMAGES)] = LABELS
    return folder.joinpath(*parts)


@dataclass(frozen=True)
class _Kinds:
    """How many lines of a label file are of which kind."""

    polygons: int = 0
    boxes: int = 0
    degenerate: int = 0


def _kinds_in(path: Path) -> _Kinds:
    if not path.is_file():
        return _Kinds()
    try:
        counts = [len(line.split()) - 1 for line in read_text(path).splitlines() if line.strip()]
    except (CorruptFileError, InputError):
        return _Kinds()  # said when the mask is read
    return _Kinds(
        sum(count >= 6 for count in counts),
        counts.count(4),
        counts.count(0) + counts.count(2),
    )


def _notes(kinds: Collection[_Kinds]) -> tuple[str, ...]:
    boxes, degenerate = (sum(getattr(k, name) for k in kinds) for name in ("boxes", "degenerate"))
    notes = []
    if boxes:
        notes.append(f"{LABELS}: {boxes} boxes without a mask: what they cover is ignored.")
    if degenerate:
        notes.append(f"{LABELS}: {degenerate} polygons of fewer than three corners were left out.")
    return tuple(notes)


def _read_mask(labels: _Labels, pair: Pair) -> Pixels:
    path, size = labels.files[pair.image], size_of(pair.image)
    mask, boxed = np.zeros(size, np.uint8), np.zeros(size, bool)
    if not path.is_file():
        return mask
    is_labeled = np.zeros(size, bool)
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            index, values = _parse(line, len(labels.ids))
            corners = _in_pixels(values, size)
            if len(values) == 2:
                boxed |= fill([_box(corners)], size)
            elif not is_degenerate(corners):
                region = fill([corners], size)
                mask[region], is_labeled = labels.ids[index], is_labeled | region
        except CorruptFileError as error:
            raise CorruptFileError(f"{path}: line {number}: {error}") from error
    mask[boxed & ~is_labeled] = IGNORE
    return mask


def _parse(line: str, n_classes: int) -> tuple[int, Ring]:
    """The class and the corners (n, 2) of a line; two for a box: its center and its size."""
    first, *rest = line.split()
    try:
        class_index, values = int(first), [float(each) for each in rest]
    except ValueError as error:
        raise CorruptFileError(f"{line[:40]!r}: expected CLASS X1 Y1 X2 Y2 X3 Y3 ...") from error
    if not 0 <= class_index < n_classes:
        raise CorruptFileError(f"class {class_index}; data.yaml names {n_classes}, from 0.")
    if len(values) % 2:
        raise CorruptFileError(f"{len(values)} numbers; expected at least three pairs of x and y.")
    if not all(math.isfinite(v) and -TOLERANCE <= v <= 1 + TOLERANCE for v in values):
        raise CorruptFileError("a corner outside of the image; expected shares from 0 to 1.")
    return class_index, np.clip(values, 0, 1).reshape(-1, 2)


def _box(corners: list[float]) -> list[float]:
    x, y, width, height = corners
    left, right, top, bottom = x - width / 2, x + width / 2, y - height / 2, y + height / 2
    return [left, top, right, top, right, bottom, left, bottom]


LAYOUT = plain_layout(
    "YOLO-seg", "data.yaml, or another YAML file with names and train, val or test", _find
)
FORMAT = Format("yolo", IMAGES, _write, _finish)
