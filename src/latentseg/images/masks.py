"""Reads masks: their values as they are, at half of white, or their colors."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from latentseg.errors import InputError
from latentseg.images.headers import holds_values
from latentseg.images.kinds import Pixels, Stored, Values
from latentseg.images.opening import PictureFile, by_pillow, opened
from latentseg.images.reading import PLAIN, read_file
from latentseg.images.tiff import tiff_pages
from latentseg.images.value_range import to_8_bits


def read_mask(path: Path | str, page: int | None = None) -> Pixels:
    """Reads a mask's raw values: palette indices stay indices, RGB must be gray.

    Gray of 1, 2 or 4 bits is scaled to 0-255, as its format defines: black and white is 0 and 255.

    Args:
        path: The file.
        page: Which page of a stack, of `pages_of`; None: the first.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: no such file, or values that are not ids: colors without a palette,
            transparency, fractions, beyond 255. The first such pixel is named.
        CorruptFileError: the file cannot be decoded.
    """
    with opened(path) as file:
        return _mask(file, page or 0)


def decode_mask(content: bytes, where: str) -> Pixels:
    """As `read_mask`, of the content of a file; `where` it is from, for messages."""
    with opened(content, where) as file:
        return _mask(file, 0)


def _mask(file: PictureFile, page: int) -> Pixels:
    if file.is_dicom or file.is_nifti:
        found = read_file(file, PLAIN, page)
        return _ids(found.values if isinstance(found, Stored) else found)
    number = tiff_pages(file.stream)[page].index if page and file.is_tiff else 0
    with by_pillow(file, number) as stored:
        picture = ImageOps.exif_transpose(stored)
        if picture.mode == "P":
            return np.array(picture)
        if picture.mode in ("1", "L"):
            return np.array(picture.convert("L"))
        if picture.mode.startswith(("I", "F")):
            return _ids(np.asarray(picture))
        values = np.array(picture.convert("RGBA"))
        _refuse_pixels(values, values[..., 3] < 255, "is transparent")
        is_gray = (values[..., 0] == values[..., 1]) & (values[..., 0] == values[..., 2])
        _refuse_pixels(values, ~is_gray, "is a color, and there is no palette")
        return values[..., 0].copy()


def _ids(values: Values) -> Pixels:
    ids = np.nan_to_num(values).clip(0, 255).astype(np.uint8)
    _refuse_pixels(values, ids != values, "is not an id from 0 to 255")
    return ids


def _refuse_pixels(values: Values, is_wrong: Values, reason: str) -> None:
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        raise InputError(
            f"pixel ({row}, {column}) with value {values[row, column].tolist()} {reason}. "
            "A mask holds class ids: save it as 8-bit gray, or with a palette."
        )


def read_halves(path: Path | str, page: int | None = None) -> Pixels:
    """Reads a mask with soft edges: what is brighter than half of white is 255, all else 0.

    Transparency is black. For masks that a brush, a resampling or JPEG has made gray at the edges.

    Returns:
        (H, W) uint8.

    Raises:
        InputError, CorruptFileError: as `read_image`.
    """
    with opened(path) as file:
        found = read_file(file, PLAIN, page) if holds_values(file) else None
        if isinstance(found, Stored):
            gray = to_8_bits(found, None)[..., 0]
        else:
            with by_pillow(file) as stored:
                picture = ImageOps.exif_transpose(stored).convert("RGBA")
                black = Image.new("RGBA", picture.size, "black")
                gray = np.array(Image.alpha_composite(black, picture).convert("L"))
        return np.where(gray > 127, 255, 0).astype(np.uint8)


def read_cutout(content: bytes, where: str) -> Values:
    """Reads a mask that tools store as a cut-out: what is opaque; without transparency, not black.

    Args:
        content: Of a file of a picture.
        where: It is from; for messages.

    Returns:
        (H, W) bool.

    Raises:
        InputError, CorruptFileError: as `read_image`.
    """
    with opened(content, where) as file, by_pillow(file) as picture:
        colors = np.array(picture.convert("RGBA"))
        if picture.has_transparency_data:
            return colors[..., 3] > 0
        return (colors[..., :3] > 0).max(axis=-1)


@dataclass(frozen=True)
class StoredColors:
    """A mask as it is stored.

    Attributes:
        values: (H, W) uint8, the gray values or the indices into a palette; None for colors.
        colors: (H, W, 3) uint8, what people see.
    """

    values: Pixels | None
    colors: Pixels


def read_colors(path: Path | str) -> StoredColors:
    """Reads a mask whose colors mean something; transparency is left out.

    Raises:
        InputError, CorruptFileError: as `read_image`.
    """
    with opened(path) as file, by_pillow(file) as stored:
        picture = ImageOps.exif_transpose(stored)
        values = None
        if picture.mode == "P":
            values = np.array(picture)
        elif picture.mode in ("1", "L"):
            values = np.array(picture.convert("L"))
        elif picture.mode.startswith(("I", "F")):
            raise InputError("has no colors. Save it with 8 bits a channel.")
        return StoredColors(values, np.array(picture.convert("RGBA").convert("RGB")))
