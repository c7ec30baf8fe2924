"""What can be told of a picture without decoding it."""

from pathlib import Path

from PIL import ExifTags

from latentseg.errors import CorruptFileError, InputError
from latentseg.images.kinds import check_pixels, is_deep_png
from latentseg.images.medical import dicom_frames, dicom_size, nifti_size, nifti_slices
from latentseg.images.opening import PictureFile, by_pillow, opened
from latentseg.images.reading import PLAIN, Reading, check_page
from latentseg.images.tiff import tiff_pages

TURNED = (5, 6, 7, 8)  # orientations that exchange height and width


def pages_of(path: Path | str, reading: Reading = PLAIN) -> list[int | None]:
    """The pages of a file that are to be read, for `read_image`; [None] where there are no pages.

    Raises:
        InputError: the page that `reading` names is not there.
        CorruptFileError: the file is damaged.
    """
    with opened(path) as file:
        count = _count_pages(file)
        if count == 1:
            return [None]
        if reading.page is not None:
            check_page(reading.page - 1, count)
            return [reading.page - 1]
        return [*range(count)]


def _count_pages(file: PictureFile) -> int:
    if file.is_tiff:
        return len(tiff_pages(file.stream))
    if file.is_dicom:
        return dicom_frames(file.stream)
    if file.is_nifti:
        return nifti_slices(Path(file.name))
    return 1


def is_deep(path: Path | str) -> bool:
    """Whether a picture has to be scaled to 8 bits; False of one that cannot be read."""
    try:
        with opened(path) as file:
            return holds_values(file)
    except (InputError, CorruptFileError):
        return False


def holds_values(file: PictureFile) -> bool:
    """Whether a picture has more than 8 bits, or is in the unit of an instrument."""
    if file.is_tiff:
        return any(page.is_deep for page in tiff_pages(file.stream))
    if file.head.startswith((b"P5", b"P6")):
        with by_pillow(file) as picture:
            return picture.mode.startswith("I")
    return is_deep_png(file.head) or file.is_dicom or file.is_nifti


def size_of(path: Path | str) -> tuple[int, int]:
    """(height, width) of a picture as it is read, without decoding it.

    Raises:
        InputError: no such file, or more pixels than are safe to decode.
        CorruptFileError: not an image.
    """
    with opened(path) as file:
        if file.is_tiff:
            page = tiff_pages(file.stream)[0]
            check_pixels(*page.size)
            height, width = page.size
            return (width, height) if page.orientation in TURNED else (height, width)
        if file.is_dicom:
            return dicom_size(file.stream)
        if file.is_nifti:
            return nifti_size(Path(file.name))
        with by_pillow(file) as picture:
            is_turned = picture.getexif().get(ExifTags.Base.Orientation) in TURNED
            height, width = picture.height, picture.width
            return (width, height) if is_turned else (height, width)


def is_plain(path: Path | str) -> bool:
    """Whether every program reads this file as `read_image` does: an upright photo of 8 bits.

    Raises:
        InputError, CorruptFileError: as `size_of`.
    """
    suffixes = {"JPEG": (".jpg", ".jpeg"), "PNG": (".png",)}
    with opened(path) as file:
        if file.is_tiff or holds_values(file):
            return False
        with by_pillow(file) as picture:
            return (
                Path(path).suffix.lower() in suffixes.get(picture.format or "", ())
                and picture.mode in ("RGB", "L")
                and "transparency" not in picture.info
                and picture.getexif().get(ExifTags.Base.Orientation, 1) == 1
            )
