"""COCO: masks in run-length encoding in one JSON file, exact, with holes and single pixels."""

import math
from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from latentseg.datasets.coco_files import encode_region, mask_api, write_document
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
from latentseg.files import read_json
from latentseg.images import IGNORE, Pixels
from latentseg.version import __version__

ANNOTATIONS = "annotations.json"
IMAGES = "images"
PUBLISHED = (  # of COCO itself, of Roboflow
    "annotations/instances_*.json",
    "*/_annotations.coco.json",
    "_annotations.coco.json",
)
LONGEST_RUN_BITS = 40  # a hostile text could ask for numbers of any length
EIGHT_NEIGHBOURS = np.ones((3, 3))

Annotation = dict[str, Any]


def _is_in(path: Path) -> bool:
    return path.suffix == ".json" if path.is_file() else bool(_files(path))


def _files(folder: Path) -> list[Path]:
    own = folder / ANNOTATIONS
    return [own] if own.is_file() else sorted(p for each in PUBLISHED for p in folder.glob(each))


# Writing


def _write(target: Target, sample: Sample) -> Record:
    """The annotations of one image, without the ids of the whole file."""
    found: list[Annotation] = []
    for k in classes_in(sample.mask):
        region = sample.mask == k
        parts = _components(region) if target.instances else [region]
        found += [{"category_id": k, **encode_region(part), "iscrowd": 0} for part in parts]
    if (ignored := sample.mask == IGNORE).any():
        # COCO's own measure leaves out, for each category, what its crowd annotations cover.
        encoded = encode_region(ignored)
        found += [
            {"category_id": k, **encoded, "iscrowd": 1} for k in range(1, len(target.classes) + 1)
        ]
    height, width = sample.mask.shape
    image = {"file_name": f"{sample.name}{sample.suffix}", "height": height, "width": width}
    return {"image": image, "annotations": found}


def _components(region: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    found: Any = label(region, EIGHT_NEIGHBOURS)  # its type does not say that these are two
    numbers, count = found
    return [numbers == k for k in range(1, count + 1)]


def _finish(target: Target, records: Collection[Record]) -> Facts:
    head = {
        "info": {
            "description": f"Masks of {', '.join(target.classes)}",
            "version": f"latentseg {__version__}",
            **{key: target.facts[key] for key in ("generator", "labeler") if key in target.facts},
        },
        "licenses": [{"id": 1, "name": target.facts.get("licence", "not stated"), "url": ""}],
        "categories": [
            {"id": k, "name": name, "supercategory": ""}
            for k, name in enumerate(target.classes, start=1)
        ],
    }
    images = (
        {"id": image_id, **record["image"], "license": 1}
        for image_id, record in enumerate(records, start=1)
    )
    annotations = (
        {"image_id": image_id, **annotation}
        for image_id, record in enumerate(records, start=1)
        for annotation in record["annotations"]
    )
    numbered = ({"id": number, **each} for number, each in enumerate(annotations, start=1))
    write_document(target.folder / ANNOTATIONS, head, images=images, annotations=numbered)
    return {}


# Reading


@dataclass(frozen=True)
class _Image:
    size: tuple[int, int]
    annotations: tuple[tuple[str, int, bool, Any], ...]  # what, class id, is crowd, segmentation


def _read(path: Path) -> StoredDataset:
    """A COCO file, or the folder of one.

    Category ids become 1..K in their order; categories of one name are one class. Where annotations
    overlap the later one holds. What only crowd annotations cover is ignored.
    """
    files = [path] if path.is_file() else _files(path)
    if len(files) > 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in files)
        raise InputError(f"{path}: several COCO files: {names}. Name one of them.")
    file = files[0]
    content = read_json(file)
    lists = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in lists):
        raise CorruptFileError(f"{file}: not a COCO file; expected the lists {', '.join(lists)}.")
    problems: list[str] = []
    classes, ids = _categories(content["categories"], file)
    entries = _entries(content["images"], problems)
    segments: dict[Any, list[tuple[str, int, bool, Any]]] = {key: [] for key in entries}
    for number, annotation in enumerate(content["annotations"]):
        problem = _add(annotation, f"annotation {_id_of(annotation, number)}", segments, ids)
        if problem:
            problems.append(problem)
    root = _root(file, [name for name, _ in entries.values()])
    images = tuple(root / name for name, _ in entries.values())
    problems += [f"{image}: is listed, but missing." for image in images if not image.is_file()]
    if problems:
        raise problems_in(file, problems)
    found = [_Image(size, tuple(segments[key])) for key, (_, size) in entries.items()]
    return StoredDataset(
        folder=file.parent,
        classes=classes,
        facts=facts_in(read_description(file.parent)) or _facts(content),
        names=tuple(str(Path(name).with_suffix("")) for name, _ in entries.values()),
        images=images,
        read_mask=partial(_read_mask, file, found),
    )


def _id_of(entry: Any, number: int) -> Any:
    return entry.get("id", number) if isinstance(entry, dict) else number


def _categories(listed: list[Any], file: Path) -> tuple[tuple[str, ...], dict[int, int]]:
    """Names of the classes, and for each category id its class id."""
    try:
        names = {int(each["id"]): str(each["name"]) for each in listed}
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(f"{file}: a category without id or name.") from error
    if len(names) < len(listed):
        raise CorruptFileError(f"{file}: two categories have the same id.")
    classes = check_classes([*dict.fromkeys(names[key] for key in sorted(names))], file)
    return classes, {key: classes.index(name) + 1 for key, name in names.items()}


def _entries(listed: list[Any], problems: list[str]) -> dict[Any, tuple[str, tuple[int, int]]]:
    """File name and (height, width) of each image, by its id."""
    entries: dict[Any, tuple[str, tuple[int, int]]] = {}
    for number, image in enumerate(listed):
        what = f"image {_id_of(image, number)}"
        try:
            key, name, size = image["id"], image["file_name"], (image["height"], image["width"])
            is_known = key in entries
        except (KeyError, TypeError):
            problems.append(f"{what}: expected id, file_name, height and width.")
            continue
        if is_known:
            problems.append(f"{what}: another image has the same id.")
        elif not isinstance(name, str) or not is_inside(name):
            problems.append(f"{what}: file_name {name!r} leaves the folder.")
        elif not all(type(side) is int and side > 0 for side in size):
            problems.append(f"{what} ({name}): height {size[0]!r}, width {size[1]!r}.")
        else:
            entries[key] = name, size
    return entries


def _add(annotation: Any, what: str, segments: dict[Any, Any], ids: dict[int, int]) -> str:
    """Puts an annotation to its image; returns what is wrong with it, or ""."""
    try:
        image, category = annotation["image_id"], annotation["category_id"]
        segmentation, is_crowd = annotation["segmentation"], bool(annotation.get("iscrowd", 0))
        found, class_id = segments.get(image), ids.get(category)
    except (KeyError, TypeError, AttributeError):
        return f"{what}: expected image_id, category_id and segmentation."
    if found is None:
        return f"{what}: there is no image {image!r}."
    if class_id is None:
        return f"{what}: there is no category {category!r}."
    found.append((what, class_id, is_crowd, segmentation))
    return ""


def _root(file: Path, names: list[str]) -> Path:
    """The folder from which the images' names go out, told by the first that is there."""
    part = file.stem.removeprefix("instances_")
    up = file.parent.parent
    places = (file.parent / IMAGES, file.parent, up / part, up / IMAGES / part, up / IMAGES, up)
    tried = (place for name in names[:1] for place in places if (place / name).is_file())
    return next(tried, places[0])


def _facts(content: dict[str, Any]) -> dict[str, Any]:
    listed = content.get("licenses")
    licences = [each for each in listed if isinstance(each, dict)] if listed else []
    names = [str(each["name"]) for each in licences if each.get("name")]
    return {"licence": ", ".join(names)} if names else {}


def _read_mask(file: Path, images: list[_Image], index: int, size: tuple[int, int]) -> Pixels:
    image = images[index]
    if image.size != size:
        raise InputError(
            f"{file}: says {image.size[0]} x {image.size[1]} pixels (height x width), but the "
            f"image has {size[0]} x {size[1]}. They must agree."
        )
    mask, ignored = np.zeros(size, np.uint8), np.zeros(size, bool)
    is_labelled = np.zeros(size, bool)
    for what, class_id, is_crowd, segmentation in image.annotations:
        try:
            region = decode(segmentation, size)
        except CorruptFileError as error:
            raise CorruptFileError(f"{file}: {what}: {error}") from error
        if is_crowd:
            ignored |= region
        else:
            mask[region], is_labelled = class_id, is_labelled | region
    mask[ignored & ~is_labelled] = IGNORE
    return mask


def decode(segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A `segmentation` of COCO as a region (H, W): run lengths, compressed or not, or polygons.

    Raises:
        CorruptFileError: it is neither, or not of this size.
    """
    if isinstance(segmentation, list):
        return fill(segmentation, size)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= segmentation.keys():
        raise CorruptFileError("segmentation: expected run lengths with size, or polygons.")
    counts = segmentation["counts"]
    if segmentation["size"] != [*size]:
        raise CorruptFileError(f"segmentation: size {segmentation['size']}, not {[*size]}.")
    # Counted first: pycocotools takes runs that end early for a whole mask.
    runs = _runs(counts) if isinstance(counts, str) else counts
    is_sound = isinstance(runs, list) and all(type(n) is int and n >= 0 for n in runs)
    if not is_sound or sum(runs) != size[0] * size[1]:
        raise CorruptFileError(f"segmentation: the runs do not make {size[0]} x {size[1]} pixels.")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape(size, order="F")


def _runs(counts: str) -> list[int]:
    """The lengths of the runs in COCO's text: 5 bits a letter, from the third on differences.

    Source: cocoapi, common/maskApi.c, rleFrString.
    """
    runs: list[int] = []
    value = shift = 0
    for letter in counts:
        bits = ord(letter) - 48
        if not 0 <= bits < 64 or shift > LONGEST_RUN_BITS:
            return [-1]
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            runs.append(value + (runs[-2] if len(runs) > 2 else 0))
            value = shift = 0
    return [-1] if shift else runs


def fill(polygons: list[Any], size: tuple[int, int]) -> NDArray[np.bool_]:
    """Polygons [x1, y1, x2, y2, ...] in pixels as a region (H, W), as pycocotools fills them.

    Raises:
        CorruptFileError: less than three corners, or a corner that is no number or more than the
            size of the image away from it.
    """
    height, width = size
    for polygon in polygons:
        is_flat = isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0
        if not is_flat or not all(type(v) in (int, float) and math.isfinite(v) for v in polygon):
            raise CorruptFileError(f"polygon {str(polygon)[:60]}: expected x1, y1, x2, y2, x3, ...")
        for values, side in ((polygon[::2], width), (polygon[1::2], height)):
            if min(values) < -side or max(values) > 2 * side:
                raise CorruptFileError(f"polygon {str(polygon)[:60]}: lies outside the image.")
    if not polygons:
        return np.zeros(size, bool)
    api = mask_api()
    return api.decode(api.merge(api.frPyObjects(polygons, height, width))).astype(bool)


FORMAT = Format("coco", IMAGES, _is_in, _read, _write, _finish)
