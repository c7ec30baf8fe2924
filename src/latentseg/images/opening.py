"""Opens files of pictures, by Pillow where it can, and turns what goes wrong into our errors."""

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import open_regular
from latentseg.images.extras import needed
from latentseg.images.kinds import (
    HEAD_BYTES,
    MAX_PIXELS,
    check_pixels,
    is_dicom,
    is_heif,
    is_nifti,
    is_tiff,
)

# Of all that Pillow opens: EPS, for one, would start a program. JPEG includes MPO.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "AVIF")


@dataclass(frozen=True)
class PictureFile:
    """A file that is open.

    Attributes:
        stream: At its beginning.
        name: Its path, or where its content is from; for messages.
        head: Its first bytes.
    """

    stream: BinaryIO
    name: str
    head: bytes

    @property
    def is_tiff(self) -> bool:
        """Whether it is a TIFF."""
        return is_tiff(self.head)

    @property
    def is_dicom(self) -> bool:
        """Whether it is DICOM."""
        return is_dicom(self.head)

    @property
    def is_nifti(self) -> bool:
        """Whether it is NIfTI."""
        return is_nifti(self.head, self.name)


@contextlib.contextmanager
def opened(source: Path | str | bytes, name: str = "") -> Iterator[PictureFile]:
    """A file, or its content. What its decoders raise, of dozens of types, becomes ours."""
    where = name or str(source)
    try:
        # Not by name: Pillow would map the file, which garbles turned TIFFs (seen in 13.0).
        content = io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)
        with content as stream:
            head = stream.read(HEAD_BYTES)
            stream.seek(0)
            yield PictureFile(stream, where, head)
    except MemoryError:
        raise
    except InputError as error:
        text = str(error)
        raise InputError(text if text.startswith(where) else f"{where}: {text}") from error
    except FileNotFoundError as error:
        raise InputError(f"{where}: there is no such file.") from error
    except (IsADirectoryError, PermissionError) as error:
        raise InputError(f"{where}: not a file that can be opened ({error.strerror}).") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{where}: too large; at most {MAX_PIXELS} pixels are read.") from error
    except UnidentifiedImageError as error:
        raise CorruptFileError(
            f"{where}: not a readable image (of no format that is read)."
        ) from error
    except Exception as error:
        raise CorruptFileError(f"{where}: not a readable image ({error}).") from error


@contextlib.contextmanager
def by_pillow(file: PictureFile, page: int = 0) -> Iterator[Image.Image]:
    """The picture, not yet decoded; `page` is its number in the file, from 0."""
    file.stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        if is_heif(file.head):
            picture = _open_heif(file.stream)
        else:
            picture = Image.open(file.stream, formats=FORMATS)
    if picture.width * picture.height > MAX_PIXELS:
        raise Image.DecompressionBombError
    if page:
        picture.seek(page)
    yield picture


def _open_heif(stream: BinaryIO) -> Image.Image:
    heif = needed("pillow_heif", "heif").open_heif(stream)
    check_pixels(heif.size[1], heif.size[0])
    return heif.to_pillow()
