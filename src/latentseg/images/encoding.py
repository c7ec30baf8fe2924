"""Pictures as files: PNG and JPEG, written atomically."""

import io
from pathlib import Path

from PIL import Image

from latentseg.errors import InputError
from latentseg.files import write_bytes
from latentseg.images.drawing import class_colors
from latentseg.images.kinds import Pixels


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
