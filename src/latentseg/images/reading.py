"""Reads pictures of all kinds: photos, stacks, maps of many bands, slices of a body."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps

from latentseg.errors import InputError
from latentseg.images.extras import needed
from latentseg.images.kinds import Pixels, Stored, Values, is_deep_png
from latentseg.images.medical import dicom_frames, nifti_slices, read_dicom, read_nifti
from latentseg.images.opening import PictureFile, by_pillow, opened
from latentseg.images.tiff import (
    NeedsCodecs,
    TiffPage,
    is_transparency,
    read_tiff,
    tiff_pages,
    upright,
)
from latentseg.images.value_range import over_white, to_8_bits

DARK = 64  # high bytes below it hold at most 14 bits


@dataclass(frozen=True)
class Reading:
    """How pictures become images where there is a choice.

    Attributes:
        range: The values (black, white) of pictures of more than 8 bits. None: `choose_range`, for
            each picture alone; `with_range` chooses one for many.
        bands: Which bands of a TIFF are red, green and blue, or the only one that is seen; the
            first is 1. None: the first three of up to four.
        page: Which page of a stack is read; the first is 1. None: all of them, one picture each.

    Raises:
        InputError: an attribute is out of its range.
    """

    range: tuple[float, float] | None = None
    bands: tuple[int, ...] | None = None
    page: int | None = None

    def __post_init__(self) -> None:
        ends = self.range
        if ends is not None and not (all(map(math.isfinite, ends)) and ends[0] < ends[1]):
            raise InputError(f"`range`: expected two numbers, black < white, found {ends}.")
        if self.bands is not None and (len(self.bands) not in (1, 3) or min(self.bands) < 1):
            raise InputError(f"`bands`: expected one or three numbers from 1, found {self.bands}.")
        if self.page is not None and self.page < 1:
            raise InputError(f"`page`: expected a number from 1, found {self.page}.")

    @property
    def chosen(self) -> dict[str, int | list[float] | list[int]]:
        """What differs from the defaults, as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value is not None
        }


PLAIN = Reading()


def read_image(path: Path | str, reading: Reading = PLAIN, page: int | None = None) -> Pixels:
    """Reads a photo upright (EXIF applied), transparency laid over white.

    Of an animation the first frame is read. Pictures of more than 8 bits, and those in the unit of
    an instrument, are scaled: `Reading.range`. The fourth band of a TIFF is infrared unless it
    can only be transparency.

    Args:
        path: The file.
        reading: How it becomes an image where there is a choice.
        page: Which page of a stack, of `pages_of`; None: that of `reading`, or the first.

    Returns:
        (H, W, 3) uint8, RGB, values 0-255.

    Raises:
        InputError: no such file, more pixels than are safe to decode, bands that are not said to
            be colors, or a package is missing.
        CorruptFileError: the file cannot be decoded.
    """
    with opened(path) as file:
        return _image(file, reading, page)


def decode_image(content: bytes, where: str, reading: Reading = PLAIN) -> Pixels:
    """As `read_image`, of the content of a file; `where` it is from, for messages."""
    with opened(content, where) as file:
        return _image(file, reading, None)


def to_image(picture: Image.Image) -> Pixels:
    """An opened picture of any mode as an image, as `read_image` reads it from a file."""
    found = _from_pillow(picture)
    return to_8_bits(found, None) if isinstance(found, Stored) else found


def read_stored(path: Path | str, reading: Reading, page: int | None = None) -> Stored | None:
    """The values of a picture of more than 8 bits; None if it is another.

    Raises:
        InputError, CorruptFileError: as `read_image`.
    """
    with opened(path) as file:
        found = read_file(file, reading, page)
        return found if isinstance(found, Stored) else None


def _image(file: PictureFile, reading: Reading, page: int | None) -> Pixels:
    found = read_file(file, reading, page)
    return to_8_bits(found, reading.range) if isinstance(found, Stored) else found


def read_file(file: PictureFile, reading: Reading, page: int | None) -> Stored | Pixels:
    """The values of a picture of more than 8 bits, or the image of any other."""
    if page is None:
        page = (reading.page or 1) - 1
    if file.is_tiff:
        return _read_tiff(file, reading, page)
    if file.is_dicom:
        check_page(page, dicom_frames(file.stream))
        file.stream.seek(0)
        return read_dicom(file.stream, page)
    if file.is_nifti:
        path = Path(file.name)
        check_page(page, nifti_slices(path))
        return read_nifti(path, page)
    with by_pillow(file) as picture:
        if is_deep_png(file.head) and picture.mode != "I;16":
            return _deep_png(file.stream, picture)
        return _from_pillow(picture)


def check_page(page: int, count: int) -> None:
    """Raises InputError where a file has pages, but not that one, from 0."""
    if page >= count > 1:
        raise InputError(f"`page`: expected 1 to {count}, found {page + 1}.")


def _from_pillow(picture: Image.Image) -> Stored | Pixels:
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        values = np.asarray(picture)
        if picture.mode == "I" and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)  # what has 16 bits unsigned Pillow opens so, too
        return Stored(values)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _deep_png(stream: BinaryIO, picture: Image.Image) -> Stored | Pixels:
    """A PNG of 16 bits with colors or transparency, of which Pillow keeps the high bytes.

    Raises:
        InputError: the low ones are needed, and imagecodecs is missing, which reads them.
    """
    high = _from_pillow(picture)
    try:
        codecs = needed("imagecodecs", "tiff")
    except InputError:
        if isinstance(high, Stored) or high.max(initial=0) >= DARK:
            return high
        raise
    stream.seek(0)
    values = upright(
        np.asarray(codecs.png_decode(stream.read())),
        picture.getexif().get(ExifTags.Base.Orientation, 1),
    )
    if values.ndim == 2:
        return Stored(values)
    n_colors = values.shape[2] - 1 if values.shape[2] in (2, 4) else values.shape[2]
    opacity = (values[..., -1] / 65535).astype(np.float32) if n_colors < values.shape[2] else None
    return Stored(values[..., 0] if n_colors == 1 else values[..., :3], opacity)


# TIFF


def _read_tiff(file: PictureFile, reading: Reading, page: int) -> Stored | Pixels:
    pages = tiff_pages(file.stream)
    check_page(page, len(pages))
    chosen = pages[min(page, len(pages) - 1)]
    is_photo = not chosen.is_deep and chosen.bands <= 3 and reading.bands is None
    if chosen.is_colored or is_photo:
        with by_pillow(file, chosen.index) as picture:
            return _from_pillow(picture)
    values, opacity = _bands(_tiff_values(file, chosen), chosen, reading)
    if chosen.is_deep:
        return Stored(values, opacity)
    image = over_white(values, opacity)
    return np.dstack([image] * 3) if image.ndim == 2 else image


def _tiff_values(file: PictureFile, page: TiffPage) -> Values:
    file.stream.seek(0)
    try:
        return read_tiff(file.stream, page.index)
    except NeedsCodecs:
        with by_pillow(file, page.index) as picture:
            values = np.asarray(ImageOps.exif_transpose(picture))
        n_bands = 1 if values.ndim == 2 else values.shape[2]
        if n_bands != page.bands or (page.is_deep and values.dtype.itemsize == 1):
            raise
        return values


def _bands(values: Values, page: TiffPage, reading: Reading) -> tuple[Values, Values | None]:
    """The bands that are seen, (H, W) or (H, W, 3), and how opaque the picture is.

    Raises:
        InputError: nobody says which they are, or there is no such band.
    """
    values = values[..., None] if values.ndim == 2 else values
    count = values.shape[2]
    if reading.bands is not None:
        if max(reading.bands) > count:
            raise InputError(f"`bands`: expected 1 to {count}, found {max(reading.bands)}.")
        chosen = values[..., [band - 1 for band in reading.bands]]
        return (chosen[..., 0] if len(reading.bands) == 1 else chosen), None
    if count > 4:
        raise InputError(
            f"has {count} bands of {values.dtype}; which of them are red, green and blue has to be "
            "said: `bands`, such as 3 2 1."
        )
    seen = values[..., 0] if count <= 2 else values[..., :3]
    if count in (2, 4) and is_transparency(values[..., -1], is_geographic=page.is_geographic):
        return seen, (values[..., -1] > 0).astype(np.float32)
    return seen, None
