"""Measuring anything that scores images on photos with true masks, under a named protocol."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.real import RealDataset
from latentseg.errors import InputError
from latentseg.evaluation.protocols import Rules, find_rules
from latentseg.evaluation.results import Result
from latentseg.evaluation.tally import Scores, Tally
from latentseg.images import IGNORE, Pixels
from latentseg.progress import Progress

BATCH = 32
BATCH_PX = 2**21  # pixels of a batch: its scores take 4 bytes for each pixel and class


class Scorer(Protocol):
    """What can be measured: a segmenter, or a baseline."""

    def scores(self, image: Pixels) -> Scores:
        """(K + 1, H, W) float32 class probabilities of an (H, W, 3) image; 0 is background."""
        ...


@runtime_checkable
class BatchScorer(Protocol):
    """A scorer that answers several images of one size faster than one by one."""

    def scores_batch(self, images: Sequence[Pixels]) -> Sequence[Scores]:
        """The scores of each image; all images have the same size."""
        ...


@runtime_checkable
class NamedScorer(Protocol):
    """A scorer that tells the names of its classes, by which they are matched with the truth's."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the rows of its scores, without the background."""
        ...


@runtime_checkable
class ScorerByName(Protocol):
    """A scorer that has an answer for each photo by its name, as a folder of masks has."""

    def scores_by_name(self, name: str) -> Scores:
        """The scores of the photo called `name`."""
        ...


def measure(
    scorer: Scorer | ScorerByName,
    dataset: RealDataset,
    *,
    protocol: str = "melas2021",
    limit: int | None = None,
    quiet: bool = False,
) -> Result:
    """Measures a segmenter, or anything that scores images, on real photos.

    Pixels with the label 255 count nowhere; photos that have no other pixels are left out.
    Where there are several classes, those of the scorer are matched with the data set's by name.

    Args:
        scorer: Gives class probabilities at the size of the photo.
        dataset: Photos with true masks.
        protocol: A name of `PROTOCOLS`.
        limit: Measure at most this many photos, evenly spread over the data set.
        quiet: Show no progress.

    Raises:
        InputError: there is no such protocol, or the scorer has other classes.
        DivergedError: scores are NaN or infinite.
    """
    rules = find_rules(protocol)
    dataset = dataset.thinned(limit)
    ids = class_ids(scorer, dataset, rules)
    tally = Tally(dataset.name, dataset.classes, rules)
    with Progress("measure", total=len(dataset), quiet=quiet) as progress:
        for done, (name, scores, truth) in enumerate(_answers(scorer, dataset, rules), start=1):
            tally.add(name, scores, truth, ids)
            progress.update(done)
    return tally.result()


def photos(dataset: RealDataset, rules: Rules) -> Iterator[tuple[str, Pixels, Pixels]]:
    """Name, image and true mask of each photo, as the protocol wants them."""
    for name, image, truth in dataset:
        if rules.crops and dataset.crops:
            image, truth = center_square(image), center_square(truth)
        if rules.is_binary:
            truth = np.where(truth == IGNORE, truth, np.minimum(truth, 1)).astype(np.uint8)
        yield name, image, truth


def center_square(picture: Pixels) -> Pixels:
    """The largest centered square of an image or mask.

    >>> center_square(np.uint8([[1, 2, 3, 4]])).tolist()
    [[3]]
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    # Rounded, half to even, as torchvision's CenterCrop does it.
    top, left = round((height - side) / 2), round((width - side) / 2)
    return picture[top : top + side, left : left + side]


def class_ids(
    scorer: Scorer | ScorerByName, dataset: RealDataset, rules: Rules
) -> NDArray[np.uint8]:
    """Which class of the data set each row of the scores is, (K + 1,); (2,) for the foreground.

    Raises:
        InputError: the scorer names other classes than the data set.
    """
    theirs = dataset.classes
    if rules.is_binary or len(theirs) == 1:
        return np.arange(2, dtype=np.uint8)
    if not isinstance(scorer, NamedScorer):
        return np.arange(len(theirs) + 1, dtype=np.uint8)
    ours = scorer.classes
    if sorted(ours) != sorted(theirs):
        only = {
            "the segmenter": [name for name in ours if name not in theirs],
            "the data set": [name for name in theirs if name not in ours],
        }
        alone = "; ".join(f"only {who}: {', '.join(names)}" for who, names in only.items() if names)
        raise InputError(
            f"{dataset.name}: the segmenter knows {len(ours)} classes ({', '.join(ours)}), but the "
            f"data set has {len(theirs)} ({', '.join(theirs)}); {alone}. Merge or ignore classes "
            "of the data set by a `group`, or measure the foreground alone with `protocol` "
            "melas2021."
        )
    return np.array([0, *(theirs.index(name) + 1 for name in ours)], np.uint8)


def _answers(
    scorer: Scorer | ScorerByName, dataset: RealDataset, rules: Rules
) -> Iterator[tuple[str, Scores, Pixels]]:
    """Name, scores and truth of each photo, in order; neighbours of one size go together."""
    waiting: list[tuple[str, Pixels, Pixels]] = []
    for photo in photos(dataset, rules):
        shape = photo[1].shape
        most = min(BATCH, max(1, BATCH_PX // (shape[0] * shape[1])))
        if waiting and (len(waiting) == most or shape != waiting[0][1].shape):
            yield from _answer(scorer, waiting)
            waiting = []
        waiting.append(photo)
    yield from _answer(scorer, waiting)


def _answer(
    scorer: Scorer | ScorerByName, waiting: Sequence[tuple[str, Pixels, Pixels]]
) -> Iterator[tuple[str, Scores, Pixels]]:
    images = [image for _, image, _ in waiting]
    if isinstance(scorer, ScorerByName):
        answers = [scorer.scores_by_name(name) for name, _, _ in waiting]
    else:
        answers = score_all(scorer, images)
    for (name, _, truth), scores in zip(waiting, answers, strict=True):
        yield name, scores, truth


def score_all(scorer: Scorer, images: Sequence[Pixels]) -> Sequence[Scores]:
    """The scores of images (H, W, 3) of one size."""
    if isinstance(scorer, BatchScorer):
        return scorer.scores_batch(images)
    return [scorer.scores(image) for image in images]
