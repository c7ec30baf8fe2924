"""The first samples of a stream as a data set that can be converted without a folder between."""

from functools import lru_cache
from threading import Lock

from latentseg.images import Pixels
from latentseg.synthesis.stream import Block, Stream


class StreamedImages:
    """The first `count` samples of `stream`; they are drawn in blocks, when they are asked for.

    `dataset[i]` is (name, image (H, W, 3) uint8, mask (H, W) uint8), and depends only on the seed
    of the stream and on i.
    """

    def __init__(self, stream: Stream, count: int) -> None:
        self.stream, self.count = stream, count
        self.facts = {
            "licence": stream.generator.info.licence,
            "seed": stream.seed,
            "generator": stream.generator.info.to_json(),
            "labeler": stream.labeler.info,
        }
        self._lock = Lock()
        self._block = lru_cache(maxsize=2)(stream.block)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.stream.classes

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        block = self._drawn(index // self.stream.block_size)
        row = index - block.start
        return f"{index:08d}", block.images[row], block.masks[row]

    def _drawn(self, k: int) -> Block:
        with self._lock:  # several threads ask for samples of the same block
            return self._block(k)
