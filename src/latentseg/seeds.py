"""Randomness without state: every random number is a function of the keys that name it."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Key = int | NDArray[np.int64]


def derive_seeds(*keys: Key) -> Tensor:
    """Hashes integers to seeds; arrays broadcast against each other.

    Different keys give unrelated seeds, so `derive_seeds(seed, i)` may name sample i of a data set.

    Args:
        keys: At least one integer or int64 array.

    Returns:
        The broadcast shape, int64, values in [0, 2^63).

    Source: Steele, Lea and Flood 2014, the finaliser of SplitMix64, applied key by key.

    >>> derive_seeds(0, np.arange(3)).tolist() == [int(derive_seeds(0, i)) for i in range(3)]
    True
    """
    state = np.zeros((), np.uint64)
    with np.errstate(over="ignore"):
        for key in keys:
            mixed = (
                state + np.asarray(key, np.int64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            )
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = mixed ^ (mixed >> np.uint64(31))
    return torch.from_numpy(np.asarray(state >> np.uint64(1)).astype(np.int64))


def random_generator(*keys: int) -> torch.Generator:
    """A random number generator on the CPU that depends only on `keys`."""
    return torch.Generator().manual_seed(int(derive_seeds(*keys)))
