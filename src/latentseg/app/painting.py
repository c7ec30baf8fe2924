"""The folder of a painting: chosen images, the masks painted on them, classes, undo journals."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from latentseg.app.strokes import PaintedMask, check_mask
from latentseg.datasets.mask_values import MAX_CLASSES
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import check_keys, read_json, write_json, write_text
from latentseg.images import IGNORE, Pixels, class_colors, size_of, write_image, write_mask
from latentseg.seeds import derive_seeds

FORMAT = 1
GALLERY = 24  # images to choose from at first
SEEDS = 10**8  # seeds have at most eight digits: they are file names, and people say them
BACKGROUND, NOT_PAINTED = "#000000", "#ffffff"
RESERVED_NAMES = ("background", "not painted")
COLOURS = (  # told apart on photos, in light and in dark; then those of `class_colors`
    "#e8563a", "#2aa7b8", "#f3b530", "#8a63d2", "#58ad45", "#e879b4",
    "#3f74e0", "#b0703c", "#93d7ea", "#c4d644", "#b3224a", "#2d8464",
)  # fmt: skip

STAGE = ".change"  # files of a change of several files, and what is to be done with them
PLAN = "plan.json"
NAME = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"  # of an image; it becomes a path, so it is a plain one
OWN_FILES = rf"(painting|dataset)\.json|(images|masks)/{NAME}\.png|strokes/{NAME}\.jsonl"


@dataclass(frozen=True)
class PartClass:
    """A part that is painted: its name, and its colour as "#rrggbb"."""

    name: str
    colour: str


@dataclass(frozen=True)
class ChosenImage:
    """A generated image that was chosen to be painted.

    Attributes:
        name: Of its files, without suffix.
        seed: Its latent is `generator.sample(tensor([seed]))`.
        label: Class label of a conditional generator, or None.
        is_done: Whether the person said that it is finished.
    """

    name: str
    seed: int
    label: int | None
    is_done: bool = False


@dataclass(frozen=True)
class ClassChange:
    """A class as it is to be, and its id until now; None if it is new."""

    part: PartClass
    was: int | None


class Painting:
    """A painting on disk. Whoever changes it holds its folder (`files.locked`).

    Attributes:
        folder: The dataset folder.
        generator: The card of the generator, as JSON values.
        seed: Of the images to choose from.
        classes: Id k is `classes[k - 1]`.
        images: The chosen images by name, in order.
        masks: Their masks by name.
        gallery: Seeds of the images to choose from.
    """

    def __init__(self, folder: Path | str) -> None:
        """Opens a painting; a change that a kill left half done is completed or forgotten.

        Raises:
            InputError: `folder` is not a painting.
            CorruptFileError: files of it are damaged or missing.
        """
        self.folder = Path(folder)
        _finish_change(self.folder)
        if not (self.folder / "painting.json").is_file():
            raise InputError(
                f"{folder}: not a painting; there is no painting.json. Begin one with: "
                f"latentseg paint GENERATOR {folder}"
            )
        self._read()

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of all images and masks."""
        height, width = self.generator["size"]
        return height, width

    def painted_share(self, name: str) -> float:
        """How much of an image is painted, in [0, 1]."""
        return float((self.masks[name].pixels != IGNORE).mean())

    def choose(self, seed: int, image: Pixels, label: int | None) -> ChosenImage:
        """Adds a generated image, with nothing painted; one that was chosen before stays as it is.

        Args:
            seed: Of its latent.
            image: (H, W, 3) uint8: what the generator draws for it.
            label: Its class label, or None.

        Raises:
            InputError: the image has another size, or cannot be written.
        """
        name = f"{seed:08d}"
        if name in self.images:
            return self.images[name]
        if image.shape != (*self.size, 3):
            raise InputError(f"image of seed {seed}: {image.shape}; expected {(*self.size, 3)}.")
        chosen = ChosenImage(name, seed, label)
        with _Change(self.folder) as change:
            write_image(change.stage(f"images/{name}.png"), image)
            write_mask(change.stage(f"masks/{name}.png"), np.full(self.size, IGNORE, np.uint8))
            images = {**self.images, name: chosen}
            write_json(change.stage("painting.json"), self._card(images.values(), self.classes))
        self.images = images
        self.masks[name] = self._open_mask(name)
        return chosen

    def remove(self, name: str) -> None:
        """Takes an image out of the painting; its mask and its journal are deleted.

        Raises:
            InputError: it cannot be written.
        """
        images = {key: image for key, image in self.images.items() if key != name}
        with _Change(self.folder) as change:
            write_json(change.stage("painting.json"), self._card(images.values(), self.classes))
            for path in (f"images/{name}.png", f"masks/{name}.png", f"strokes/{name}.jsonl"):
                change.delete(path)
        self.images = images
        del self.masks[name]

    def mark(self, name: str, *, is_done: bool) -> None:
        """Says whether an image is finished.

        Raises:
            InputError: it cannot be written.
        """
        images = {**self.images, name: replace(self.images[name], is_done=is_done)}
        write_json(self.folder / "painting.json", self._card(images.values(), self.classes))
        self.images = images

    def loss(self, changes: Sequence[ClassChange]) -> list[tuple[str, int, int]]:
        """(class, pixels, images) of the paint that would be lost by `changes`."""
        kept = {change.was for change in changes}
        lost = []
        for number, part in enumerate(self.classes, start=1):
            counts = [int((mask.pixels == number).sum()) for mask in self.masks.values()]
            if number not in kept and any(counts):
                lost.append((part.name, sum(counts), sum(count > 0 for count in counts)))
        return lost

    def change_classes(self, changes: Sequence[ClassChange]) -> bool:
        """Makes the classes those of `changes`, in this order; paint keeps its class.

        Pixels of a class that is gone become not painted, in the journals, too.

        Returns:
            Whether ids changed that existed before.

        Raises:
            InputError: names or colours are wrong or occur twice; or it cannot be written.
        """
        classes = _checked_classes([change.part for change in changes], "the classes")
        ids = np.full(256, IGNORE, np.uint8)
        ids[0] = 0
        old = [change.was for change in changes if change.was is not None]
        if len(set(old)) < len(old) or not set(old) <= set(range(1, len(self.classes) + 1)):
            raise InputError(f"ids until now {old}: expected some of 1-{len(self.classes)}, once.")
        for number, change in enumerate(changes, start=1):
            if change.was is not None:
                ids[change.was] = number
        is_moved = any(ids[k] != k for k in range(1, len(self.classes) + 1))
        with _Change(self.folder) as change:
            write_json(change.stage("painting.json"), self._card(self.images.values(), classes))
            write_json(change.stage("dataset.json"), self._description(classes))
            for name, mask in self.masks.items() if is_moved else ():
                pixels, journal = mask.journal_with_ids(ids)
                write_mask(change.stage(f"masks/{name}.png"), pixels)
                write_text(change.stage(f"strokes/{name}.jsonl"), journal)
        self.classes = classes
        if is_moved:
            revisions = {name: mask.revision for name, mask in self.masks.items()}
            self.masks = {name: self._open_mask(name) for name in self.images}
            for name, mask in self.masks.items():  # a page that knows the old ids is out of date
                mask.revision = max(mask.revision, revisions[name] + 1)
        return is_moved

    def draw_more(self, count: int) -> None:
        """Adds `count` seeds to the gallery.

        Raises:
            InputError: it cannot be written.
        """
        self._set_gallery([*self.gallery, *self._new_seeds(count)])

    def draw_again(self, seeds: Sequence[int]) -> None:
        """Puts new seeds in the place of `seeds` in the gallery.

        Raises:
            InputError: it cannot be written.
        """
        fresh = dict(zip(seeds, self._new_seeds(len(seeds)), strict=True))
        self._set_gallery([fresh.get(seed, seed) for seed in self.gallery])

    def _new_seeds(self, count: int) -> list[int]:
        known = {*self.gallery, *(image.seed for image in self.images.values())}
        seeds: list[int] = []
        while len(seeds) < count:
            seed = gallery_seed(self.seed, self._drawn)
            self._drawn += 1
            if seed not in known:
                seeds.append(seed)
                known.add(seed)
        return seeds

    def _set_gallery(self, seeds: list[int]) -> None:
        write_json(
            self.folder / "gallery.json",
            {"format": FORMAT, "drawn": self._drawn, "seeds": seeds},
        )
        self.gallery = seeds

    def _open_mask(self, name: str) -> PaintedMask:
        path = self.folder / "masks" / f"{name}.png"
        try:
            mask = PaintedMask(path, self.folder / "strokes" / f"{name}.jsonl")
        except InputError as error:
            raise CorruptFileError(f"{error} The painting's own list names it.") from error
        check_mask(mask.pixels, self.size, len(self.classes), path)
        return mask

    def _card(self, images: Iterable[ChosenImage], classes: Sequence[PartClass]) -> dict[str, Any]:
        return card(self.generator, self.seed, classes, images)

    def _description(self, classes: Sequence[PartClass]) -> dict[str, Any]:
        return description(self.generator, classes)

    def _read(self) -> None:
        path = self.folder / "painting.json"
        value = read_json(path)
        try:
            if value["format"] != FORMAT:
                raise InputError(
                    f"{path}: format {value['format']!r}; this version of latentseg reads {FORMAT}."
                )
            check_keys(value, {"format", "generator", "seed", "classes", "images"}, path)
            self.generator: dict[str, Any] = value["generator"]
            height, width = (int(side) for side in self.generator["size"])
            self.seed = int(value["seed"])
            self.classes = _checked_classes([PartClass(**each) for each in value["classes"]], path)
            images = [_chosen(each) for each in value["images"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptFileError(f"{path}: not the list of a painting ({error!r}).") from error
        self.images = {image.name: image for image in images}
        for name in self.images:
            image = self.folder / "images" / f"{name}.png"
            if not image.is_file():
                raise CorruptFileError(f"{image}: missing, but {path} names it.")
            if size_of(image) != (height, width):
                raise CorruptFileError(
                    f"{image}: {size_of(image)} pixels (height, width); expected {height, width}."
                )
        self.masks = {name: self._open_mask(name) for name in self.images}
        self._read_gallery()

    def _read_gallery(self) -> None:
        path = self.folder / "gallery.json"
        if not path.is_file():
            self.gallery: list[int] = []
            self._drawn = 0
            return
        value = read_json(path)
        try:
            self._drawn = int(value["drawn"])
            self.gallery = [int(seed) for seed in value["seeds"]]
        except (KeyError, TypeError, ValueError) as error:
            raise CorruptFileError(
                f"{path}: not a list of seeds ({error!r}). Delete it; nothing painted is in it."
            ) from error


def start_painting(
    folder: Path | str, generator: Mapping[str, Any], *, seed: int, parts: Sequence[str] = ()
) -> Painting:
    """Begins a painting, or opens the one that is there.

    Args:
        folder: Made if missing.
        generator: The card of the generator, as JSON values.
        seed: Of the images to choose from, when it begins.
        parts: Names of the classes, when it begins; "object" if there are none.

    Raises:
        InputError: the folder holds something else, or a painting of another generator.
        CorruptFileError: its files are damaged.
    """
    folder = Path(folder)
    _finish_change(folder)
    card_of_generator = json.loads(json.dumps(generator))
    if not (folder / "painting.json").exists():
        if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
            raise InputError(
                f"{folder}: not empty, and no painting: painting.json is missing. Choose another."
            )
        classes = _checked_classes(
            [PartClass(name, free_colour(k)) for k, name in enumerate(parts or ("object",))],
            "`parts`",
        )
        with _Change(folder) as change:
            write_json(change.stage("dataset.json"), description(card_of_generator, classes))
            write_json(change.stage("painting.json"), card(card_of_generator, seed, classes, ()))
    painting = Painting(folder)
    for field in ("name", "size", "latent", "sha256", "bank"):
        there, now = painting.generator.get(field), card_of_generator.get(field)
        if there != now:
            raise InputError(
                f"{folder}: painted with another generator: its {field} is {there!r} there, "
                f"{now!r} now. Give the same generator, or choose another folder."
            )
    known = [part.name for part in painting.classes]
    if parts and not set(parts) <= set(known):
        raise InputError(
            f"`parts`: {folder} has the classes {', '.join(known)} already; {' '.join(parts)} "
            "would be for a new painting. Add classes on the page, or leave `parts` out."
        )
    return painting


def gallery_seed(seed: int, index: int) -> int:
    """The seed of the image number `index` to choose from."""
    return int(derive_seeds(seed, index)) % SEEDS


def free_colour(index: int) -> str:
    """A colour "#rrggbb" for the class number `index`, from 0."""
    if index < len(COLOURS):
        return COLOURS[index]
    red, green, blue = class_colors()[(index + 1) % 255].tolist()
    return f"#{red:02x}{green:02x}{blue:02x}"


def card(
    generator: Mapping[str, Any],
    seed: int,
    classes: Sequence[PartClass],
    images: Iterable[ChosenImage],
) -> dict[str, Any]:
    """The content of painting.json."""
    return {
        "format": FORMAT,
        "generator": dict(generator),
        "seed": seed,
        "classes": [{"name": part.name, "colour": part.colour} for part in classes],
        "images": [
            {"name": one.name, "seed": one.seed, "label": one.label, "is_done": one.is_done}
            for one in images
        ],
    }


def description(generator: Mapping[str, Any], classes: Sequence[PartClass]) -> dict[str, Any]:
    """The content of dataset.json."""
    return {
        "classes": [part.name for part in classes],
        "ignore": IGNORE,
        "licence": generator.get("licence", ""),
        "generator": dict(generator),
    }


def _chosen(value: dict[str, Any]) -> ChosenImage:
    name, seed, label, is_done = (value[key] for key in ("name", "seed", "label", "is_done"))
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise ValueError(f"name {name!r}: expected letters, digits, _ and -")
    if type(seed) is not int or type(is_done) is not bool or type(label) not in (int, type(None)):
        raise TypeError(f"image {name}: seed, label or is_done is of a wrong type")
    return ChosenImage(name, seed, label, is_done)


def _checked_classes(classes: Sequence[PartClass], where: Path | str) -> tuple[PartClass, ...]:
    """The classes with tidy names and colours.

    Raises:
        InputError: none or too many, an empty or long name, no colour, or one that occurs twice.
    """
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise InputError(f"{where}: {len(classes)} classes; expected 1 to {MAX_CLASSES}.")
    tidy = []
    for part in classes:
        name, colour = " ".join(str(part.name).split()), str(part.colour).lower()
        if not 1 <= len(name) <= 40 or not name.isprintable():
            raise InputError(f"{where}: class name {name!r}; expected 1 to 40 characters.")
        if not re.fullmatch(r"#[0-9a-f]{6}", colour):
            raise InputError(f'{where}: colour {colour!r} of {name}; expected "#rrggbb".')
        tidy.append(PartClass(name, colour))
    taken = dict.fromkeys(RESERVED_NAMES, "a word of the painter")
    colours = {BACKGROUND: "background", NOT_PAINTED: "not painted"}
    for part in tidy:
        if part.name.lower() in taken:
            raise InputError(
                f"{where}: the name {part.name!r} is taken by {taken[part.name.lower()]}. "
                "Names must differ by more than capitals."
            )
        if part.colour in colours:
            raise InputError(
                f"{where}: {part.name} has the colour {part.colour} of {colours[part.colour]}. "
                "Masks are read by colour, too, so colours must differ."
            )
        taken[part.name.lower()] = colours[part.colour] = f"the class {part.name}"
    return tuple(tidy)


class _Change:
    """Replaces and deletes several files as one, whenever it is killed.

    The new files are written aside; then a plan, from which on the change counts as made; then
    they take their places. Opening the folder goes on where a kill stopped.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.place = folder, folder / STAGE
        self.replaced: list[str] = []
        self.deleted: list[str] = []

    def __enter__(self) -> "_Change":
        shutil.rmtree(self.place, ignore_errors=True)
        return self

    def stage(self, path: str) -> Path:
        """Where to write what is to become `path` in the folder."""
        self.replaced.append(path)
        return self.place / path

    def delete(self, path: str) -> None:
        """Deletes `path` in the folder with the rest of the change."""
        self.deleted.append(path)

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is not None:
            shutil.rmtree(self.place, ignore_errors=True)
            return
        write_json(self.place / PLAN, {"replace": self.replaced, "delete": self.deleted})
        _finish_change(self.folder)


def _finish_change(folder: Path) -> None:
    place = folder / STAGE
    if (place / PLAN).is_file():
        plan = read_json(place / PLAN)
        for path in (*plan["replace"], *plan["delete"]):
            if not re.fullmatch(OWN_FILES, path):  # the folder may come from anywhere
                raise CorruptFileError(f"{place / PLAN}: names {path!r}, no file of a painting.")
        for path in plan["replace"]:
            if (place / path).is_file():  # else it took its place before the kill
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(place / path, folder / path)
        for path in plan["delete"]:
            (folder / path).unlink(missing_ok=True)
        (place / PLAN).unlink()
    shutil.rmtree(place, ignore_errors=True)
