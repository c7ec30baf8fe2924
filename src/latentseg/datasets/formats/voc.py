"""PASCAL VOC, and CVAT's "Segmentation mask": photos beside masks in the colors of labelmap.txt."""

from collections.abc import Collection
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.descriptions import Facts, read_description
from latentseg.datasets.formats.writing import Format, Record, Sample, Target
from latentseg.datasets.groupings import BACKGROUND
from latentseg.datasets.listings import Listing, Pair, pair_by_stem, plain_layout
from latentseg.datasets.mask_values import check_classes, class_ids
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_text, write_text
from latentseg.images import IGNORE, Pixels, class_colors, read_colors, write_mask

IMAGES, MASKS = "JPEGImages", "SegmentationClass"
LIST = "ImageSets/Segmentation/train.txt"
COLORS = "labelmap.txt"
VOID = (224, 224, 192)  # the border around objects in PASCAL VOC, which does not count

Color = tuple[int, int, int]


# Writing


def _write(target: Target, sample: Sample) -> Record:
    write_mask(target.folder / MASKS / f"{sample.name}.png", sample.mask)
    return {"name": sample.name}


def _finish(target: Target, records: Collection[Record]) -> Facts:
    """The list of photos, and the names and colors of the classes as CVAT has them.

    Raises:
        InputError: a name that this file cannot hold.
    """
    if odd := [n for n in target.classes if ":" in n or n.startswith("#") or n != n.strip()]:
        raise InputError(f"{COLORS}: cannot hold the class {odd[0]!r}; rename it, or take folder.")
    write_text(target.folder / LIST, "".join(f"{record['name']}\n" for record in records))
    names = (BACKGROUND, *target.classes)
    rows = [
        f"{name}:{','.join(map(str, color))}::"
        for name, color in zip(names, class_colors().tolist(), strict=False)
    ]
    text = "\n".join(["# label:color_rgb:parts:actions", *rows]) + "\n"
    write_text(target.folder / COLORS, text)
    return {}


# Reading


@dataclass(frozen=True)
class LabelMap:
    """The lines of a labelmap.txt.

    Attributes:
        names: As they stand there.
        colors: Of each line; None where it gives none.
        background: The number of the background's line; None if no line is it.
    """

    names: tuple[str, ...]
    colors: tuple[Color | None, ...]
    background: int | None

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return tuple(name for k, name in enumerate(self.names) if k != self.background)

    @property
    def ids(self) -> NDArray[np.uint8]:
        """The class id of each line."""
        ids = [k for k in range(len(self.names)) if k != self.background]
        found = np.zeros(len(self.names), np.uint8)
        found[ids] = np.arange(1, len(ids) + 1)
        return found

    @property
    def id_of_color(self) -> dict[Color, int]:
        """The class id of each color; what no line names and what is void is there, too."""
        named = zip(self.colors, self.ids.tolist(), strict=True)
        return {VOID: IGNORE, (0, 0, 0): 0, **{color: k for color, k in named if color}}


def read_label_map(path: Path) -> LabelMap:
    """Reads lines of NAME:R,G,B:parts:actions, in any order.

    Raises:
        InputError: there is no such file.
        CorruptFileError: a line is wrong, or the names are no classes.
    """
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; it names the classes, one in a line.")
    rows = [row.strip() for row in read_text(path).splitlines()]
    fields = [row.split(":") for row in rows if row and not row.startswith("#")]
    names = tuple(field[0].strip() for field in fields)
    colors = tuple(_color(field[1] if len(field) > 1 else "", path) for field in fields)
    background = next((k for k, name in enumerate(names) if name.lower() == BACKGROUND), None)
    if background is None and colors[:1] in (((0, 0, 0),), (None,)):
        background = 0  # where the file gives it another name, it is the first line
    found = LabelMap(names, colors, background)
    check_classes(found.classes, path)
    return found


def _color(text: str, path: Path) -> Color | None:
    if not text.strip():
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(p.strip().isascii() and p.strip().isdecimal() for p in parts):
        raise CorruptFileError(f"{path}: the color {text[:40]!r}: expected R,G,B.")
    red, green, blue = (int(part[:9]) for part in parts)
    if max(red, green, blue) > 255:
        raise CorruptFileError(f"{path}: the color {text[:40]!r}: expected values up to 255.")
    return red, green, blue


def _find(folder: Path) -> Listing | None:
    if not (folder / IMAGES).is_dir() or not (folder / MASKS).is_dir():
        return None
    labels = read_label_map(folder / COLORS)
    pairs, problems = pair_by_stem(folder, folder / IMAGES, folder / MASKS, needs_masks=False)
    return Listing(
        folder.absolute().name,
        folder,
        pairs,
        problems,
        meaning=class_ids(labels.classes),
        facts=read_description(folder).facts,
        read_mask=partial(_read_mask, labels),
    )


def _read_mask(labels: LabelMap, pair: Pair) -> Pixels:
    """The class ids of a mask in colors, or of one that holds the numbers of lines.

    Raises:
        InputError: a color or a number is that of no line; the first such pixel is named.
    """
    stored = read_colors(pair.mask)
    if stored.values is None or _is_by_color(labels, stored.values, stored.colors):
        return _ids_by_color(labels.id_of_color, stored.colors, pair.mask)
    ids = np.full(256, -1, np.int16)
    ids[: len(labels.names)] = labels.ids
    ids[IGNORE] = IGNORE
    found = ids[stored.values]
    if (wrong := found < 0).any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{pair.mask}: pixel ({row}, {column}) has the value {stored.values[row, column]}, "
            f"but {COLORS} has {len(labels.names)} lines."
        )
    return found.astype(np.uint8)


def _is_by_color(labels: LabelMap, values: Pixels, colors: Pixels) -> bool:
    """Whether the colors of a mask with numbers tell its classes: its palette has another order."""
    used, first = np.unique(values, return_index=True)
    shown: list[Color] = [tuple(color) for color in colors.reshape(-1, 3)[first].tolist()]
    is_gray = all(color == (value,) * 3 for value, color in zip(used.tolist(), shown, strict=True))
    if is_gray:
        return int(used[used != IGNORE].max(initial=0)) >= len(labels.names)
    lines = [labels.colors[v] if v < len(labels.colors) else None for v in used.tolist()]
    return lines != shown and all(color in labels.id_of_color for color in shown)


def _ids_by_color(id_of: dict[Color, int], colors: Pixels, path: Path) -> Pixels:
    code = colors.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    used, inverse = np.unique(code, return_inverse=True)
    ids = [id_of.get((c >> 16, c >> 8 & 255, c & 255), -1) for c in used.tolist()]
    found = np.array(ids, np.int16)[inverse].reshape(code.shape)
    if (wrong := found < 0).any():
        row, column = np.argwhere(wrong)[0]
        raise InputError(
            f"{path}: pixel ({row}, {column}) has the color {colors[row, column].tolist()}, which "
            f"{COLORS} does not name."
        )
    return found.astype(np.uint8)


LAYOUT = plain_layout("PASCAL VOC and CVAT masks", f"{IMAGES}, {MASKS} and {COLORS}", _find)
FORMAT = Format("voc", IMAGES, _write, _finish)
