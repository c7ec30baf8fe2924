"""Objects one by one: boxes first, then style mixing inside each box (Feng et al. 2023).

The boxes come from a COCO file, from a detector of the user's, or from any function of an image.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from latentseg.datasets.coco_files import encode_region
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json, write_json
from latentseg.generators.protocols import Latents
from latentseg.images import Pixels, to_pixels
from latentseg.labelers.protocols import SegmentsRegions

MARGIN = 0.15
LEAST_SIDE_PX = 2


@dataclass(frozen=True)
class Box:
    """Where an object is, as COCO has it.

    Attributes:
        x: Left edge in pixels.
        y: Upper edge.
        width: In pixels.
        height: In pixels.
        category: COCO's category id.
    """

    x: float
    y: float
    width: float
    height: float
    category: int = 1


@dataclass(frozen=True)
class Instance:
    """One object.

    Attributes:
        box: Where it was looked for.
        mask: Its pixels, (H, W), of the whole image; none lies outside the box.
        confidence: Mean margin of the pixels in the box, in [0, 1].
    """

    box: Box
    mask: NDArray[np.bool_]
    confidence: float


BoxSource = Callable[[Pixels], Sequence[Box]]


def segment_instances(
    labeler: SegmentsRegions,
    latents: Latents,
    boxes: Sequence[Sequence[Box]] | BoxSource,
    *,
    margin: float = MARGIN,
) -> tuple[Pixels, list[list[Instance]]]:
    """Draws the images of `latents` and finds the object in each box.

    Args:
        labeler: Must be able to segment regions, as that of style mixing is.
        latents: Of B images.
        boxes: Those of each image, or a function from an image (H, W, 3) uint8 to its boxes.
        margin: By how much of its sides a box is widened, so that there is background to tell the
            object from; the mask ends at the box itself.

    Returns:
        The images (B, H, W, 3) uint8, and for each the instances, one for each box, in order.

    Raises:
        InputError: not as many lists of boxes as images, or a box that is not in its image.
    """
    if not callable(boxes) and len(boxes) != len(latents):
        raise InputError(f"{len(boxes)} lists of boxes for {len(latents)} images.")
    images, found = [], []
    for variants in labeler.drawn(latents):
        drawn = to_pixels(variants[:, 0])
        for image, own in zip(drawn, variants, strict=True):
            wanted = boxes(image) if callable(boxes) else boxes[len(found)]
            found.append([_segment_box(labeler, own, box, margin) for box in wanted])
        images.append(drawn)
    return np.concatenate(images), found


def _segment_box(labeler: SegmentsRegions, variants: Tensor, box: Box, margin: float) -> Instance:
    """The object in one box of one image with `variants` (N, 3, H, W)."""
    height, width = variants.shape[2:]
    inner = _corners(box, 0.0, height, width)
    rows, columns = _corners(box, margin, height, width)
    mask = np.zeros((height, width), dtype=bool)
    mask[rows, columns], confidence = labeler.object_in(variants, rows, columns)
    is_inside = np.zeros_like(mask)
    is_inside[inner] = True
    return Instance(box, mask & is_inside, confidence)


def _corners(box: Box, margin: float, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a box in an image, widened and cut at the image's sides."""
    extra_y, extra_x = margin * box.height, margin * box.width
    top, left = max(0, math.floor(box.y - extra_y)), max(0, math.floor(box.x - extra_x))
    bottom = min(height, math.ceil(box.y + box.height + extra_y))
    right = min(width, math.ceil(box.x + box.width + extra_x))
    if min(bottom - top, right - left) < LEAST_SIDE_PX:
        raise InputError(
            f"{box}: less than {LEAST_SIDE_PX} pixels of it lie in the image of "
            f"{height} x {width} pixels."
        )
    return slice(top, bottom), slice(left, right)


def read_boxes(path: Path | str) -> dict[str, list[Box]]:
    """The boxes of a COCO file, by the name of their image.

    Raises:
        InputError: there is no such file.
        CorruptFileError: it is not COCO: a field is missing, a box is not four finite numbers with
            positive sides, or belongs to an unknown image. The first such annotation is named.
    """
    content = _read_coco(path)
    try:
        names = {image["id"]: str(image["file_name"]) for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise CorruptFileError(f"{path}: an image without id or file_name.") from error
    boxes: dict[str, list[Box]] = {name: [] for name in names.values()}
    for number, annotation in enumerate(content["annotations"]):
        try:
            name, sides = names[annotation["image_id"]], [float(v) for v in annotation["bbox"]]
            x, y, width, height = sides
            category = int(annotation.get("category_id", 1))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFileError(
                f"{path}: annotation {number}: expected image_id of a known image and bbox "
                "[x, y, width, height]."
            ) from error
        if not all(map(math.isfinite, sides)) or min(width, height) <= 0:
            raise CorruptFileError(f"{path}: annotation {number}: bbox {sides} is no box.")
        boxes[name].append(Box(x, y, width, height, category))
    return boxes


def read_categories(path: Path | str) -> dict[int, str]:
    """The names of a COCO file's categories, by id; those it uses without a name are "object".

    Raises:
        InputError, CorruptFileError: as `read_boxes`.
    """
    used = {box.category for boxes in read_boxes(path).values() for box in boxes}
    try:
        named = {int(each["id"]): str(each["name"]) for each in _read_coco(path)["categories"]}
    except (KeyError, TypeError, ValueError):
        named = {}
    return {**dict.fromkeys(sorted(used), "object"), **named}


def _read_coco(path: Path | str) -> dict[str, Any]:
    content = read_json(path)
    if not isinstance(content, dict) or not {"images", "annotations"} <= content.keys():
        raise CorruptFileError(f"{path}: not a COCO file: 'images' or 'annotations' is missing.")
    return content


def to_coco(
    names: Sequence[str],
    instances: Sequence[Sequence[Instance]],
    *,
    size: tuple[int, int],
    categories: Mapping[int, str],
) -> dict[str, Any]:
    """Instances as a COCO file's content; masks in run-length encoding, boxes of the masks.

    Args:
        names: File name of each image.
        instances: Of each image; those without a pixel are left out.
        size: (height, width) of the images.
        categories: Names by category id.

    Raises:
        InputError: an instance has an unknown category.
    """
    images, annotations = [], []
    for image_id, (name, found) in enumerate(zip(names, instances, strict=True), start=1):
        images.append({"id": image_id, "file_name": name, "height": size[0], "width": size[1]})
        for instance in found:
            if instance.box.category not in categories:
                raise InputError(
                    f"{name}: category {instance.box.category} is unknown; known are "
                    f"{', '.join(map(str, categories))}."
                )
            if not instance.mask.any():
                continue
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": instance.box.category,
                    **encode_region(instance.mask),
                    "iscrowd": 0,
                    "score": instance.confidence,
                }
            )
    listed = [{"id": number, "name": name} for number, name in categories.items()]
    return {"images": images, "annotations": annotations, "categories": listed}


def write_coco(
    path: Path | str,
    names: Sequence[str],
    instances: Sequence[Sequence[Instance]],
    *,
    size: tuple[int, int],
    categories: Mapping[int, str],
) -> None:
    """Writes what `to_coco` gives to a JSON file, atomically."""
    write_json(path, to_coco(names, instances, size=size, categories=categories))
