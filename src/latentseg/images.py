"""Pictures and masks: the only code that decodes, encodes, resizes or composes images."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageDraw, ImageOps, UnidentifiedImageError
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import write_bytes

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
# Of all that Pillow opens: EPS, for one, would start a program. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM")
IGNORE = 255
MAX_PIXELS = 89_000_000  # Pillow only warns between this and twice as many; we refuse

Pixels = NDArray[np.uint8]


def list_images(folder: Path | str) -> list[Path]:
    """All image files directly in `folder`, by name; hidden ones are left out.

    Raises:
        InputError: `folder` is not a folder or holds no image.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    paths = sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )
    if not paths:
        raise InputError(f"{folder}: no images ({', '.join(SUFFIXES)}) in it.")
    return paths


@contextlib.contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """The picture, not yet decoded. Pillow's dozen exceptions become ours, which name the file."""
    try:
        # Not by name: Pillow would map the file, which garbles turned TIFFs (seen in 13.0).
        with open(path, "rb") as stream:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                picture = Image.open(stream, formats=FORMATS)
            if picture.width * picture.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            yield picture
    except MemoryError:
        raise
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: not a file that can be opened ({error.strerror}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path}: too large; at most {MAX_PIXELS} pixels are read.") from error
    except UnidentifiedImageError as error:
        raise CorruptFileError(
            f"{path}: not a readable image (of no format that is read)."
        ) from error
    except Exception as error:
        raise CorruptFileError(f"{path}: not a readable image ({error}).") from error


def read_image(path: Path | str) -> Pixels:
    """Reads a photo upright (EXIF applied), transparency laid over white.

    Of an animation the first frame is read. 16-bit gray is divided by 257.

    Returns:
        (H, W, 3) uint8, RGB, values 0-255.

    Raises:
        InputError: no such file, more pixels than are safe to decode, or pixels that are not
            colors (floating point, or beyond 16 bits).
        CorruptFileError: the file cannot be decoded.
    """
    with _opened(path) as picture:
        return to_image(picture)


def to_image(picture: Image.Image) -> Pixels:
    """An opened picture of any mode as an image, as `read_image` reads it from a file.

    Raises:
        InputError: its pixels are not colors.
    """
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith(("I", "F")):
        return np.dstack([_from_16_bits(picture)] * 3)
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    return np.array(picture.convert("RGB"))


def _from_16_bits(picture: Image.Image) -> Pixels:
    values = np.asarray(picture)
    if picture.mode == "F" or values.min() < 0 or values.max() > 65535:
        raise InputError(
            f"Pixels of type {values.dtype} from {values.min()} to {values.max()} are not "
            "colors. Save them with 8 or 16 bits a channel."
        )
    return (values / 257).round().astype(np.uint8)


def read_mask(path: Path | str) -> Pixels:
    """Reads a mask's raw values: palette indices stay indices, RGB must be gray.

    Gray of 1, 2 or 4 bits is scaled to 0-255, as its format defines: black and white is 0 and 255.

    Returns:
        (H, W) uint8.

    Raises:
        InputError: no such file, or values that are not ids: colors without a palette,
            transparency, fractions, beyond 255. The first such pixel is named.
        CorruptFileError: the file cannot be decoded.
    """
    with _opened(path) as stored:
        picture = ImageOps.exif_transpose(stored)
        if picture.mode == "P":
            return np.array(picture)
        if picture.mode in ("1", "L"):
            return np.array(picture.convert("L"))
        if picture.mode.startswith(("I", "F")):
            values = np.asarray(picture)
            ids = np.nan_to_num(values).clip(0, 255).astype(np.uint8)
            _refuse_pixels(values, ids != values, "is not an id from 0 to 255")
            return ids
        values = np.array(picture.convert("RGBA"))
        _refuse_pixels(values, values[..., 3] < 255, "is transparent")
        is_gray = (values[..., 0] == values[..., 1]) & (values[..., 0] == values[..., 2])
        _refuse_pixels(values, ~is_gray, "is a color, and there is no palette")
        return values[..., 0].copy()


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
    with _opened(path) as stored:
        picture = ImageOps.exif_transpose(stored)
        values = None
        if picture.mode == "P":
            values = np.array(picture)
        elif picture.mode in ("1", "L"):
            values = np.array(picture.convert("L"))
        elif picture.mode.startswith(("I", "F")):
            raise InputError("has no colors. Save it with 8 bits a channel.")
        return StoredColors(values, np.array(picture.convert("RGBA").convert("RGB")))


def _refuse_pixels(values: NDArray[Any], is_wrong: NDArray[np.bool_], reason: str) -> None:
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        raise InputError(
            f"pixel ({row}, {column}) with value {values[row, column].tolist()} {reason}. "
            "A mask holds class ids: save it as 8-bit gray, or with a palette."
        )


def size_of(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file after EXIF rotation, without decoding it.

    Raises:
        InputError: no such file, or more pixels than are safe to decode.
        CorruptFileError: not an image.
    """
    with _opened(path) as picture:
        if picture.format == "TIFF":  # whose width and height Pillow turns itself
            return picture.height, picture.width
        is_turned = picture.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return (picture.width, picture.height) if is_turned else (picture.height, picture.width)


def is_plain(path: Path | str) -> bool:
    """Whether every program reads this file as `read_image` does: an upright photo of 8 bits.

    Raises:
        InputError, CorruptFileError: as `size_of`.
    """
    suffixes = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
    with _opened(path) as picture:
        return (
            Path(path).suffix.lower() in suffixes.get(picture.format or "", ())
            and picture.mode in ("RGB", "L")
            and "transparency" not in picture.info
            and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
        )


def encode(image: Pixels, suffix: str = ".png") -> bytes:
    """Encodes (H, W), (H, W, 3) or (H, W, 4) uint8 as PNG, or without alpha as JPEG of quality 95.

    Raises:
        InputError: `suffix` is neither .png nor .jpg nor .jpeg.
    """
    buffer = io.BytesIO()
    if suffix.lower() in (".jpg", ".jpeg"):
        Image.fromarray(image).save(buffer, "JPEG", quality=95)
    elif suffix.lower() == ".png":
        Image.fromarray(image).save(buffer, "PNG", compress_level=4)
    else:
        raise InputError(f"{suffix!r}: images are written as .png or .jpg.")
    return buffer.getvalue()


def write_image(path: Path | str, image: Pixels) -> None:
    """Writes an image or a mask atomically; the suffix of `path` chooses PNG or JPEG."""
    write_bytes(path, encode(image, Path(path).suffix))


def write_mask(path: Path | str, mask: Pixels) -> None:
    """Writes a mask (H, W) as a PNG with a palette: values are class ids, people see colors.

    Raises:
        InputError: `path` does not end with .png; other formats may change ids.
    """
    if Path(path).suffix.lower() != ".png":
        raise InputError(f"{path}: masks are written as .png; other formats may change class ids.")
    picture = Image.fromarray(mask)
    picture.putpalette(class_colors().tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_bytes(path, buffer.getvalue())


def resize(image: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes a photo (H, W, 3) to `size` = (height, width), bilinear with antialiasing."""
    # Width, then height: which comes first in one call, and so the rounding, Pillow 13 changed.
    picture = Image.fromarray(image).resize((size[1], len(image)), Image.Resampling.BILINEAR)
    return np.array(picture.resize((size[1], size[0]), Image.Resampling.BILINEAR))


def resize_mask(mask: Pixels, size: tuple[int, int]) -> Pixels:
    """Resizes a mask (H, W) to `size` = (height, width) by nearest neighbour: no new values."""
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))


def cover(picture: Pixels, size: tuple[int, int]) -> Pixels:
    """Scales an image or a mask, keeping its aspect, until it covers `size`; cuts out the center.

    Args:
        picture: (H, W, 3) image or (H, W) mask, uint8.
        size: (height, width) of the result.
    """
    height, width = picture.shape[:2]
    scale = max(size[0] / height, size[1] / width)
    scaled = (max(round(height * scale), size[0]), max(round(width * scale), size[1]))
    if scaled != (height, width):
        picture = resize_mask(picture, scaled) if picture.ndim == 2 else resize(picture, scaled)
    top, left = (scaled[0] - size[0]) // 2, (scaled[1] - size[1]) // 2
    # Copied, so that a cache does not hold the whole picture.
    return picture[top : top + size[0], left : left + size[1]].copy()


def to_tensor(image: Pixels) -> Tensor:
    """(..., H, W, 3) uint8 to (..., 3, H, W) float32 in [-1, 1]."""
    # Copied: the array may be read-only, and torch shares memory only with what it may write.
    return torch.from_numpy(np.array(image)).movedim(-1, -3).float() / 127.5 - 1


def to_pixels(x: Tensor) -> Pixels:
    """(..., 3, H, W) float in [-1, 1], clamped, to (..., H, W, 3) uint8 by rounding."""
    scaled = ((x.detach().float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
    return scaled.movedim(-3, -1).contiguous().cpu().numpy()


def overlay(image: Pixels, mask: Pixels, *, strength: float = 0.55) -> Pixels:
    """Lays the classes of `mask` over `image` in color, with a bright outline.

    Args:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8, 0 background; 255 is left out.
        strength: Share of the color inside a class, in [0, 1].
    """
    colors = class_colors()
    painted = image.astype(np.float32)
    inside = (mask > 0) & (mask != IGNORE)
    painted[inside] = (1 - strength) * painted[inside] + strength * colors[mask[inside]]
    edge = np.zeros_like(inside)
    edge[:, 1:] |= mask[:, 1:] != mask[:, :-1]
    edge[1:, :] |= mask[1:, :] != mask[:-1, :]
    painted[edge & inside] = 255
    return painted.round().astype(np.uint8)


def cut_out(image: Pixels, mask: Pixels) -> Pixels:
    """(H, W, 4) uint8: the foreground of `image`, transparent elsewhere."""
    alpha = np.where((mask > 0) & (mask != IGNORE), 255, 0).astype(np.uint8)
    return np.dstack([image, alpha])


def class_colors() -> NDArray[np.uint8]:
    """(256, 3) uint8: a color for each class id; neighboring ids differ strongly in hue."""
    hues = (0.52 + 0.61803398875 * (np.arange(256) - 1)) % 1  # the golden ratio spreads hues evenly
    hsv = np.stack([hues, np.full(256, 0.75), np.full(256, 0.95)], axis=-1)
    picture = Image.frombytes("HSV", (256, 1), (hsv * 255).astype(np.uint8).tobytes())
    colors = np.array(picture.convert("RGB"))[0]
    colors[0] = 0
    return colors


def contact_sheet(
    rows: Sequence[Sequence[Pixels]],
    *,
    titles: Sequence[str] = (),
    cell: tuple[int, int] | None = None,
    gap_px: int = 2,
) -> Pixels:
    """Composes a grid of pictures.

    Args:
        rows: Rows of (H, W, 3) or (H, W) uint8 pictures; a (H, W) mask of ids is shown as 0 / 255.
        titles: A heading for each column.
        cell: (height, width) of a cell; by default the size of the first picture.
        gap_px: White space between cells.

    Returns:
        (H, W, 3) uint8.
    """
    height, width = cell or rows[0][0].shape[:2]
    heading_px = 14 if titles else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new(
        "RGB",
        (columns * (width + gap_px) + gap_px, len(rows) * (height + gap_px) + gap_px + heading_px),
        "white",
    )
    for column, title in enumerate(titles):
        ImageDraw.Draw(sheet).text((column * (width + gap_px) + gap_px, 1), title, fill="black")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            shown = np.where(picture > 0, 255, 0).astype(np.uint8) if picture.ndim == 2 else picture
            tile = Image.fromarray(shown).convert("RGB")
            if tile.size != (width, height):
                tile = tile.resize((width, height), Image.Resampling.BILINEAR)
            corner = (gap_px + x * (width + gap_px), heading_px + gap_px + y * (height + gap_px))
            sheet.paste(tile, corner)
    return np.array(sheet)
