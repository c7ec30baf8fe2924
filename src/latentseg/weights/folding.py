"""Constants of official layers, multiplied into the weights once when a checkpoint is read."""

import math

import torch.nn.functional as F
from torch import Tensor

from latentseg.errors import CorruptFileError
from latentseg.weights.containers import Weights

SQRT_2 = math.sqrt(2)
ANY = -1


def stored(weights: Weights, name: str, *shape: int) -> Tensor:
    """The tensor `name` of a checkpoint, in float32.

    Args:
        weights: Of the checkpoint.
        name: By the names of the checkpoint.
        shape: That it must have; ANY for a dimension of any size but 0.

    Raises:
        CorruptFileError: it is missing or of another shape.
    """
    tensor = weights[name]
    is_fitting = len(tensor.shape) == len(shape) and all(
        size == expected if expected != ANY else size > 0
        for size, expected in zip(tensor.shape, shape, strict=True)
    )
    if not is_fitting:
        expected = ", ".join("any" if size == ANY else str(size) for size in shape)
        raise CorruptFileError(
            f"{weights.where}: {name!r} has shape {tuple(tensor.shape)}, expected ({expected})."
        )
    return tensor.float()


def he_constant(weight: Tensor, gain: float = SQRT_2) -> float:
    """gain / sqrt(fan-in) of a weight (out, in, ...).

    Source: equalised learning rate, Karras et al. 2018, section 4.1.
    """
    return gain / math.sqrt(weight[0].numel())


def equalised(weight: Tensor, gain: float = SQRT_2) -> Tensor:
    """`weight` (out, in, ...) times its He constant, applied at run time."""
    return weight * he_constant(weight, gain)


def upsampling_kernel(weight: Tensor) -> Tensor:
    """Upsampling by 2 to the nearest neighbour and a convolution, as one transposed convolution.

    The same function, borders included, with 16 in place of 36 multiplications.

    Args:
        weight: (out, in, 3, 3) of a convolution with padding 1.

    Returns:
        (in, out, 4, 4), for stride 2 and padding 1.
    """
    return boxed(weight.flip(2, 3).transpose(0, 1))


def boxed(kernel: Tensor) -> Tensor:
    """Each (k, k) of a kernel convolved with 2 x 2 ones: (..., k + 1, k + 1).

    As a transposed convolution of stride 2 the kernel then also repeats each pixel.
    """
    padded = F.pad(kernel, (1, 1, 1, 1))
    rows = padded[..., 1:, :] + padded[..., :-1, :]
    return rows[..., 1:] + rows[..., :-1]
