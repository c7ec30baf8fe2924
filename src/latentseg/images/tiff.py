"""TIFF beyond photos: many bands, more than 8 bits, stacks of pages. Read by tifffile."""

import logging
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np

from latentseg.errors import CorruptFileError, InputError
from latentseg.images.kinds import MAX_VALUES, Values, check_pixels

MAX_PAGES = 20_000
REDUCED, MASK = 1, 4  # bits of NewSubfileType: a smaller copy of another page, or its transparency
MIN_IS_WHITE, MIN_IS_BLACK, RGB = 0, 1, 2  # PhotometricInterpretation
GEOGRAPHIC_TAGS = (33550, 33922, 34264, 34735, 42112, 42113)  # GeoTIFF, and those of GDAL
ORIENTATION = 274

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it says, our errors say


@dataclass(frozen=True)
class TiffPage:
    """What the tags of a page say.

    Attributes:
        index: Its number in the file, from 0.
        size: (height, width) as stored, not turned.
        bands: Samples of each pixel.
        is_deep: Whether a sample has more than 8 bits.
        is_colored: Whether its values are no gray or RGB, but indices, CMYK, YCbCr or alike.
        orientation: 1 to 8, as EXIF has it.
        is_geographic: Whether it is a map; then no band of it is transparency.
    """

    index: int
    size: tuple[int, int]
    bands: int
    is_deep: bool
    is_colored: bool
    orientation: int
    is_geographic: bool


def tiff_pages(stream: BinaryIO) -> list[TiffPage]:
    """The pages of a TIFF, without smaller copies and masks of others; all have one size.

    Pages after the first that have another size are previews or attachments, and left out.

    Raises:
        CorruptFileError: it has no page, too many, or one that comes back to another.
    """
    import tifffile

    found: list[TiffPage] = []
    offsets: set[int] = set()
    with tifffile.TiffFile(stream) as file:
        for index, page in enumerate(file.pages):
            if index == MAX_PAGES:
                raise CorruptFileError(f"more than {MAX_PAGES} pages.")
            if page.offset in offsets:
                raise CorruptFileError("its pages go round in a circle.")
            offsets.add(page.offset)
            described = _describe(index, page)
            if described is not None:
                found.append(described)
    if not found:
        raise CorruptFileError("no page with a picture in it.")
    return [page for page in found if page.size == found[0].size]


def _describe(index: int, page: Any) -> TiffPage | None:
    if page.subfiletype & (REDUCED | MASK):
        return None
    orientation = page.tags.get(ORIENTATION)
    return TiffPage(
        index,
        (page.imagelength, page.imagewidth),
        page.samplesperpixel,
        is_deep=page.bitspersample > 8,
        is_colored=page.photometric not in (MIN_IS_WHITE, MIN_IS_BLACK, RGB),
        orientation=orientation.value if orientation is not None else 1,
        is_geographic=any(tag in page.tags for tag in GEOGRAPHIC_TAGS),
    )


def read_tiff(stream: BinaryIO, index: int) -> Values:
    """The values of a page, (H, W) or (H, W, bands), turned upright; black is always low.

    Raises:
        InputError: it is too large, or compressed in a way that needs another package.
        CorruptFileError: it is damaged.
    """
    import tifffile

    with tifffile.TiffFile(stream) as file:
        page: Any = file.pages[index]
        check_pixels(page.imagelength, page.imagewidth)
        n_values = page.imagelength * page.imagewidth * page.samplesperpixel * page.imagedepth
        if n_values > MAX_VALUES:
            raise InputError(f"too large; at most {MAX_VALUES} values are read.")
        try:
            values = page.asarray()
        except ValueError as error:
            if "imagecodecs" not in str(error):
                raise
            raise NeedsCodecs(
                f"compressed by {page.compression.name}, which needs another package: "
                "pip install 'latentseg[tiff]'"
            ) from error
        if page.samplesperpixel > 1 and values.shape[0] == page.samplesperpixel != values.shape[-1]:
            values = np.moveaxis(values, 0, -1)  # stored band by band
        expected = (page.imagelength, page.imagewidth)
        if values.ndim not in (2, 3) or values.shape[:2] != expected:
            raise CorruptFileError(f"a page of shape {values.shape}; expected a picture.")
        if page.photometric == MIN_IS_WHITE:
            values = _flipped(values, int(page.bitspersample))
        orientation = page.tags.get(ORIENTATION)
        return upright(values, orientation.value if orientation is not None else 1)


class NeedsCodecs(InputError):
    """A TIFF is compressed in a way that tifffile decodes only with the package imagecodecs."""


def _flipped(values: Values, bits: int) -> Values:
    if values.dtype.kind != "u":
        return -values
    return (2**bits - 1 - values.astype(np.int64)).astype(values.dtype)


def upright(values: Values, orientation: Any) -> Values:
    """Turns stored pixels (H, W, ...) as an EXIF orientation says."""
    match orientation:
        case 2:
            return values[:, ::-1]
        case 3:
            return values[::-1, ::-1]
        case 4:
            return values[::-1]
        case 5:
            return np.swapaxes(values, 0, 1)
        case 6:
            return np.rot90(values, -1)
        case 7:
            return np.swapaxes(values[::-1, ::-1], 0, 1)
        case 8:
            return np.rot90(values)
        case _:
            return values


def is_transparency(band: Values, *, is_geographic: bool) -> bool:
    """Whether the fourth band of a picture is its transparency, and not infrared or the like.

    GDAL marks any fourth band as transparency, so the mark proves nothing. Transparency is what
    only says all or nothing, and not nothing everywhere; of a map no band is.
    """
    if is_geographic or band.dtype.kind != "u":
        return False
    full = np.iinfo(band.dtype).max
    return bool(((band == 0) | (band == full)).all() and (band == full).any())
