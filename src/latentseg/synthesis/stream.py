"""The endless stream of refined samples: sample i depends only on (seed, i)."""

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from latentseg.datasets.pairs import Batch, from_levels, to_levels
from latentseg.errors import InputError
from latentseg.generators.protocols import Generator, Latents
from latentseg.images import Pixels, to_pixels, to_tensor
from latentseg.labelers.protocols import Labeler, Labelled, SoftLabeler
from latentseg.seeds import derive_seeds

SAMPLES = 1  # keeps the seeds of samples apart from those of a search with the same seed
ATTEMPTS = 25  # official code: how often a refused sample is drawn again


@dataclass(frozen=True)
class Block:
    """Consecutive samples of a stream, all of them accepted.

    Attributes:
        start: Index of the first sample.
        images: (n, H, W, 3) uint8.
        masks: (n, H, W) uint8.
        confidence: (n,) float32 in [0, 1].
        labels: Class labels of the generator, (n,) int64; -1 for an unconditional one.
        seeds: (n,) int64, the seed of each sample's latent.
        attempts: (n,) int64, how many candidates were drawn for each sample.
        removed: (n, n_filters) int64, how many of them each filter refused.
        soft: (n, K, H, W) uint8, 0..255 for 0..1, how likely each class but the background is; its
            own probability is the rest to 255. None: only the masks are known.
    """

    start: int
    images: Pixels
    masks: Pixels
    confidence: NDArray[np.float32]
    labels: NDArray[np.int64]
    seeds: NDArray[np.int64]
    attempts: NDArray[np.int64]
    removed: NDArray[np.int64]
    soft: Pixels | None = None

    def __len__(self) -> int:
        return len(self.images)


class Stream:
    """An endless sequence of generated images with masks, refined; it can be trained on directly.

    Candidate a of sample i has a latent that depends only on (seed, i, a), and sample i is the
    first candidate that the filters accept. Samples are drawn in whole blocks, so that the bits do
    not depend on who asks for them.

    Args:
        generator: The generator that the labeler was fitted to.
        labeler: Labels and refuses.
        seed: Of all samples.
        block: Samples that are drawn together.
        soft: Give class probabilities, in steps of 1/255, in place of masks.
        is_ahead: Draw the next block in the background while this one is being used; by default
            on a GPU, where the host would wait otherwise.

    Raises:
        InputError: the labeler belongs to another generator, or knows no probabilities.
    """

    def __init__(
        self,
        generator: Generator,
        labeler: Labeler,
        *,
        seed: int = 0,
        block: int = 64,
        soft: bool = False,
        is_ahead: bool | None = None,
    ) -> None:
        if labeler.generator.info != generator.info:
            raise InputError(
                f"the labeler was fitted to generator {labeler.generator.info.name!r}, not to "
                f"{generator.info.name!r}. Fit one to this generator."
            )
        if soft and not isinstance(labeler, SoftLabeler):
            raise InputError(
                f"the labeler {labeler.info['method']} gives masks, but no probabilities of the "
                "classes. Leave out soft labels, or take a few-shot labeler."
            )
        self.generator, self.labeler = generator, labeler
        self.soft_labeler = labeler if soft and isinstance(labeler, SoftLabeler) else None
        self.seed, self.block_size = seed, block
        self.is_ahead = generator.device.type == "cuda" if is_ahead is None else is_ahead
        self._drawer = ThreadPoolExecutor(1)
        self._drawn: dict[int, Future[Block]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, without the background."""
        return self.labeler.classes

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of images and masks."""
        return self.generator.info.size

    @property
    def is_soft(self) -> bool:
        """Whether it gives class probabilities in place of masks."""
        return self.soft_labeler is not None

    def batch(self, step: int, size: int) -> Batch:
        """Samples step * size to (step + 1) * size - 1, on the CPU."""
        first, end = step * size, (step + 1) * size
        parts = [
            (block.images[rows], block.masks[rows] if block.soft is None else block.soft[rows])
            for block in self._blocks(first, end)
            for rows in [slice(max(first - block.start, 0), end - block.start)]
        ]
        images, masks = (np.concatenate(part) for part in zip(*parts, strict=True))
        found = torch.from_numpy(masks)
        return Batch(to_tensor(images), from_levels(found) if self.is_soft else found)

    def block(self, k: int) -> Block:
        """Samples k * block to (k + 1) * block - 1.

        Raises:
            InputError: the filters refuse nearly everything; names what each removed.
        """
        n = self.block_size
        block = Block(
            start=k * n,
            images=np.empty((n, *self.size, 3), np.uint8),
            masks=np.empty((n, *self.size), np.uint8),
            confidence=np.empty(n, np.float32),
            labels=np.full(n, -1, np.int64),
            seeds=np.empty(n, np.int64),
            attempts=np.zeros(n, np.int64),
            removed=np.zeros((n, len(self.labeler.filters)), np.int64),
            soft=np.empty((n, len(self.classes), *self.size), np.uint8) if self.is_soft else None,
        )
        pending, attempt = np.arange(n), 0
        while len(pending):
            if attempt >= ATTEMPTS and len(pending) > n / 2:
                raise InputError(self._explain(block))
            pending = self._draw(block, pending, attempt)
            attempt += 1
        return block

    def _draw(self, block: Block, pending: NDArray[np.int64], attempt: int) -> NDArray[np.int64]:
        """Draws one candidate for each pending row of the block; returns those still pending."""
        seeds = derive_seeds(self.seed, SAMPLES, block.start + pending, attempt)
        latents = self.generator.sample(seeds.to(self.generator.device))
        labelled, soft = self._label(latents)
        rejected_by = labelled.rejected_by.numpy()
        is_good = rejected_by == 0
        block.attempts[pending] += 1
        np.add.at(block.removed, (pending[~is_good], rejected_by[~is_good] - 1), 1)
        good, rows = torch.from_numpy(is_good), pending[is_good]
        block.images[rows] = to_pixels(labelled.images[good.to(labelled.images.device)])
        block.masks[rows] = labelled.masks[good].numpy()
        if block.soft is not None and soft is not None:
            block.soft[rows] = soft[is_good]
        block.confidence[rows] = labelled.confidence[good].numpy()
        block.seeds[rows] = seeds[good].numpy()
        if latents.labels is not None:
            block.labels[rows] = latents.labels.cpu()[good].numpy()
        return pending[~is_good]

    def _label(self, latents: Latents) -> tuple[Labelled, Pixels | None]:
        """The images with their masks, and the levels of their classes if these are wanted."""
        if self.soft_labeler is None:
            return self.labeler.label(latents), None
        labelled, probabilities = self.soft_labeler.label_softly(latents)
        return labelled, to_levels(probabilities).cpu().numpy()

    def _blocks(self, first: int, end: int) -> list[Block]:
        """The blocks that hold samples `first` to `end` - 1; may ask for the next ones."""
        needed = range(first // self.block_size, (end - 1) // self.block_size + 1)
        ahead = len(needed) if self.is_ahead else 0
        asked = range(needed.start, needed.stop + ahead)
        # One thread draws, also when nothing is drawn ahead: the caller's autocast is not its own.
        self._drawn = {
            k: self._drawn[k] if k in self._drawn else self._drawer.submit(self.block, k)
            for k in asked
        }
        return [self._drawn[k].result() for k in needed]

    def _explain(self, block: Block) -> str:
        drawn = int(block.attempts.sum())
        shares = ", ".join(
            f"{name} {count / drawn:.0%}"
            for name, count in zip(self.labeler.filters, block.removed.sum(axis=0), strict=True)
            if count
        )
        return (
            f"samples {block.start} to {block.start + len(block) - 1}: after {ATTEMPTS} attempts "
            f"most were still refused. The filters removed: {shares}. Look at the labeler's "
            "contact sheet; loosen the filters, or fit it again with another seed."
        )
