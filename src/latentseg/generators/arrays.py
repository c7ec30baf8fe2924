"""Arrays of numbers that users bring: banks of latents, embeddings, average styles."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_safetensors


def read_array(path: Path | str) -> Tensor:
    """The one array of a .npy, .npz or safetensors file, as float32.

    Raises:
        InputError: there is no such file, or it holds several arrays, or no numbers.
        CorruptFileError: it is damaged, or has numbers that are not finite.
    """
    arrays = read_arrays(path)
    if len(arrays) != 1:
        raise InputError(f"{path}: {len(arrays)} arrays in it; expected one.")
    return next(iter(arrays.values()))


def read_arrays(path: Path | str) -> dict[str, Tensor]:
    """The arrays of a .npy, .npz or safetensors file by name, as float32; "" names that of a .npy.

    Raises:
        InputError: there is no such file, or it holds something else than real numbers.
        CorruptFileError: it is damaged, or has numbers that are not finite in float32.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file.")
    is_safetensors = path.suffix == ".safetensors"
    found = read_safetensors(path) if is_safetensors else _numpy_arrays(path)
    if wrong := [each.dtype for each in found.values() if each.is_complex()]:
        raise InputError(f"{path}: expected numbers, found {wrong[0]}.")
    arrays = {name: each.float() for name, each in found.items()}
    if not all(each.isfinite().all() for each in arrays.values()):
        raise CorruptFileError(f"{path}: has numbers that are not finite.")
    return arrays


def _numpy_arrays(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:  # a pickle could run code
                arrays = dict(archive.items())
        else:
            # Mapped, so that a header which claims more than the file holds is refused.
            arrays = {"": np.array(np.lib.format.open_memmap(path, mode="r"))}
    except Exception as error:  # numpy's readers raise a dozen types
        raise CorruptFileError(f"{path}: not a complete .npy or .npz file ({error}).") from error
    if wrong := [array.dtype for array in arrays.values() if array.dtype.kind not in "fiu"]:
        raise InputError(f"{path}: expected numbers, found {wrong[0]}.")
    return {
        name: torch.from_numpy(array.astype(array.dtype.newbyteorder("=")))
        for name, array in arrays.items()
    }
