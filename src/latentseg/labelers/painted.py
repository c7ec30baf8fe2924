"""Painted images: what a person painted on generated images, read and checked."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.generators.protocols import Generator
from latentseg.images import IGNORE, Pixels, read_image, read_mask, to_pixels

PAINTING = "painting.json"
PAINTING_FORMAT = 1
SAME_IMAGE = 2.0  # mean difference of pixel values that rounding on another device may cause


@dataclass(frozen=True)
class PaintedImages:
    """Generated images that a person painted.

    Attributes:
        classes: Names, without the background.
        names: Of the images, for messages.
        seeds: Image i is that of `generator.sample(seeds[i : i + 1])`.
        masks: (N, H, W) uint8: 0 background, 1..K classes, 255 not painted.
    """

    classes: tuple[str, ...]
    names: tuple[str, ...]
    seeds: tuple[int, ...]
    masks: Pixels

    @property
    def digest(self) -> str:
        """The sha256 of all that is painted, as 64 hexadecimal digits."""
        hashed = hashlib.sha256(json.dumps([self.classes, self.seeds]).encode())
        hashed.update(np.ascontiguousarray(self.masks).tobytes())
        return hashed.hexdigest()

    @property
    def summary(self) -> str:
        """What it is, in a few words."""
        return f"{len(self.names)} painted images"

    def pixel_counts(self) -> list[int]:
        """How many pixels are painted with each class, the background first."""
        counts = np.bincount(self.masks.ravel(), minlength=256)
        return counts[: len(self.classes) + 1].tolist()

    def check(self, size: tuple[int, int]) -> None:
        """Raises an error unless a head can learn all classes from it.

        Raises:
            InputError: nothing is painted, a class is painted nowhere, an id has no class, or the
                masks are not of `size` = (height, width).
        """
        self.check_ids(size)
        counts = self.pixel_counts()
        if not sum(counts):
            raise InputError("no pixel is painted. Paint every class once in at least one image.")
        named = ("background", *self.classes)
        missing = [name for name, n in zip(named, counts, strict=True) if not n]
        if missing:
            raise InputError(
                f"painted nowhere: {', '.join(missing)}. Paint some of it in at least one image, "
                "or take the class out."
            )

    def check_ids(self, size: tuple[int, int]) -> None:
        """Raises an error unless all masks are of `size` = (height, width) and hold known ids.

        Raises:
            InputError: they do not.
        """
        if self.masks.shape[1:] != size:
            raise InputError(
                f"masks of {self.masks.shape[1]} x {self.masks.shape[2]} pixels, but the "
                f"generator's images have {size[0]} x {size[1]} (height x width). They must agree."
            )
        for name, mask in zip(self.names, self.masks, strict=True):
            wrong = (mask > len(self.classes)) & (mask != IGNORE)
            if wrong.any():
                y, x = np.argwhere(wrong)[0]
                raise InputError(
                    f"{name}: pixel ({y}, {x}) has the class id {mask[y, x]}; expected 0 to "
                    f"{len(self.classes)}, or {IGNORE} for not painted."
                )


def read_painting(folder: Path | str, generator: Generator) -> PaintedImages:
    """Reads what the painter wrote: images/NAME.png, masks/NAME.png, dataset.json, painting.json.

    Images without any painted pixel are left out.

    Args:
        folder: Of the painter.
        generator: Whose images were painted.

    Raises:
        InputError: a file is missing, the images are another generator's, a mask has another
            size, nothing is painted, or a class is painted nowhere.
        CorruptFileError: a file cannot be read.
    """
    folder = Path(folder)
    path = folder / PAINTING
    if not path.is_file():
        raise InputError(
            f"{folder}: no painted images (no {PAINTING}). "
            f"Paint some with: latentseg paint {generator.info.name} {folder}"
        )
    painting, dataset = read_json(path), read_json(folder / "dataset.json")
    _check_painting(painting, path)
    classes = tuple(one["name"] for one in painting["classes"])
    if not isinstance(dataset, dict) or tuple(dataset.get("classes", ())) != classes:
        raise InputError(f"{folder}: dataset.json and {PAINTING} name different classes.")
    names, seeds, masks = [], [], []
    for image in painting["images"]:
        name, mask_path = image["name"], folder / "masks" / f"{image['name']}.png"
        if not mask_path.is_file():
            continue  # not begun
        mask = read_mask(mask_path)
        if mask.shape != generator.info.size:
            height, width = generator.info.size
            raise InputError(
                f"{mask_path}: {mask.shape[0]} x {mask.shape[1]} pixels, but its image has "
                f"{height} x {width} (height x width). They must agree."
            )
        if (mask != IGNORE).any():
            _check_drawn(folder / "images" / f"{name}.png", image, generator)
            names.append(name)
            seeds.append(int(image["seed"]))
            masks.append(mask)
    if not masks:
        raise InputError(
            f"{folder}: no pixel is painted. "
            f"Paint with: latentseg paint {generator.info.name} {folder}"
        )
    found = PaintedImages(classes, tuple(names), tuple(seeds), np.stack(masks))
    try:
        found.check(generator.info.size)
    except InputError as error:
        raise InputError(f"{folder}: {error}") from error
    return found


def _check_painting(painting: Any, path: Path) -> None:
    """Raises an error unless painting.json has the fields that are read."""
    if not isinstance(painting, dict):
        raise CorruptFileError(f"{path}: expected a JSON object.")
    if painting.get("format") != PAINTING_FORMAT:
        raise InputError(
            f"{path}: format {painting.get('format')}; this version reads {PAINTING_FORMAT}."
        )
    kinds = {"classes": {"name": str}, "images": {"name": str, "seed": int}}
    for part, expected in kinds.items():
        entries = painting.get(part)
        if not isinstance(entries, list) or not entries:
            raise InputError(f"{path}: {part!r} is empty or missing.")
        for entry in entries:
            for name, kind in expected.items():
                if not isinstance(entry, dict) or not isinstance(entry.get(name), kind):
                    raise CorruptFileError(f"{path}: {part!r} holds {entry!r}; {name!r} is wrong.")
            if part == "images" and Path(entry["name"]).name != entry["name"]:
                raise CorruptFileError(f"{path}: {entry['name']!r} is not the name of a file.")


def _check_drawn(path: Path, image: Mapping[str, Any], generator: Generator) -> None:
    """Raises an error unless `generator` draws the image that was painted."""
    there = read_image(path)
    latents = generator.sample(torch.tensor([image["seed"]], device=generator.device))
    with torch.no_grad():
        drawn = to_pixels(generator(latents))[0]
    label = None if latents.labels is None else int(latents.labels[0])
    is_same_class = image.get("label") in (None, label)
    is_same_size = there.shape == drawn.shape
    if not is_same_size or not is_same_class or _difference(there, drawn) > SAME_IMAGE:
        raise InputError(
            f"{path}: generator {generator.info.name!r} draws another image from seed "
            f"{image['seed']}. Give the generator whose images were painted."
        )


def _difference(image: Pixels, other: Pixels) -> float:
    """The mean absolute difference of two images, 0 to 255."""
    return float(np.abs(image.astype(np.int16) - other).mean())
