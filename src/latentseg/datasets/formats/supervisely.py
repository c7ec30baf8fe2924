"""Supervisely: meta.json, and in each dataset photos in img/ with a JSON file each in ann/."""

import base64
import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.descriptions import is_name, read_description
from latentseg.datasets.formats.regions import fill, is_degenerate
from latentseg.datasets.listings import Listing, Pair, below, plain_layout
from latentseg.datasets.mask_values import class_ids, number_classes
from latentseg.errors import CorruptFileError
from latentseg.files import read_json
from latentseg.images import MAX_PIXELS, Pixels, is_picture, name_of, read_cutout, size_of

META, PHOTOS, ANNOTATIONS = "meta.json", "img", "ann"
WITHOUT_AREA = ("point", "line", "graph", "cuboid", "cuboid_2d")
BACKGROUND_TITLES = ("bg", "background", "neutral")  # as its own templates call it


@dataclass(frozen=True)
class _Figure:
    """An object of an annotation: the name of its class, and what its region is read from."""

    title: str
    content: Mapping[str, Any]


def _find(folder: Path) -> Listing | None:
    """A project, or one dataset of it beside which meta.json lies."""
    meta = next((p for p in (folder / META, folder.parent / META) if p.is_file()), None)
    if meta is None or not folder.is_dir():
        return None
    places = [p for p in (folder, *_inside(folder)) if (p / PHOTOS).is_dir()]
    places = [place for place in places if (place / ANNOTATIONS).is_dir()]
    if not places:
        return None
    titles = _titles(meta)
    classes, ids = number_classes(
        ["background" if title.lower() in BACKGROUND_TITLES else title for title in titles], meta
    )
    problems: list[str] = []
    skipped: Counter[str] = Counter()
    figures: dict[Path, tuple[_Figure, ...]] = {}
    pairs: list[Pair] = []
    for place in places:
        photos = sorted(path for path in (place / PHOTOS).iterdir() if is_picture(path))
        for photo in photos:
            file = place / ANNOTATIONS / f"{photo.name}.json"
            if not file.is_file():
                problems.append(f"{below(folder, photo)}: has no {below(folder, file)}.")
                continue
            try:
                figures[file] = _read(file, titles, skipped)
            except CorruptFileError as error:
                problems.append(str(error))
                continue
            prefix = "" if place == folder else f"{place.relative_to(folder).as_posix()}/"
            pairs.append(Pair(prefix + name_of(Path(photo.name)), photo, file))
    return Listing(
        folder.absolute().name,
        folder,
        tuple(pairs),
        tuple(problems),
        meaning=class_ids(classes),
        facts=read_description(folder).facts,
        notes=tuple(
            f"{n} figures without an area were left out: {kind}." for kind, n in skipped.items()
        ),
        read_mask=partial(_read_mask, figures, dict(zip(titles, ids, strict=True))),
    )


def _inside(folder: Path) -> list[Path]:
    """The datasets of a project, at any depth: datasets may lie in datasets."""
    return sorted(p.parent for p in folder.rglob(ANNOTATIONS) if p.is_dir() and p.parent != folder)


def _titles(meta: Path) -> list[str]:
    content = read_json(meta)
    match content:
        case {"classes": [_, *_] as listed} if all(isinstance(each, dict) for each in listed):
            titles = [each.get("title") for each in listed]
        case _:
            titles = []
    if not titles or not all(map(is_name, titles)):
        raise CorruptFileError(f"{meta}: expected classes with a title each.")
    return [str(title) for title in titles]


def _read(file: Path, titles: list[str], skipped: Counter[str]) -> tuple[_Figure, ...]:
    """The figures in their order; those without an area are counted.

    Raises:
        CorruptFileError: it is no annotation of this project.
    """
    content = read_json(file)
    objects = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(objects, list):
        raise CorruptFileError(f"{file}: not an annotation of Supervisely; expected objects.")
    figures = []
    for number, each in enumerate(objects):
        title = each.get("classTitle") if isinstance(each, dict) else None
        if title not in titles:
            raise CorruptFileError(f"{file}: object {number}: {title!r:.80} is no class of {META}.")
        if each.get("geometryType") in WITHOUT_AREA:
            skipped[each["geometryType"]] += 1
        else:
            figures.append(_Figure(title, each))
    return tuple(figures)


def _read_mask(
    figures: Mapping[Path, tuple[_Figure, ...]], ids: Mapping[str, int], pair: Pair
) -> Pixels:
    """The figures of a photo, a later one over an earlier one."""
    mask = np.zeros(size_of(pair.image), np.uint8)
    for number, figure in enumerate(figures[pair.mask]):
        try:
            mask[_region(figure.content, mask.shape[:2])] = ids[figure.title]
        except CorruptFileError as error:
            raise CorruptFileError(f"{pair.mask}: object {number}: {error}") from error
    return mask


def _region(figure: Mapping[str, Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """The pixels of a figure, (H, W)."""
    kind = figure.get("geometryType", "polygon")
    if kind == "bitmap":
        return _pasted(figure.get("bitmap"), size)
    points = figure.get("points")
    if not isinstance(points, dict):
        raise CorruptFileError(f"{kind!r:.40}: expected points, or a bitmap.")
    corners = _flat(points.get("exterior"))
    if kind == "rectangle" and len(corners) == 4:
        left, top, right, bottom = corners  # the last column and row belong to it
        corners = [left, top, right + 1, top, right + 1, bottom + 1, left, bottom + 1]
    elif kind != "polygon":
        raise CorruptFileError(f"{kind!r:.40} of {len(corners) // 2} points is not read.")
    holes = points.get("interior") or []
    if not isinstance(holes, list):
        raise CorruptFileError("interior: expected a list of polygons.")
    region = _filled(corners, size)
    for hole in holes:
        region &= ~_filled(_flat(hole), size)
    return region


def _filled(corners: list[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    return np.zeros(size, bool) if is_degenerate(corners) else fill([corners], size)


def _flat(points: Any) -> list[Any]:
    """[[x, y], ...] as [x, y, ...]; `fill` checks the numbers."""
    is_sound = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not is_sound:
        raise CorruptFileError(f"points {points!r:.60}: expected x and y of each.")
    return [each for point in points for each in point]


def _pasted(bitmap: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A bitmap, whose pixels are a compressed PNG in base64, with its corner at its origin."""
    origin = bitmap.get("origin") if isinstance(bitmap, dict) else None
    match origin:
        case [int(left), int(top)] if left >= 0 and top >= 0:
            part = read_cutout(_inflated(bitmap.get("data")), "bitmap")
        case _:
            raise CorruptFileError("bitmap: expected data and an origin [x, y] in the image.")
    bottom, right = top + part.shape[0], left + part.shape[1]
    if bottom > size[0] or right > size[1]:
        raise CorruptFileError("bitmap: lies outside of the image.")
    whole = np.zeros(size, bool)
    whole[top:bottom, left:right] = part
    return whole


def _inflated(text: Any) -> bytes:
    """The PNG; no more of it is unpacked than the largest picture that is read would need."""
    try:
        unpacker = zlib.decompressobj()
        content = unpacker.decompress(base64.b64decode(text, validate=True), 4 * MAX_PIXELS)
    except (TypeError, ValueError, zlib.error) as error:
        raise CorruptFileError("bitmap: its data are no compressed PNG in base64.") from error
    if not unpacker.eof:
        raise CorruptFileError("bitmap: its data end early, or are too large.")
    return content


LAYOUT = plain_layout(
    "Supervisely", f"{META}, and folders with {PHOTOS}/ and {ANNOTATIONS}/", _find
)
