"""Datasets of parts as they are published: CelebAMask-HQ, and PASCAL-Part in crops."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat

from latentseg.datasets.groupings import GROUPINGS, Grouping
from latentseg.datasets.listings import (
    Listing,
    Pair,
    below,
    message_below,
    read_columns,
)
from latentseg.datasets.mask_values import class_ids
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.images import Pixels, list_images, read_image, resize, size_of

FACE_LABELS = (
    *("skin", "nose", "eye_g", "l_eye", "r_eye", "l_brow", "r_brow", "l_ear", "r_ear", "mouth"),
    *("u_lip", "l_lip", "hair", "hat", "ear_r", "neck_l", "neck", "cloth"),
)
FACES_PER_FOLDER = 2000
FACE_THRESHOLD = 0.4 * 255  # official code of Tritrong et al. 2021
# Khani et al. 2024 (SLiMe), B.1.3, following Tritrong et al. 2021.
MAX_OVERLAP = 0.05
MIN_SIDE = {"car": 50, "horse": 32}

Box = tuple[int, int, int, int]
Mask = NDArray[np.bool_]


def celebamask(folder: Path, groupings: Sequence[Grouping]) -> Listing | None:
    """CelebAMask-HQ (Lee et al. 2020); None if `folder` is another dataset.

    Photos are brought to the size of their masks (512 px). With list_eval_partition.txt of CelebA
    beside CelebA-HQ-to-CelebA-mapping.txt they are the official test photos, otherwise all.
    Its labels are `FACE_LABELS`, a map of each in a file of its own; a pixel has one from 0.4 on.

    Args:
        folder: With CelebA-HQ-img/ and CelebAMask-HQ-mask-anno/ in it.
        groupings: Classes of its labels; none: "celebamask-10".
    """
    images, masks = folder / "CelebA-HQ-img", folder / "CelebAMask-HQ-mask-anno"
    if not images.is_dir() or not masks.is_dir():
        return None
    grouping, *rest = groupings or (GROUPINGS["celebamask-10"],)
    annotated = {path.with_name(path.name.split("_")[0]) for path in masks.glob("*/*_*.png")}
    part, test = _face_test_photos(folder)
    pairs, problems = [], []
    for image in list_images(images):
        number = int(image.stem) if image.stem.isdecimal() else -1
        mask = masks / str(number // FACES_PER_FOLDER) / f"{number:05d}"
        if test is not None and image.stem not in test:
            continue
        if mask in annotated:
            pairs.append(Pair(image.stem, image, mask))
        else:
            problems.append(f"{below(folder, image)}: has no mask {below(folder, mask)}_*.png.")
    return Listing(
        f"CelebAMask-HQ ({part})",
        folder,
        tuple(sorted(pairs, key=lambda pair: int(pair.name))),
        tuple(problems),
        meaning=class_ids(grouping.classes),
        groupings=tuple(rest),
        read_image=_face_image,
        read_mask=partial(_face_mask, grouping.ids(FACE_LABELS)),
        copies_photos=False,
    )


def _face_test_photos(folder: Path) -> tuple[str, set[str] | None]:
    mapping, parts = folder / "CelebA-HQ-to-CelebA-mapping.txt", folder / "list_eval_partition.txt"
    if not mapping.is_file() or not parts.is_file():
        return "all", None
    part_of = read_columns(parts)
    files = read_columns(mapping, 3)
    return "test", {number for number, file in files.items() if part_of.get(file) == "2"}


def _face_files(pair: Pair) -> dict[str, Path]:
    paths = {label: pair.mask.with_name(f"{pair.mask.name}_{label}.png") for label in FACE_LABELS}
    return {label: path for label, path in paths.items() if path.is_file()}


def _face_image(pair: Pair) -> Pixels:
    image, size = read_image(pair.image), size_of(next(iter(_face_files(pair).values())))
    return image if image.shape[:2] == size else resize(image, size)


def _face_mask(ids: Mapping[str, int], pair: Pair) -> Pixels:
    layers: dict[str, Mask] = {}
    for label, path in _face_files(pair).items():
        layers[label] = read_image(path)[..., 0] >= FACE_THRESHOLD
        if layers[label].shape != next(iter(layers.values())).shape:
            raise InputError(f"{path}: has another size than the photo's other masks.")
    return _flattened(layers, ids)


def pascal_part(folder: Path, groupings: Sequence[Grouping]) -> Listing | None:
    """PASCAL-Part (Chen et al. 2014), one crop for each object; None if `folder` is another set.

    An object is cut out by the box of its mask, unless another object of those kinds covers more
    than 5 % of that box, or a side is shorter than 50 px (cars) or 32 px. In the crop the parts of
    every object of those kinds count. The papers do not say which boxes they compare, whose parts
    count, and which photos they take: here all that are annotated.

    Its labels are "car" for all of a car, "car/wheel" for every wheel_1, wheel_2, ... of it.

    Args:
        folder: With Annotations_Part/ in it, and VOCdevkit/VOC2010/JPEGImages/ or JPEGImages/.
        groupings: Classes of its labels; the first says by its labels which kinds of objects.

    Raises:
        InputError: no grouping is given.
    """
    annotations = folder / "Annotations_Part"
    if not annotations.is_dir():
        return None
    if not groupings:
        raise InputError(
            f"{folder}: PASCAL-Part has objects of many kinds. Say which parts to measure with "
            "`grouping` pascal-car, pascal-horse, or a JSON file with labels as car/wheel."
        )
    grouping, *rest = groupings
    kinds = {label.partition("/")[0] for label in grouping.labels}
    places = [folder / "VOCdevkit" / "VOC2010" / "JPEGImages", folder / "JPEGImages"]
    images = next((place for place in places if place.is_dir()), places[0])
    pairs, problems, labels = [], [], dict.fromkeys(grouping.labels)
    for path in sorted(annotations.glob("[!.]*.mat")):
        image = images / f"{path.stem}.jpg"
        try:
            objects = _read_objects(path, kinds)
            crops = _crops(objects)
            if crops:
                _refuse_other_size(image, objects[0])
        except LatentsegError as error:
            problems.append(message_below(folder, error))
            continue
        labels |= dict.fromkeys(label for one in objects for label in one.layers)
        pairs += [Pair(f"{path.stem}_{number}", image, path, box) for number, box in crops]
    ids = grouping.ids(list(labels))
    return Listing(
        f"PASCAL-Part ({', '.join(sorted(kinds))})",
        folder,
        tuple(pairs),
        tuple(problems),
        meaning=class_ids(grouping.classes),
        groupings=tuple(rest),
        read_image=_object_image,
        read_mask=partial(_object_mask, ids, kinds),
        copies_photos=False,
    )


@dataclass(frozen=True)
class _Object:
    kind: str
    layers: dict[str, Mask]  # (H, W) of each label: the object's kind, and its parts

    @property
    def box(self) -> Box:
        rows, columns = np.nonzero(self.layers[self.kind])
        return rows.min(), columns.min(), rows.max() + 1, columns.max() + 1


def _read_objects(path: Path, kinds: set[str]) -> list[_Object]:
    """The objects of some kinds in an annotation; numbered parts are put together."""
    try:
        objects = []
        for stored in loadmat(path)["anno"][0, 0]["objects"].ravel():
            kind = str(stored["class"].item())
            if kind not in kinds:
                continue
            layers = {kind: stored["mask"] > 0}
            for part in stored["parts"].ravel():
                label = f"{kind}/{re.sub(r'_[0-9]+$', '', str(part['part_name'].item()))}"
                layers[label] = (part["mask"] > 0) | layers.get(label, False)
            if layers[kind].any():
                objects.append(_Object(kind, layers))
        if len({layer.shape for one in objects for layer in one.layers.values()}) > 1:
            raise ValueError("masks of several sizes")
        return objects
    except Exception as error:  # scipy raises many types for damaged files
        raise CorruptFileError(f"{path}: not a readable annotation of parts ({error}).") from error


def _refuse_other_size(image: Path, one: _Object) -> None:
    (height, width), mask = size_of(image), one.layers[one.kind]
    if (height, width) != mask.shape:
        raise InputError(
            f"{image}: {height} x {width} pixels, but its annotation has {mask.shape[0]} x "
            f"{mask.shape[1]} (height x width). They must agree."
        )


def _crops(objects: Sequence[_Object]) -> list[tuple[int, Box]]:
    """Number and box of each object that is large enough and apart from the others."""
    boxes = [one.box for one in objects]
    crops = []
    for number, (one, box) in enumerate(zip(objects, boxes, strict=True)):
        others = boxes[:number] + boxes[number + 1 :]
        height, width = box[2] - box[0], box[3] - box[1]
        is_apart = all(_shared(box, other) <= MAX_OVERLAP * height * width for other in others)
        if is_apart and min(height, width) >= MIN_SIDE.get(one.kind, min(MIN_SIDE.values())):
            crops.append((number, box))
    return crops


def _shared(box: Box, other: Box) -> int:
    """Area that two boxes have in common, in pixels."""
    height = min(box[2], other[2]) - max(box[0], other[0])
    width = min(box[3], other[3]) - max(box[1], other[1])
    return max(height, 0) * max(width, 0)


def _object_image(pair: Pair) -> Pixels:
    return _cut(read_image(pair.image), pair)


def _object_mask(ids: Mapping[str, int], kinds: set[str], pair: Pair) -> Pixels:
    layers: dict[str, Mask] = {}
    for one in _read_objects(pair.mask, kinds):
        for label, layer in one.layers.items():
            layers[label] = layer | layers.get(label, False)
    return _cut(_flattened(layers, ids), pair)


def _cut(picture: Pixels, pair: Pair) -> Pixels:
    top, left, bottom, right = pair.box or (0, 0, *picture.shape[:2])
    return picture[top:bottom, left:right]


def _flattened(layers: Mapping[str, Mask], ids: Mapping[str, int]) -> Pixels:
    """Class ids (H, W) of labels that may overlap; the first in `ids` wins."""
    mask = np.zeros(next(iter(layers.values())).shape, np.uint8)
    for label, number in reversed(list(ids.items())):
        if label in layers:
            mask[layers[label]] = number
    return mask
