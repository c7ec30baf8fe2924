"""Painting elsewhere: images and masks for any editor, and masks back from it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from latentseg.app.painting import BACKGROUND, NOT_PAINTED, Painting
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.files import atomic, locked, read_bytes, read_json, write_bytes, write_json
from latentseg.images import IGNORE, SUFFIXES, Pixels, class_colours, read_image, read_mask

CLASSES = "classes.json"
SHOWN = 6  # unknown values that are named per file


@dataclass(frozen=True)
class Exchanged:
    """What was exported or imported.

    Attributes:
        names: Of the images.
        painted: Share of each that is painted, in [0, 1].
    """

    names: tuple[str, ...]
    painted: tuple[float, ...]


def export_painting(painting: Path | str, out: Path | str) -> Exchanged:
    """Writes images/NAME.png, masks/NAME.png with a palette, and classes.json.

    The masks are what is painted so far. Their palette has the colours of the classes; index and
    colour both tell the class, so an editor may keep either.

    Raises:
        InputError: `painting` is none or is in use, or `out` holds files of another kind.
        CorruptFileError: the painting is damaged.
    """
    painting, out = Path(painting), Path(out)
    _need(painting)
    if out.is_dir() and any(out.iterdir()) and not (out / CLASSES).is_file():
        raise InputError(f"{out}: not empty, and no earlier export. Choose another folder.")
    with locked(painting):
        opened = Painting(painting)
        if not opened.images:
            raise InputError(
                f"{painting}: no images are chosen yet, so there is nothing to export."
            )
        palette = _palette(opened)
        for name, mask in opened.masks.items():
            image = read_bytes(painting / "images" / f"{name}.png")
            write_bytes(out / "images" / f"{name}.png", image)
            _write_with_palette(out / "masks" / f"{name}.png", mask.pixels, palette)
        write_json(out / CLASSES, {"classes": _table(opened)})
        return _exchanged(opened, list(opened.images))


def import_masks(painting: Path | str, folder: Path | str) -> Exchanged:
    """Takes the PNG masks of `folder`, or of masks/ in it, into a painting, each as one stroke.

    A mask goes to the image of its stem. Its pixels are read by colour, where all colours are
    those of classes, else by value, where all values are class ids; a palette of latentseg's own
    is always read by value. Black is background, white is not painted. Colours and ids are those of
    classes.json in `folder`, by the names of the classes, else those of the painting.

    Raises:
        InputError: something does not fit: everything that does not is listed, and nothing was
            changed. Or `painting` is none or is in use.
        CorruptFileError: the painting is damaged.
    """
    painting, folder = Path(painting), Path(folder)
    _need(painting)
    with locked(painting):
        opened = Painting(painting)
        masks, problems = _read_all(opened, folder)
        if problems:
            listed = "\n  ".join(problems)
            count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
            raise InputError(f"{folder}: {count}, so nothing was changed:\n  {listed}")
        for name, mask in masks.items():
            opened.masks[name].paint(mask, "import")
        return _exchanged(opened, list(masks))


def _need(painting: Path) -> None:
    # Before the lock, which would make the folder.
    if not painting.is_dir():
        raise InputError(f"{painting}: there is no such painting.")


def _exchanged(painting: Painting, names: list[str]) -> Exchanged:
    return Exchanged(tuple(names), tuple(painting.painted_share(name) for name in names))


def _table(painting: Painting) -> list[dict[str, Any]]:
    named = [(part.name, part.colour) for part in painting.classes]
    rows = [("background", BACKGROUND), *named]
    table = [{"id": i, "name": name, "colour": colour} for i, (name, colour) in enumerate(rows)]
    return [*table, {"id": IGNORE, "name": "not painted", "colour": NOT_PAINTED}]


def _palette(painting: Painting) -> NDArray[np.uint8]:
    palette = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)
    for row in _table(painting):
        palette[row["id"]] = tuple(bytes.fromhex(row["colour"][1:]))
    return palette


def _write_with_palette(path: Path, mask: Pixels, palette: NDArray[np.uint8]) -> None:
    picture = Image.fromarray(mask)
    picture.putpalette(palette.tobytes())
    with atomic(path) as temporary:
        picture.save(temporary, "PNG")


def _read_all(painting: Painting, folder: Path) -> tuple[dict[str, Pixels], list[str]]:
    """The masks by name, and everything that does not fit."""
    place = folder / "masks" if (folder / "masks").is_dir() else folder
    if not place.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    paths = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    paths = [path for path in paths if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise InputError(f"{place}: no masks (.png) in it.")
    meaning, problems = _meaning(painting, folder)
    masks: dict[str, Pixels] = {}
    for path in paths:
        where = path.relative_to(folder)
        if path.suffix.lower() != ".png":
            problems.append(f"{where}: not a PNG; other formats change colours. Save it as PNG.")
        elif path.stem not in painting.images:
            known = ", ".join(list(painting.images)[:4]) + (", ..." * (len(painting.images) > 4))
            problems.append(f"{where}: the painting has no image {path.stem} (it has {known}).")
        elif path.stem in masks:
            problems.append(f"{where}: a second mask of {path.stem}.")
        else:
            try:
                masks[path.stem] = _read(path, painting.size, meaning)
            except LatentsegError as error:
                problems.extend(f"{where}: {line}" for line in str(error).split("\n"))
    return masks, problems


@dataclass(frozen=True)
class _Meaning:
    """What masks mean: the class id of the painting for each colour, and for each value."""

    colours: Mapping[tuple[int, ...], int]
    values: Mapping[int, int]


def _meaning(painting: Painting, folder: Path) -> tuple[_Meaning, list[str]]:
    ids = {row["name"].lower(): row["id"] for row in _table(painting)}
    table, problems = _table(painting), []
    path = folder / CLASSES
    if path.is_file():
        table = _read_table(path)
        for row in table:
            if row["name"].lower() not in ids:
                names = ", ".join(part.name for part in painting.classes)
                problems.append(
                    f"{CLASSES}: the painting has no class {row['name']!r}, but {names}."
                )
    known = [row for row in table if row["name"].lower() in ids]
    colours = {tuple(bytes.fromhex(r["colour"][1:])): ids[r["name"].lower()] for r in known}
    values = {row["id"]: ids[row["name"].lower()] for row in known}
    return _Meaning({(0, 0, 0): 0, (255, 255, 255): IGNORE} | colours, values), problems


def _read_table(path: Path) -> list[dict[str, Any]]:
    value = read_json(path)
    table = value.get("classes") if isinstance(value, dict) else None
    is_right = isinstance(table, list) and all(
        isinstance(row, dict)
        and type(row.get("id")) is int
        and isinstance(row.get("name"), str)
        and _is_colour(row.get("colour"))
        for row in table
    )
    if not is_right or not table:
        raise CorruptFileError(
            f'{path}: expected {{"classes": [{{"id": 1, "name": "hair", "colour": "#e8563a"}}]}}.'
        )
    return table


def _is_colour(value: Any) -> bool:
    digits = value[1:].lower() if isinstance(value, str) and len(value) == 7 else ""
    return len(digits) == 6 and value[0] == "#" and set(digits) <= set("0123456789abcdef")


def _read(path: Path, size: tuple[int, int], meaning: _Meaning) -> Pixels:
    """A mask as ids of the painting.

    Raises:
        InputError: another size, or unknown colours and values; one line for each.
        CorruptFileError: not readable.
    """
    colours = read_image(path)
    if colours.shape[:2] != size:
        raise InputError(
            f"{colours.shape[0]} x {colours.shape[1]} pixels; its image has {size[0]} x {size[1]} "
            "(height x width). Save it unscaled."
        )
    by_colour = _by_colour(colours, meaning)
    values = _values(path)
    by_value = None if values is None else _by_value(values, meaning)
    if values is not None and by_value is not None and _is_own(values, colours):
        return by_value
    if by_colour is not None:
        return by_colour
    if by_value is not None:
        return by_value
    raise InputError("\n".join(_unknown(colours, values, meaning)))


def _values(path: Path) -> Pixels | None:
    try:
        return read_mask(path)
    except InputError:
        return None  # colours without a palette: the colours tell


def _is_own(values: Pixels, colours: Pixels) -> bool:
    """Whether the palette is that of `write_mask`, whose colours say nothing."""
    return bool((class_colours()[values] == colours).all())


def _by_colour(colours: Pixels, meaning: _Meaning) -> Pixels | None:
    mask = np.full(colours.shape[:2], IGNORE, np.uint8)
    is_known = np.zeros(mask.shape, bool)
    for colour, number in meaning.colours.items():
        here = (colours == np.array(colour, np.uint8)).all(axis=-1)
        mask[here] = number
        is_known |= here
    return mask if is_known.all() else None


def _by_value(values: Pixels, meaning: _Meaning) -> Pixels | None:
    ids = np.full(256, -1, np.int16)
    for value, number in meaning.values.items():
        if 0 <= value <= 255:
            ids[value] = number
    mask = ids[values]
    return None if (mask < 0).any() else mask.astype(np.uint8)


def _unknown(colours: Pixels, values: Pixels | None, meaning: _Meaning) -> list[str]:
    """A line for each colour, or value of a grey or palette mask, that is no class."""
    flat = colours.reshape(-1, 3).astype(np.int64) @ np.array([65536, 256, 1])
    known = [(r << 16) + (g << 8) + b for r, g, b in meaning.colours]
    is_grey = values is not None and bool((colours == values[..., None]).all())
    if is_grey and values is not None:
        flat, known = values.reshape(-1).astype(np.int64), list(meaning.values)
    found, first, counts = np.unique(flat, return_index=True, return_counts=True)
    wrong = [i for i in np.argsort(-counts) if int(found[i]) not in known]
    lines = []
    for i in wrong[:SHOWN]:
        row, column = divmod(int(first[i]), colours.shape[1])
        what = f"value {found[i]}" if is_grey else f"colour #{int(found[i]):06x}"
        lines.append(f"{what} is no class (first at pixel ({row}, {column}), {counts[i]} in all)")
    if len(wrong) > SHOWN:
        lines.append(
            f"and {len(wrong) - SHOWN} more; so many come from soft brushes or smoothing: paint "
            "with a hard pencil"
        )
    return lines
