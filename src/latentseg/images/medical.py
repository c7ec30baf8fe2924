"""Slices of DICOM files and NIfTI volumes, by pydicom and nibabel, imported when asked for."""

import importlib
import warnings
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from latentseg.errors import CorruptFileError, InputError
from latentseg.images.extras import needed
from latentseg.images.kinds import MAX_VALUES, Stored, Values, check_pixels

_LOADING = Lock()  # so that threads that read slices of one volume do not each load all of it


def dicom_frames(stream: BinaryIO) -> int:
    """The number of pictures in a DICOM file."""
    return _frames(_open_dicom(stream, with_pixels=False))


def _frames(data: Any) -> int:
    return max(1, int(data.get("NumberOfFrames") or 1))


def read_dicom(stream: BinaryIO, frame: int) -> Stored:
    """A picture of a DICOM file in its unit (of CT: Hounsfield), after its rescaling.

    Raises:
        InputError: it is too large, holds no picture, or pydicom is missing.
        CorruptFileError: it is damaged, or compressed in a way that cannot be decoded here.
    """
    data = _open_dicom(stream, with_pixels=True)
    pixels: Any = importlib.import_module("pydicom.pixels")
    if "PixelData" not in data:
        raise InputError("a DICOM file without a picture, such as a report.")
    rows, columns = int(data.Rows), int(data.Columns)
    check_pixels(rows, columns)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        values = pixels.pixel_array(data, index=frame)
        if values.ndim == 3:
            return Stored(values)
        values = pixels.apply_rescale(values, data)
    is_inverted = data.get("PhotometricInterpretation") == "MONOCHROME1"
    return Stored(np.asarray(values), window=_window(data), is_inverted=is_inverted)


def dicom_size(stream: BinaryIO) -> tuple[int, int]:
    """(height, width) of the pictures in a DICOM file."""
    data = _open_dicom(stream, with_pixels=False)
    if "Rows" not in data or "Columns" not in data:
        raise InputError("a DICOM file without a picture, such as a report.")
    check_pixels(int(data.Rows), int(data.Columns))
    return int(data.Rows), int(data.Columns)


def _open_dicom(stream: BinaryIO, *, with_pixels: bool) -> Any:
    pydicom = needed("pydicom", "medical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(stream, stop_before_pixels=not with_pixels)


def _window(data: Any) -> tuple[float, float] | None:
    """The first window that the file names, as DICOM PS3.3 C.11.2.1.2 defines its ends."""
    center, width = data.get("WindowCenter"), data.get("WindowWidth")
    if center is None or width is None:
        return None
    center, width = (float(np.ravel(each)[0]) for each in (center, width))
    if not (np.isfinite(center) and np.isfinite(width)) or width < 1:
        return None
    return center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2


def nifti_slices(path: Path) -> int:
    """The number of slices in a NIfTI volume, of all its times."""
    shape = _upright(path).shape
    return int(np.prod(shape[2:]))


def nifti_size(path: Path) -> tuple[int, int]:
    """(height, width) of the slices of a NIfTI volume."""
    x, y = _upright(path).shape[:2]
    return y, x


def read_nifti(path: Path, index: int) -> Stored:
    """An axial slice of a NIfTI volume, the front up and the right side of the body to the left.

    Raises:
        InputError: it is too large, is no volume, or nibabel is missing.
        CorruptFileError: it is damaged.
    """
    with _LOADING:
        volume = _volume(path, _stamp(path))
    return Stored(np.rot90(volume[:, :, index]))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)
def _volume(path: Path, stamp: tuple[int, int]) -> Values:
    """(X, Y, slices), along the axes of the body that are nearest; later times follow."""
    image = _upright(path)
    values = np.asanyarray(image.dataobj)
    if values.dtype.kind not in "iuf":
        raise CorruptFileError(f"a NIfTI file of {values.dtype}; expected numbers.")
    x, y = values.shape[:2]
    return values.reshape(x, y, -1, order="F")


def _upright(path: Path) -> Any:
    """A volume, not yet read, whose axes go to the right, to the front and up."""
    nibabel = needed("nibabel", "medical")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image = nibabel.load(path)
        shape = image.shape
        if not 2 <= len(shape) <= 4 or min(shape) < 1:
            raise InputError(f"a NIfTI file of shape {shape}; expected slices.")
        if np.prod(shape, dtype=np.float64) > MAX_VALUES:
            raise InputError(f"too large; at most {MAX_VALUES} values are read.")
        return image if len(shape) == 2 else nibabel.as_closest_canonical(image)
