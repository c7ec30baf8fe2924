"""A labeler judged on generated images: a segmenter of real photos takes the truth's place."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from latentseg.errors import InputError
from latentseg.evaluation.measuring import Scorer, score_all
from latentseg.evaluation.protocols import find_rules
from latentseg.evaluation.results import Result
from latentseg.evaluation.tally import Scores, Tally
from latentseg.generators.chunks import parts
from latentseg.images import Pixels, to_pixels
from latentseg.labelers.protocols import Labeler
from latentseg.progress import Progress
from latentseg.seeds import derive_seeds

OF_JUDGED = 0x1D6E  # keeps the latents apart from those of data sets with the same seed
NOTE = (
    "Pseudo truth: the foreground that {judge} sees in the same generated images. Nobody labelled "
    "them, so the numbers say how far the two agree."
)
BOTH_SIDES = np.arange(2, dtype=np.uint8)


@dataclass(frozen=True)
class Judgment:
    """How far a labeler and a judge agree; every result carries a note that says so.

    Attributes:
        everything: On all images.
        kept: On the images that the labeler's filters keep; None if they keep all or none.
        n_kept: Their number.
    """

    everything: Result
    kept: Result | None
    n_kept: int


def judge(
    labeler: Labeler,
    segmenter: Scorer,
    *,
    name: str,
    count: int = 500,
    protocol: str = "feng2023",
    seed: int = 0,
    quiet: bool = False,
) -> Judgment:
    """Measures the masks of a labeler against those of a segmenter of real photos.

    All classes of either are foreground.

    Args:
        labeler: Labels images that its generator draws.
        segmenter: Stands in for the truth.
        name: What the result calls it.
        count: Number of images.
        protocol: A name of `PROTOCOLS` that measures the foreground.
        seed: Seeds the images; image i depends on (seed, i) alone.
        quiet: Show no progress.

    Raises:
        InputError: `count` is below 1, or the protocol measures several classes.
        DivergedError: the scores of the segmenter are NaN or infinite.

    Source: Feng et al. 2023, Tables 1 and 2, whose judge is DeepLabV3.
    """
    rules = find_rules(protocol)
    if count < 1:
        raise InputError(f"`count`: expected at least 1, found {count}.")
    if not rules.is_binary:
        raise InputError(
            f"`protocol`: {protocol} measures several classes, but a judge tells foreground from "
            "background. Take feng2023."
        )
    dataset = f"images of {labeler.generator.info.name}"
    everything, kept = (Tally(dataset, ("foreground",), rules) for _ in range(2))
    with Progress("judge", total=count, quiet=quiet) as progress:
        for i, (mask, truth, is_kept) in enumerate(_verdicts(labeler, segmenter, count, seed)):
            for tally in (everything, kept) if is_kept else (everything,):
                tally.add(f"{i:06d}", mask, truth, BOTH_SIDES)
            progress.update(i + 1)
    note, n_kept = NOTE.format(judge=name), len(kept.scores)
    return Judgment(
        everything=replace(everything.result(), note=note),
        kept=replace(kept.result(), note=note) if 0 < n_kept < count else None,
        n_kept=n_kept,
    )


def _verdicts(
    labeler: Labeler, segmenter: Scorer, count: int, seed: int
) -> Iterator[tuple[Scores, Pixels, bool]]:
    """Of each image the labeler's mask as scores, the segmenter's mask, and whether it is kept."""
    generator = labeler.generator
    for rows in parts(count, generator.info.size):
        indices: NDArray[np.int64] = np.arange(rows.start, rows.stop)
        with torch.no_grad():
            latents = generator.sample(derive_seeds(seed, OF_JUDGED, indices).to(generator.device))
            labelled = labeler.label(latents)
        images = to_pixels(labelled.images)
        masks = (labelled.masks > 0).numpy()
        is_kept = (labelled.rejected_by == 0).tolist()
        for mask, seen, kept in zip(
            masks, score_all(segmenter, list(images)), is_kept, strict=True
        ):
            scores = np.stack([~mask, mask]).astype(np.float32)
            truth = (seen[1:].sum(axis=0) > 0.5).astype(np.uint8)
            yield scores, truth, kept
