"""What files of pictures there are, told by their names and by their first bytes."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.errors import InputError

MEDICAL_SUFFIXES = (".dcm", ".dicom", ".nii", ".nii.gz")
STACK_SUFFIXES = (".tif", ".tiff", *MEDICAL_SUFFIXES)  # that may hold many pictures
SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".ppm", ".pgm", ".pnm"),
    *MEDICAL_SUFFIXES,
)
# Pictures that are not read. They are named, so that nobody misses them in the result.
OTHER_SUFFIXES = (
    *(".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf", ".psd", ".svg", ".jp2"),
    *(".j2k", ".jxl", ".exr", ".hdr", ".tga", ".ico"),
)
IGNORE = 255
MAX_PIXELS = 89_000_000  # Pillow only warns between this and twice as many; we refuse
MAX_VALUES = 2**29  # of a page with many bands, or of a volume
HEAD_BYTES = 352  # so many first bytes tell any kind

HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1", b"heif")
TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

Pixels = NDArray[np.uint8]
Values = NDArray[Any]


@dataclass(frozen=True)
class Stored:
    """A picture as its file holds it, upright: more than 8 bits, or the unit of an instrument.

    Attributes:
        values: (H, W), or (H, W, 3) for red, green and blue; integers or floats.
        opacity: (H, W) float32, 0 where the picture is transparent, 1 elsewhere; None: everywhere.
        window: (black, white), the values that the file itself names, or None.
        is_inverted: Whether low values are meant to be bright.
    """

    values: Values
    opacity: NDArray[np.float32] | None = None
    window: tuple[float, float] | None = None
    is_inverted: bool = False


def is_tiff(head: bytes) -> bool:
    """Whether a file that begins with `head` is a TIFF."""
    return head[:4] in TIFF_MAGIC


def is_heif(head: bytes) -> bool:
    """Whether a file that begins with `head` is a HEIC photo. AVIF has the same container."""
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS and b"avif" not in head[8:40]


def is_dicom(head: bytes) -> bool:
    """Whether a file that begins with `head` is DICOM."""
    return head[128:132] == b"DICM"


def is_nifti(head: bytes, name: str) -> bool:
    """Whether a file that begins with `head` is NIfTI; a compressed one is told by its name."""
    is_plain = head[344:348] in (b"n+1\0", b"ni1\0") or head[4:8] == b"n+2\0"
    return is_plain or (name.lower().endswith(".nii.gz") and head[:2] == b"\x1f\x8b")


def is_deep_png(head: bytes) -> bool:
    """Whether a file that begins with `head` is a PNG of 16 bits a channel."""
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24:25] == b"\x10"


def check_pixels(height: int, width: int) -> None:
    """Refuses more pixels than are safe to decode.

    Raises:
        InputError: there are more.
    """
    if height * width > MAX_PIXELS:
        raise InputError(f"too large; at most {MAX_PIXELS} pixels are read.")
