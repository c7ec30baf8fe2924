"""COCO: one JSON file with a mask for each object. Also as Label Studio and Roboflow export it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

from latentseg.datasets.coco_files import encode_region, write_document
from latentseg.datasets.descriptions import Facts, read_description
from latentseg.datasets.formats.photo_places import PhotoPlaces
from latentseg.datasets.formats.regions import decode, is_degenerate
from latentseg.datasets.formats.writing import Format, Record, Sample, Target, classes_in
from latentseg.datasets.listings import Listing, Pair, plain_layout
from latentseg.datasets.mask_values import class_ids, number_classes
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.images import IGNORE, Pixels
from latentseg.version import __version__

ANNOTATIONS = "annotations.json"
IMAGES = "images"
PUBLISHED = (  # of COCO itself, of Roboflow, of Label Studio
    "annotations/instances_*.json",
    "*/_annotations.coco.json",
    "_annotations.coco.json",
    "result.json",
)
LISTS = ("images", "annotations", "categories")
MAX_BYTES = 2 * 2**30
EIGHT_NEIGHBORS = np.ones((3, 3))

Annotation = dict[str, Any]


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
    found: Any = label(region, EIGHT_NEIGHBORS)  # its type does not say that these are two
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
class _Object:
    what: str  # for messages
    class_id: int
    is_crowd: bool
    segmentation: Any


@dataclass(frozen=True)
class _Image:
    size: tuple[int, int]
    objects: tuple[_Object, ...]


def _find(path: Path) -> Listing | None:
    """A COCO file, or the folder of one; None if it is neither.

    Category ids become 1..K in their order; categories of one name are one class. Where annotations
    overlap the later one holds. What only crowd annotations cover is ignored.
    """
    if path.is_file() and path.suffix != ".json":
        return None
    files = [path] if path.is_file() else _files(path)
    if not files:
        return None
    if len(files) > 1:
        names = ", ".join(file.relative_to(path).as_posix() for file in files)
        raise InputError(f"{path}: several COCO files: {names}. Name one of them.")
    file = files[0]
    content = read_json(file, limit=MAX_BYTES)
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in LISTS):
        raise CorruptFileError(f"{file}: not a COCO file; expected the lists {', '.join(LISTS)}.")
    return _Reader(file, content).listing()


def _files(folder: Path) -> list[Path]:
    own = folder / ANNOTATIONS
    return [own] if own.is_file() else sorted(p for each in PUBLISHED for p in folder.glob(each))


class _Reader:
    """Puts the lists of a COCO file together, and collects what does not fit."""

    def __init__(self, file: Path, content: Mapping[str, Any]) -> None:
        self.file, self.content = file, content
        self.problems: list[str] = []
        self.skipped: Counter[str] = Counter()
        names = _categories(content["categories"], file)
        self.classes, ids = number_classes([*names.values()], file)
        self.id_of = dict(zip(names, ids, strict=True))

    def listing(self) -> Listing:
        """The photos with their annotations."""
        entries = self._images()
        objects: dict[Any, list[_Object]] = {key: [] for key in entries}
        for number, annotation in enumerate(self.content["annotations"]):
            self._add(annotation, f"annotation {_id_of(annotation, number)}", entries, objects)
        places = PhotoPlaces(*_roots(self.file))
        images: dict[Path, _Image] = {}
        pairs = []
        for key, (name, size) in entries.items():
            place = places.find(name)
            if isinstance(place, str):
                self.problems.append(place)
            elif place.path in images:
                self.problems.append(f"image {key} ({name}): another image has the same file.")
            else:
                images[place.path] = _Image(size, tuple(objects[key]))
                pairs.append(Pair(place.name, place.path, self.file))
        return Listing(
            places.folder.absolute().name,
            places.folder,
            tuple(pairs),
            tuple(f"{self.file.name}: {problem}" for problem in self.problems),
            meaning=class_ids(self.classes),
            facts=read_description(places.folder).facts or _facts(self.content),
            notes=tuple(f"{self.file.name}: {n} {what}." for what, n in self.skipped.items()),
            read_mask=partial(_read_mask, images),
        )

    def _images(self) -> dict[Any, tuple[str, tuple[int, int]]]:
        """File name and (height, width) of each image, by its id."""
        entries: dict[Any, tuple[str, tuple[int, int]]] = {}
        for number, image in enumerate(self.content["images"]):
            what = f"image {_id_of(image, number)}"
            try:
                key, name, size = image["id"], image["file_name"], (image["height"], image["width"])
                is_known = key in entries
            except (KeyError, TypeError):
                self.problems.append(f"{what}: expected id, file_name, height and width.")
                continue
            if is_known:
                self.problems.append(f"{what}: another image has the same id.")
            elif not isinstance(name, str) or not name or not name.isprintable():
                self.problems.append(f"{what}: file_name {name!r:.80} is no name of a file.")
            elif not all(type(side) is int and side > 0 for side in size):
                self.problems.append(f"{what} ({name}): height {size[0]!r}, width {size[1]!r}.")
            else:
                entries[key] = name, size
        return entries

    def _add(
        self,
        annotation: Any,
        what: str,
        entries: Mapping[Any, tuple[str, tuple[int, int]]],
        objects: Mapping[Any, list[_Object]],
    ) -> None:
        """Puts an annotation to its image, or into the list of problems."""
        try:
            image, category = annotation["image_id"], annotation["category_id"]
            segmentation = annotation.get("segmentation")
            is_crowd = bool(annotation.get("iscrowd", 0))
            found, class_id = entries.get(image), self.id_of.get(category)
        except (KeyError, TypeError, AttributeError):
            self.problems.append(f"{what}: expected image_id, category_id and segmentation.")
            return
        if found is None:
            self.problems.append(f"{what}: there is no image {image!r:.80}.")
        elif class_id is None:
            self.problems.append(f"{what}: there is no category {category!r:.80}.")
        elif segmentation is None or segmentation == []:
            has_box = isinstance(annotation.get("bbox"), list) and any(annotation["bbox"])
            has = "a box but no mask" if has_box else "no mask"
            self.problems.append(f"{what} of {found[0]}: has {has}. Draw one, or remove it.")
        else:
            kept = self._without_degenerate(segmentation)
            if kept != []:
                objects[image].append(_Object(what, class_id, is_crowd, kept))

    def _without_degenerate(self, segmentation: Any) -> Any:
        """`segmentation` without polygons of no area, which are counted."""
        if not isinstance(segmentation, list):
            return segmentation
        kept = [polygon for polygon in segmentation if not is_degenerate(polygon)]
        if n_skipped := len(segmentation) - len(kept):
            self.skipped["polygons of fewer than three corners or no area were left out"] += (
                n_skipped
            )
        return kept


def _id_of(entry: Any, number: int) -> str:
    return str(entry.get("id", number) if isinstance(entry, dict) else number)[:80]


def _categories(listed: Sequence[Any], file: Path) -> dict[int, str]:
    """The name of each category, in the order of their ids."""
    try:
        names = {each["id"]: each["name"] for each in listed}
        if not all(type(key) is int and isinstance(name, str) for key, name in names.items()):
            raise TypeError
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{file}: a category without id or name.") from error
    if len(names) < len(listed):
        raise CorruptFileError(f"{file}: two categories have the same id.")
    return {key: names[key] for key in sorted(names)}


def _roots(file: Path) -> tuple[Path, tuple[Path, ...]]:
    """The folder of the export, and those from which the images' names may go out."""
    folder, part = file.parent, file.stem.removeprefix("instances_")
    beside = (folder / IMAGES, folder)
    if folder.name != "annotations":
        return folder, beside
    up = folder.parent
    return up, (*beside, up / part, up / IMAGES / part, up / IMAGES, up)


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    listed = content.get("licenses")
    licenses = [each for each in listed if isinstance(each, dict)] if listed else []
    names = [str(each["name"]) for each in licenses if each.get("name")]
    return {"licence": ", ".join(names)} if names else {}


def _read_mask(images: Mapping[Path, _Image], pair: Pair) -> Pixels:
    image = images[pair.image]
    mask, ignored = np.zeros(image.size, np.uint8), np.zeros(image.size, bool)
    is_labeled = np.zeros(image.size, bool)
    for each in image.objects:
        try:
            region = decode(each.segmentation, image.size)
        except CorruptFileError as error:
            raise CorruptFileError(f"{pair.mask}: {each.what}: {error}") from error
        if each.is_crowd:
            ignored |= region
        else:
            mask[region], is_labeled = each.class_id, is_labeled | region
    mask[ignored & ~is_labeled] = IGNORE
    return mask


LAYOUT = plain_layout(
    "COCO",
    "a COCO file, or annotations.json, result.json (Label Studio), _annotations.coco.json "
    "(Roboflow) or annotations/instances_*.json",
    _find,
)
FORMAT = Format("coco", IMAGES, _write, _finish)
