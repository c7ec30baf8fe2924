"""The photos a generator learns from: read once, refused as a whole if any cannot be read."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError, LatentsegError
from latentseg.images import (
    PLAIN,
    Picture,
    Pixels,
    Reading,
    cover,
    list_images,
    open_series,
    page_name,
)
from latentseg.progress import say


@dataclass(frozen=True)
class Photos:
    """Photos at the generator's size, in memory.

    Attributes:
        pixels: (N, 3, H, W) uint8.
        labels: (N,) int64 class of each photo, or None.
        classes: Names of the classes.
        names: File of each photo, relative to the folder.
    """

    pixels: Tensor
    labels: Tensor | None
    classes: tuple[str, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.pixels)

    def batch(self, step: int, size: int, seed: int) -> tuple[Tensor, Tensor | None]:
        """The photos of one training step: every photo once per epoch, mirrored at random.

        Returns:
            Images (size, 3, H, W) uint8 and labels (size,), a pure function of (seed, step).
        """
        positions = np.arange(step * size, (step + 1) * size)
        index = torch.from_numpy(_shuffled(positions, len(self), seed))
        flips = torch.from_numpy(np.random.default_rng([seed, step]).random(size) < 0.5)
        x = self.pixels[index]
        x = torch.where(flips[:, None, None, None], x.flip(3), x)
        return x, None if self.labels is None else self.labels[index]


def _shuffled(positions: np.ndarray, n: int, seed: int) -> np.ndarray:
    epochs = np.unique(positions // n)
    orders = {epoch: np.random.default_rng([seed, 7, epoch]).permutation(n) for epoch in epochs}
    return np.array([orders[position // n][position % n] for position in positions])


def read_photos(
    folder: Path | str,
    size: tuple[int, int],
    *,
    with_classes: bool = False,
    reading: Reading = PLAIN,
    quiet: bool = False,
) -> Photos:
    """Reads all photos of a folder and of those inside, scaled to cover `size`, cut at the center.

    Args:
        folder: Photos; with `with_classes`, one subfolder of photos per class.
        size: (height, width) in pixels.
        with_classes: Take the names of the subfolders as classes.
        reading: How photos become images where there is a choice.
        quiet: Do not say what was chosen for photos of more than 8 bits.

    Raises:
        InputError: no photos, or photos that cannot be read: all of them are listed.
    """
    folder = Path(folder)
    classes: tuple[str, ...] = ()
    if with_classes:
        parts = (
            sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
        )
        if not parts:
            raise InputError(f"{folder}: classes were asked for, but it has no subfolders.")
        classes = tuple(part.name for part in parts)
        series = open_series([path for part in parts for path in list_images(part)], reading)
    else:
        series = open_series(folder, reading)
    for note in series.notes:
        say(note, quiet=quiet)

    def read(picture: Picture) -> Pixels | LatentsegError:
        try:
            return cover(series.read(picture), size)
        except LatentsegError as error:
            return error

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, series.pictures))
    problems = [str(result) for result in results if isinstance(result, LatentsegError)]
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(
            f"{folder}: {len(problems)} of {len(series)} photos cannot be read:\n  {listed}\n"
            "Remove or mend them and give the command again."
        )
    pixels = np.stack([result for result in results if not isinstance(result, LatentsegError)])
    places = [picture.path.relative_to(folder) for picture in series.pictures]
    labels = [classes.index(place.parts[0]) for place in places] if with_classes else None
    return Photos(
        torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(),
        None if labels is None else torch.tensor(labels),
        classes,
        tuple(
            place.as_posix() + page_name(picture.page)
            for place, picture in zip(places, series.pictures, strict=True)
        ),
    )
