"""The objects of a synthetic dataset one by one: boxes in, instance masks out (Feng 2023)."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json, verify_manifest, write_manifest
from latentseg.generators.protocols import Latents
from latentseg.images import Pixels, contact_sheet, overlay, read_image, write_image
from latentseg.labelers.descriptions import generator_difference
from latentseg.labelers.instances import (
    MARGIN,
    Box,
    BoxSource,
    Instance,
    segment_instances,
    write_coco,
)
from latentseg.labelers.protocols import Labeler, SegmentsRegions
from latentseg.progress import Progress
from latentseg.synthesis.writers import read_records

AT_ONCE = 16
SAME_IMAGE = 4.0  # mean difference of pixel values that JPEG or another device may cause
SHOWN, SHEET_COLUMNS, CELL_PX = 48, 8, 96


def segment_objects(
    labeler: Labeler,
    dataset: Path | str,
    boxes: Mapping[str, Sequence[Box]] | BoxSource,
    *,
    out: Path | str,
    margin: float = MARGIN,
    categories: Mapping[int, str] | None = None,
    quiet: bool = False,
) -> Path:
    """Finds the object in each box of a dataset that `synthesize` wrote.

    The images are drawn again with their variants, from the seeds that the dataset records.

    Args:
        labeler: Of style mixing, of the generator that drew the dataset.
        dataset: Its folder.
        boxes: By the file name of their image, as `read_boxes` gives them; or a detector, a
            function from an image (H, W, 3) uint8 to boxes.
        out: Folder of the result: instances.json (COCO, masks in run-length encoding),
            contact_sheet.png.
        margin: By how much of its sides a box is widened while its object is looked for.
        categories: Names by COCO's category id; by default "object" for all.
        quiet: Print no progress.

    Returns:
        `out`.

    Raises:
        InputError: the labeler is of another method or generator, an image of `boxes` is not in
            the dataset, a box not in its image, or there are none.
        CorruptFileError: a file of the dataset has changed since it was written.
    """
    if not isinstance(labeler, SegmentsRegions):
        raise InputError(
            f"labeler {labeler.info['method']!r}: cannot look for objects in boxes, as one of "
            "`latentseg fit style-mixing` can."
        )
    dataset, out = Path(dataset), Path(out)
    verify_manifest(dataset)
    description = read_json(dataset / "dataset.json")
    drawn_by = description.get("generator") if isinstance(description, dict) else None
    if not isinstance(drawn_by, dict):
        raise CorruptFileError(f"{dataset / 'dataset.json'}: does not say which generator drew it.")
    difference = generator_difference(drawn_by, labeler.generator)
    if difference is not None:
        raise InputError(f"{dataset}: drawn by a generator with {difference}.")
    if drawn_by.get("bank") != labeler.generator.info.bank:
        raise InputError(f"{dataset}: drawn from other latents. Give the `latents` of that time.")
    records = read_records(dataset)
    suffix = next((dataset / "images").iterdir()).suffix
    seeds = {f"{record['name']}{suffix}": record["seed"] for record in records}
    if not callable(boxes):
        if unknown := sorted(boxes.keys() - seeds.keys()):
            raise InputError(f"{unknown[0]}: has boxes, but is no image of {dataset}.")
        seeds = {name: seed for name, seed in seeds.items() if boxes.get(name)}
        if not seeds:
            raise InputError(f"{dataset}: none of its images has a box.")
    names, found, shown = list(seeds), [], []
    with Progress("instances", total=len(names), quiet=quiet) as progress:
        for start in range(0, len(names), AT_ONCE):
            part = names[start : start + AT_ONCE]
            wanted = boxes if callable(boxes) else [boxes[name] for name in part]
            latents = _drawn_with(labeler, [seeds[name] for name in part])
            images, instances = segment_instances(labeler, latents, wanted, margin=margin)
            _check_image(dataset / "images" / part[0], images[0])
            found.extend(instances)
            if len(shown) < SHOWN:
                shown.extend(_colours(*pair) for pair in zip(images, instances, strict=True))
            progress.update(start + len(part))
    ids = {instance.box.category for instances in found for instance in instances}
    named = categories or dict.fromkeys(sorted(ids), "object")
    size = labeler.generator.info.size
    write_coco(out / "instances.json", names, found, size=size, categories=named)
    write_image(out / "contact_sheet.png", _sheet(shown[:SHOWN], size))
    write_manifest(out)
    return out


def _drawn_with(labeler: Labeler, seeds: Sequence[int]) -> Latents:
    generator = labeler.generator
    return generator.sample(torch.tensor(seeds, dtype=torch.int64, device=generator.device))


def _check_image(path: Path, image: Pixels) -> None:
    difference = np.abs(read_image(path).astype(float) - image).mean()
    if difference > SAME_IMAGE:
        raise InputError(
            f"{path}: the generator draws another image from its seed. Open it with the `classes` "
            "and `options` with which the dataset was made."
        )


def _colours(image: Pixels, instances: Sequence[Instance]) -> Pixels:
    """The objects of an image over it, each in a colour of its own."""
    mask = np.zeros(image.shape[:2], np.uint8)
    for number, instance in enumerate(instances, start=1):
        mask[instance.mask] = number
    return overlay(image, mask)


def _sheet(pictures: Sequence[Pixels], size: tuple[int, int]) -> Pixels:
    rows = [pictures[i : i + SHEET_COLUMNS] for i in range(0, len(pictures), SHEET_COLUMNS)]
    scale = max(1, round(CELL_PX / max(size)))
    return contact_sheet(rows, cell=(size[0] * scale, size[1] * scale))
