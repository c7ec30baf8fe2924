"""What a student learns from, streamed from shards: shuffled, in bounded memory, resumable."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from latentseg.datasets.pairs import DECODING_THREADS, Batch, from_levels
from latentseg.datasets.shard_files import Sample, Shard, ShardFolder
from latentseg.images import Pixels, cover, to_tensor

READING_THREADS = 2
MEMORY = 2**30

Window = tuple[int, int]  # epoch, number within it


class ShardPairs:
    """A data set in shards as an endless supply of batches, shuffled anew in every epoch.

    Shards are read whole, in an order that is drawn for each epoch. A window of several shards at
    a time is shuffled and used up, while the next one is read in the background. All of it depends
    only on the seed: a step has the same pairs in whatever order steps are asked for.

    Args:
        dataset: A folder of shards.
        size: (height, width) of the batches; pictures are scaled to cover it and cut at the centre.
            None: as they are.
        seed: Of the order.
        limit: Use only the first `limit` pairs.
        soft: Learn from class probabilities, if the shards have them, not from masks.
        memory: Bytes that two windows of encoded pictures may take. A window is one shard at least.

    Raises:
        InputError: the data set is not finished.
        CorruptFileError: shards are missing or cut off. One whose content changed is found, and
            named, when it is read.
    """

    def __init__(
        self,
        dataset: Path | str,
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        limit: int | None = None,
        soft: bool = True,
        memory: int = MEMORY,
    ) -> None:
        self.folder = ShardFolder(dataset, soft=soft)
        self.size = size or self.folder.size
        self.seed = seed
        self.n_pairs = min(len(self.folder), limit or len(self.folder))
        self.shards = [
            replace(shard, count=min(shard.count, self.n_pairs - shard.first))
            for shard in self.folder.shards
            if shard.first < self.n_pairs
        ]
        largest = max((self.folder.folder / shard.name).stat().st_size for shard in self.shards)
        self.shards_per_window = max(1, memory // (2 * largest))
        self.windows_per_epoch = -(-len(self.shards) // self.shards_per_window)
        self._reader = ThreadPoolExecutor(READING_THREADS)
        self._decoder = ThreadPoolExecutor(DECODING_THREADS)
        self._held: dict[Shard, Future[list[Sample]]] = {}
        self._windows = lru_cache(maxsize=4)(self._cut_windows)
        self._order = lru_cache(maxsize=4)(self._shuffle)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.folder.classes

    def __len__(self) -> int:
        return self.n_pairs

    def batch(self, step: int, size: int) -> Batch:
        """The `size` pairs of training step `step`.

        Raises:
            CorruptFileError: a shard has changed since it was written.
        """
        places = list(self._places(step * size, (step + 1) * size))
        self._hold(list(dict.fromkeys(window for window, _ in places)))
        samples = [self._sample(window, place) for window, place in places]
        pairs = self._decoder.map(self._decode, samples)
        images, masks = (np.stack(part) for part in zip(*pairs, strict=True))
        found = torch.from_numpy(masks)
        return Batch(to_tensor(images), from_levels(found) if self.folder.is_soft else found)

    def _places(self, first: int, end: int) -> Iterator[tuple[Window, int]]:
        """Of each position in the endless sequence: its window, and the place in it."""
        for position in range(first, end):
            epoch, rest = divmod(position, len(self))
            ends = self._windows(epoch)[1]
            window = int(np.searchsorted(ends, rest, side="right"))
            yield (epoch, window), rest - (int(ends[window - 1]) if window else 0)

    def _cut_windows(self, epoch: int) -> tuple[list[list[Shard]], NDArray[np.int64]]:
        """The shards of each window of an epoch, and where in the epoch each window ends."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.shards))
        shards, n = [self.shards[k] for k in order], self.shards_per_window
        windows = [shards[start : start + n] for start in range(0, len(shards), n)]
        return windows, np.cumsum([sum(shard.count for shard in window) for window in windows])

    def _shuffle(self, window: Window) -> list[tuple[Shard, int]]:
        """The order of the pairs of a window: of each, its shard and its row there."""
        shards = self._windows(window[0])[0][window[1]]
        pairs = [(shard, row) for shard in shards for row in range(shard.count)]
        order = np.random.default_rng([self.seed, *window, 1]).permutation(len(pairs))
        return [pairs[k] for k in order]

    def _hold(self, windows: list[Window]) -> None:
        """Keeps the shards of these windows, begins to read those of the next, drops the rest."""
        epoch, last = windows[-1]
        if len(windows) == 1:  # between two windows, the next but one would be a third
            is_end = last + 1 == self.windows_per_epoch
            windows = [*windows, (epoch + 1, 0) if is_end else (epoch, last + 1)]
        wanted = [shard for e, w in windows for shard in self._windows(e)[0][w]]
        self._held = {
            shard: self._held[shard]
            if shard in self._held
            else self._reader.submit(self.folder.read, self.folder.shards[shard.index])
            for shard in dict.fromkeys(wanted)
        }

    def _sample(self, window: Window, place: int) -> Sample:
        shard, row = self._order(window)[place]
        return self._held[shard].result()[row]

    def _decode(self, sample: Sample) -> tuple[Pixels, Pixels]:
        image, mask = self.folder.decode(sample)
        if mask.ndim == 2:
            return cover(image, self.size), cover(mask, self.size)
        # By nearest neighbour, like ids: so the probabilities still sum to 1.
        return cover(image, self.size), np.stack([cover(plane, self.size) for plane in mask])
