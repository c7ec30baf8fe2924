"""YOLO-seg: one line of text for each connected part, a polygon in shares of width and height."""

import json
import math
from collections.abc import Collection, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import contourpy
import numpy as np
import yaml
from numpy.typing import NDArray

from latentseg.datasets.formats.coco import fill
from latentseg.datasets.formats.layout import (
    Facts,
    Format,
    Record,
    Sample,
    StoredDataset,
    Target,
    check_classes,
    classes_in,
    facts_in,
    is_inside,
    problems_in,
    read_description,
)
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import write_text
from latentseg.images import IGNORE, SUFFIXES, Pixels

DATA = "data.yaml"
IMAGES, LABELS = "images", "labels"
PARTS = ("train", "val", "test")
LEAST_IOU = 0.99
# Where the outline lies between the centres of the last pixel inside (1) and the first outside (0):
# just within the last pixel. So programs that round its points down to whole pixels and draw the
# outline, too (OpenCV's fillPoly), get the same mask as those that ask which centres lie inside.
LEVEL = 0.55
DIGITS = 6
TOLERANCE = 0.01  # how far outside of [0, 1] a corner may lie
MAX_YAML_BYTES = 1_000_000

Ring = NDArray[np.float64]


def _is_in(path: Path) -> bool:
    return (path / DATA).is_file()


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


def polygons(region: NDArray[np.bool_]) -> list[Ring]:
    """Each connected part of a region (H, W) as one closed polygon, (corners, 2) of x, y in pixels.

    All sides are upright or level and lie within pixels of the region, and so do points in between,
    which some readers add. A hole is joined to the ring around it by a cut of no width. The point
    (0, 0) is the corner of the image.
    """
    # Marching squares: a point for each side of a pixel on the outline, holes with their ring.
    outline = contourpy.contour_generator(
        z=np.pad(region.astype(np.float32), 1), fill_type=contourpy.FillType.OuterOffset
    )
    found: Any = outline.filled(LEVEL, 2.0)
    points, offsets = found
    return [
        _without_straight(_squared(_joined([ring[a : b - 1] - 0.5 for a, b in pairwise(at)])))
        for ring, at in zip(points, offsets, strict=True)
    ]


def _joined(rings: list[Ring]) -> Ring:
    """The outer ring and its holes as one ring: from the left end of a hole straight to the left.

    What the cut meets first is the outer ring, or a hole further to the left, which is joined
    already.
    """
    joined = rings[0]
    for hole in sorted(rings[1:], key=lambda ring: ring[:, 0].min()):
        hole = np.roll(hole, -int(hole[:, 0].argmin()), axis=0)
        x, y = hole[0]
        is_left = (np.abs(joined[:, 1] - y) < 0.01) & (joined[:, 0] < x)
        at = int(np.where(is_left, joined[:, 0], -np.inf).argmax())
        joined = np.concatenate([joined[: at + 1], hole, hole[:1], joined[at:]])
    return joined


def _squared(ring: Ring) -> Ring:
    """Puts a corner where the outline turns: marching squares cuts corners off."""
    after = np.roll(ring, -1, axis=0)
    is_upright = np.abs(ring[:, 1] % 1 - 0.5) < 0.01  # the middle of a pixel's left or right side
    corner = np.where(is_upright[:, None], [1, 0], [0, 1]) * ring
    corner += np.where(is_upright[:, None], [0, 1], [1, 0]) * after
    return np.stack([ring, corner], axis=1).reshape(-1, 2)


def _without_straight(ring: Ring) -> Ring:
    """Leaves out points between their neighbours on a straight line, and repeated ones."""
    ring = ring[np.abs(ring - np.roll(ring, 1, axis=0)).max(axis=1) > 1e-3]
    steps = np.diff(np.concatenate([ring[-1:], ring, ring[:1]]), axis=0)
    before, after = steps[:-1], steps[1:]
    turn = before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]
    is_ahead = (before * after).sum(axis=1) > 0
    return ring[~((np.abs(turn) < 1e-3) & is_ahead)]


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


def _read(folder: Path) -> StoredDataset:
    """All photos that data.yaml names. Where polygons overlap the later line holds.

    A photo without a label file has no object, as these programs have it.
    """
    data = _data(folder / DATA)
    names = data["names"]
    if isinstance(names, dict):
        names = [names.get(index) for index in range(len(names))]
    problems: list[str] = []
    places = dict.fromkeys(
        place for part in PARTS if data.get(part) for place in _places(folder, data, part, problems)
    )
    images = sorted(
        path
        for place in places
        for path in place.rglob("*")
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    )
    if not images and not problems:
        problems.append(
            f"{DATA}: no photos in {', '.join(map(str, places)) or 'train, val, test'}."
        )
    if problems:
        raise problems_in(folder, problems)
    classes = check_classes(names, folder / DATA)
    return StoredDataset(
        folder=folder,
        classes=classes,
        facts=facts_in(read_description(folder)),
        names=tuple(_name(path, folder, places) for path in images),
        images=tuple(images),
        read_mask=partial(_read_mask, [_label_file(path, folder) for path in images], len(classes)),
    )


def _data(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_YAML_BYTES:
        raise CorruptFileError(f"{path}: more than {MAX_YAML_BYTES} bytes; not a data.yaml.")
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not valid YAML ({error}).") from error
    if not isinstance(data, dict) or "names" not in data:
        raise CorruptFileError(f"{path}: expected train, val and names.")
    return data


def _places(folder: Path, data: dict[str, Any], part: str, problems: list[str]) -> list[Path]:
    """The folders of a part. Roboflow writes ../train/images and means train/images."""
    named = data[part] if isinstance(data[part], list) else [data[part]]
    found = []
    for name in named:
        inner = name.removeprefix("../") if isinstance(name, str) else ""
        places = [folder / str(data.get("path", "")) / inner, folder / inner]
        if not is_inside(inner):
            problems.append(f"{DATA}: {part} {name!r} is no folder inside of this one.")
            continue
        is_own = is_inside(str(data.get("path", ".")))
        place = next((p for p in places[0 if is_own else 1 :] if p.is_dir()), None)
        if place is not None:
            found.append(place)
        elif part != "test":  # often named, seldom there
            problems.append(f"{DATA}: {part} {name!r}: there is no such folder.")
    return found


def _name(image: Path, folder: Path, places: Collection[Path]) -> str:
    root = next(iter(places)) if len(places) == 1 else folder
    return image.relative_to(root).with_suffix("").as_posix()


def _label_file(image: Path, folder: Path) -> Path:
    """The last "images" in the path becomes "labels"."""
    parts = list(image.relative_to(folder).with_suffix(".txt").parts)
    if IMAGES in parts:
        parts[len(parts) - 1 - parts[::-1].index(IMAGES)] = LABELS
    return folder.joinpath(*parts)


def _read_mask(files: list[Path], n_classes: int, index: int, size: tuple[int, int]) -> Pixels:
    path = files[index]
    mask = np.zeros(size, np.uint8)
    if not path.is_file():
        return mask
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path}: not a text file.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            try:
                class_index, corners = _parse(line, n_classes)
                mask[fill([_in_pixels(corners, size)], size)] = class_index + 1
            except CorruptFileError as error:
                raise CorruptFileError(f"{path}: line {number}: {error}") from error
    return mask


def _parse(line: str, n_classes: int) -> tuple[int, Ring]:
    first, *rest = line.split()
    try:
        class_index, values = int(first), [float(each) for each in rest]
    except ValueError as error:
        raise CorruptFileError(f"{line[:40]!r}: expected CLASS X1 Y1 X2 Y2 X3 Y3 ...") from error
    if not 0 <= class_index < n_classes:
        raise CorruptFileError(f"class {class_index}; data.yaml names {n_classes}, from 0.")
    if len(values) == 4:
        raise CorruptFileError("four numbers are a box; expected the polygons of YOLO-seg.")
    if len(values) < 6 or len(values) % 2:
        raise CorruptFileError(f"{len(values)} numbers; expected at least three pairs of x and y.")
    if not all(math.isfinite(v) and -TOLERANCE <= v <= 1 + TOLERANCE for v in values):
        raise CorruptFileError("a corner outside of the image; expected shares from 0 to 1.")
    return class_index, np.clip(values, 0, 1).reshape(-1, 2)


FORMAT = Format("yolo", IMAGES, _is_in, _read, _write, _finish)
