"""labelme: beside each photo a JSON file of shapes. Polygons, rectangles, circles and masks."""

import base64
import binascii
import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.descriptions import is_name, read_description
from latentseg.datasets.formats.photo_places import PhotoPlaces
from latentseg.datasets.formats.regions import fill, is_degenerate
from latentseg.datasets.groupings import BACKGROUND
from latentseg.datasets.listings import Listing, Pair, below, plain_layout
from latentseg.datasets.mask_values import class_ids, number_classes
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import IGNORE, Pixels, decode_mask, size_of

BACKGROUND_LABEL, IGNORED = "_background_", "__ignore__"  # as labelme's own converters have them
WITHOUT_AREA = ("point", "points", "line", "linestrip")
CORNERS = 64  # of the polygon that stands for a circle
LOOKED_AT = 20  # files; where none of them is of labelme, none is


@dataclass(frozen=True)
class _Shapes:
    """What a file of labelme says.

    Attributes:
        photo: The path of its photo.
        shapes: In order; a later one covers an earlier one.
        size: (height, width) that the photo had, where the file says it.
    """

    photo: str
    shapes: tuple[dict[str, Any], ...]
    size: tuple[Any, Any]


def _find(folder: Path) -> Listing | None:
    """All files of labelme below a folder."""
    if not folder.is_dir():
        return None
    files = [path for path in sorted(folder.rglob("*.json")) if not path.name.startswith(".")]
    if not any(_is_labelme(path) for path in files[:LOOKED_AT]):
        return None
    problems: list[str] = []
    skipped: Counter[str] = Counter()
    found: dict[Path, _Shapes] = {}
    pairs: list[Pair] = []
    for file in files:
        try:
            content = _read(file, skipped)
        except (CorruptFileError, InputError) as error:
            problems.append(str(error))
            continue
        place = PhotoPlaces(folder, (file.parent,)).find(content.photo)
        if isinstance(place, str):
            problems.append(f"{below(folder, file)}: {place}")
        else:
            found[file] = content
            name = file.relative_to(folder).with_suffix("").as_posix()
            pairs.append(Pair(name, place.path, file))
    labels = sorted({shape["label"] for each in found.values() for shape in each.shapes})
    if not labels and problems:
        return Listing(folder.absolute().name, folder, (), tuple(problems))
    names = [BACKGROUND if label == BACKGROUND_LABEL else label for label in labels]
    classes, ids = number_classes([name for name in names if name != IGNORED], folder)
    id_of = dict(zip([label for label in labels if label != IGNORED], ids, strict=True))
    return Listing(
        folder.absolute().name,
        folder,
        tuple(pairs),
        tuple(problems),
        meaning=class_ids(classes),
        facts=read_description(folder).facts,
        notes=tuple(
            f"{n} shapes without an area were left out: {kind}." for kind, n in skipped.items()
        ),
        read_mask=partial(_read_mask, found, {**id_of, IGNORED: IGNORE}),
    )


def _is_labelme(path: Path) -> bool:
    try:
        content = read_json(path)
    except (CorruptFileError, InputError):
        return False
    return isinstance(content, dict) and "shapes" in content and "imagePath" in content


def _read(file: Path, skipped: Counter[str]) -> _Shapes:
    """What a file says; shapes without an area are counted.

    Raises:
        InputError, CorruptFileError: it is no file of labelme, or damaged.
    """
    content = read_json(file)
    shapes = content.get("shapes") if isinstance(content, dict) else None
    if not isinstance(shapes, list) or not isinstance(content.get("imagePath"), str):
        raise CorruptFileError(f"{file}: not a file of labelme; expected imagePath and shapes.")
    kept = []
    for number, shape in enumerate(shapes):
        if not isinstance(shape, dict) or not is_name(shape.get("label")):
            raise CorruptFileError(f"{file}: shape {number}: expected a label.")
        kind = shape.get("shape_type", "polygon")
        if kind in WITHOUT_AREA:
            skipped[str(kind)] += 1
        else:
            kept.append(shape)
    size = content.get("imageHeight"), content.get("imageWidth")
    return _Shapes(content["imagePath"], tuple(kept), size)


def _read_mask(files: Mapping[Path, _Shapes], ids: Mapping[str, int], pair: Pair) -> Pixels:
    size, content = size_of(pair.image), files[pair.mask]
    if None not in content.size and content.size != size:
        raise CorruptFileError(
            f"{pair.mask}: is about a photo of {content.size[0]} x {content.size[1]} pixels, but "
            f"{pair.image.name} has {size[0]} x {size[1]} (height x width)."
        )
    mask = np.zeros(size, np.uint8)
    for number, shape in enumerate(content.shapes):
        try:
            mask[_region(shape, size)] = ids[shape["label"]]
        except CorruptFileError as error:
            raise CorruptFileError(f"{pair.mask}: shape {number}: {error}") from error
    return mask


def _region(shape: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a shape, (H, W)."""
    points = [(x, y) for x, y in _points(shape.get("points"))]
    match shape.get("shape_type", "polygon"), points:
        case "mask", [(left, top), *_]:
            return _pasted(shape.get("mask"), round(left), round(top), size)
        case "rectangle", [(left, top), (right, bottom)]:
            points = [(left, top), (right, top), (right, bottom), (left, bottom)]
        case "circle", [(x, y), (rim_x, rim_y)]:
            radius, turns = math.hypot(rim_x - x, rim_y - y), np.linspace(0, 2 * np.pi, CORNERS)
            points = [(x + radius * math.cos(t), y + radius * math.sin(t)) for t in turns[:-1]]
        case "polygon", _:
            pass
        case kind, _:
            raise CorruptFileError(
                f"{kind!r:.40} of {len(points)} points is no shape that is read."
            )
    corners = [each for point in points for each in point]
    return np.zeros(size, bool) if is_degenerate(corners) else fill([corners], size)


def _points(points: Any) -> Iterator[tuple[float, float]]:
    for point in points if isinstance(points, list) else [None]:
        if not isinstance(point, list) or len(point) != 2:
            raise CorruptFileError(f"point {point!r:.40}: expected x and y.")
        x, y = point
        if not all(type(v) in (int, float) and math.isfinite(v) for v in point):
            raise CorruptFileError(f"point {point!r:.40}: expected two numbers.")
        yield float(x), float(y)


def _pasted(text: Any, left: int, top: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask that is stored as a PNG in base64, with its corner at a place."""
    try:
        content = base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error) as error:
        raise CorruptFileError("mask: not a picture in base64.") from error
    part = decode_mask(content, "mask") > 0
    whole = np.zeros(size, bool)
    bottom, right = top + part.shape[0], left + part.shape[1]
    if min(left, top) < 0 or bottom > size[0] or right > size[1]:
        raise CorruptFileError("mask: lies outside of the image.")
    whole[top:bottom, left:right] = part
    return whole


LAYOUT = plain_layout("labelme", "JSON files with imagePath and shapes", _find)
