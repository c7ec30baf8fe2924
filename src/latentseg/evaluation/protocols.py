"""The named ways of measuring, with their rules: in print, equal names hide different numbers."""

import difflib
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latentseg.errors import DivergedError, InputError
from latentseg.evaluation import metrics
from latentseg.evaluation.datasets import RealDataset, open_dataset
from latentseg.images import IGNORE, Pixels
from latentseg.progress import Progress

BATCH = 32
HALF = 127  # place of the threshold 0.5 between 127 / 255 and 128 / 255
Scores = NDArray[np.float32]


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


@dataclass(frozen=True)
class Rules:
    """The clauses in which protocols differ.

    Attributes:
        name: Printed beside every number.
        crops: Take the centre square of photos where the published protocol does (CUB, Flowers).
        is_binary: Every class is foreground; predicted where its probability is above 0.5.
            Otherwise the most probable class is predicted.
        pools: Accuracy and F are of all pixels together; otherwise means over the images.
        empty_iou: IoU of an image where a class is neither true nor predicted.
        summary: The rules in a sentence.
    """

    name: str
    crops: bool
    is_binary: bool
    pools: bool
    empty_iou: float
    summary: str


PROTOCOLS = {
    # Melas-Kyriazi et al. 2021, official code (src/segmentation/metrics.py).
    "melas2021": Rules(
        name="melas2021",
        crops=True,
        is_binary=True,
        pools=False,
        empty_iou=0.0,
        summary="Accuracy, IoU and F of the foreground (probability above 0.5) are means over the "
        "images. The threshold of max F is one for the data set. CUB and Flowers are cropped.",
    ),
    "pooled": Rules(
        name="pooled",
        crops=False,
        is_binary=False,
        pools=True,
        empty_iou=1.0,
        summary="Accuracy, pooled IoU and F are of all pixels of the data set together. "
        "Every class counts. Nothing is cropped.",
    ),
}


@dataclass(frozen=True)
class ImageScore:
    """The numbers of one photo: accuracy and IoU, both in [0, 1]."""

    name: str
    acc: float
    iou: float


@dataclass(frozen=True)
class Result:
    """What was measured on one data set under one protocol; all numbers in [0, 1].

    Attributes:
        dataset: Its name.
        protocol: Name of the rules.
        n_images: Photos measured.
        n_unlabelled: Photos left out because every pixel of them is ignored.
        acc: Accuracy.
        iou: IoU per image, mean over the images.
        iou_error: Standard error of `iou` over the images.
        iou_pooled: IoU over all pixels together, mean over the classes; NaN if there is no
            foreground.
        f_half: F-beta (beta^2 = 0.3) at the threshold 0.5.
        max_f: The largest F-beta that one threshold reaches on the whole data set.
        threshold: That threshold.
        class_iou: Pooled IoU of each class; NaN where it never occurs.
        per_image: The numbers of each photo.
        note: What a reader must know about it, for example that the truth was used.
    """

    dataset: str
    protocol: str
    n_images: int
    n_unlabelled: int
    acc: float
    iou: float
    iou_error: float
    iou_pooled: float
    f_half: float
    max_f: float
    threshold: float
    class_iou: dict[str, float]
    per_image: tuple[ImageScore, ...]
    note: str = ""

    def to_json(self, *, per_image: bool = False) -> dict[str, Any]:
        """The result as strict JSON values, NaN as null; of each photo only if `per_image`."""
        values = asdict(self)
        values["class_iou"] = {name: _finite(value) for name, value in self.class_iou.items()}
        values["per_image"] = [asdict(score) for score in self.per_image]
        if not per_image:
            del values["per_image"]
        return {
            key: _finite(value) if isinstance(value, float) else value
            for key, value in values.items()
        }


def find_rules(protocol: str) -> Rules:
    """The rules called `protocol`.

    Raises:
        InputError: no protocol has this name; the nearest is named.
    """
    if protocol in PROTOCOLS:
        return PROTOCOLS[protocol]
    near = difflib.get_close_matches(protocol, PROTOCOLS, n=1)
    hint = f" Perhaps {near[0]}?" if near else ""
    raise InputError(f"--protocol {protocol}: expected one of {', '.join(PROTOCOLS)}.{hint}")


def evaluate(
    scorer: Scorer,
    dataset: RealDataset | Path | str,
    *,
    protocol: str = "melas2021",
    limit: int | None = None,
    quiet: bool = False,
) -> Result:
    """Measures a segmenter, or anything that scores images, on real photos.

    Pixels with the label 255 count nowhere; photos that have no other pixels are left out.

    Args:
        scorer: Gives class probabilities at the size of the photo.
        dataset: An opened data set, or its folder.
        protocol: "melas2021" or "pooled"; see `PROTOCOLS`.
        limit: At most so many photos, evenly spread over the data set.
        quiet: No progress line.

    Raises:
        InputError: no such protocol, a damaged data set, or scores that do not fit its classes.
        DivergedError: scores are NaN or infinite.
    """
    rules = find_rules(protocol)
    if not isinstance(dataset, RealDataset):
        dataset = open_dataset(dataset)
    dataset = dataset.thinned(limit)
    measured: list[_Measured] = []
    with Progress("measure", total=len(dataset), quiet=quiet) as progress:
        for done, (name, scores, truth) in enumerate(_answers(scorer, dataset, rules), start=1):
            if (truth != IGNORE).any():
                measured.append(_measure(name, scores, truth, dataset.classes, rules))
            progress.update(done)
    if not measured:
        raise InputError(f"{dataset.name}: no photo has a labelled pixel; nothing can be measured.")
    return _summarise(measured, dataset, rules)


def photos(dataset: RealDataset, rules: Rules) -> Iterator[tuple[str, Pixels, Pixels]]:
    """Name, image and true mask of each photo, as the protocol wants them."""
    for name, image, truth in dataset:
        if rules.crops and dataset.crops:
            image, truth = centre_square(image), centre_square(truth)
        if rules.is_binary:
            truth = np.where(truth == IGNORE, truth, np.minimum(truth, 1)).astype(np.uint8)
        yield name, image, truth


def centre_square(picture: Pixels) -> Pixels:
    """The largest centred square of an image or mask.

    >>> centre_square(np.uint8([[1, 2, 3, 4]])).tolist()
    [[3]]
    """
    height, width = picture.shape[:2]
    side = min(height, width)
    # Rounded, half to even, as torchvision's CenterCrop does it.
    top, left = round((height - side) / 2), round((width - side) / 2)
    return picture[top : top + side, left : left + side]


@dataclass(frozen=True)
class _Measured:
    """The counts of one photo, from which every number is made."""

    name: str
    confusion: metrics.Counts
    right: metrics.Counts  # truly foreground above each of the 254 thresholds and 0.5: (255,)
    predicted: metrics.Counts  # all above each of them


def _answers(
    scorer: Scorer, dataset: RealDataset, rules: Rules
) -> Iterator[tuple[str, Scores, Pixels]]:
    """Name, scores and truth of each photo, in order; neighbours of one size go together."""
    waiting: list[tuple[str, Pixels, Pixels]] = []
    for photo in photos(dataset, rules):
        if waiting and (len(waiting) == BATCH or photo[1].shape != waiting[0][1].shape):
            yield from _answer(scorer, waiting)
            waiting = []
        waiting.append(photo)
    yield from _answer(scorer, waiting)


def _answer(
    scorer: Scorer, waiting: Sequence[tuple[str, Pixels, Pixels]]
) -> Iterator[tuple[str, Scores, Pixels]]:
    images = [image for _, image, _ in waiting]
    if isinstance(scorer, BatchScorer):
        answers = scorer.scores_batch(images)
    else:
        answers = [scorer.scores(image) for image in images]
    for (name, _, truth), scores in zip(waiting, answers, strict=True):
        yield name, scores, truth


def _measure(
    name: str, scores: Scores, truth: Pixels, classes: Sequence[str], rules: Rules
) -> _Measured:
    if scores.ndim != 3 or scores.shape[1:] != truth.shape or len(scores) < 2:
        raise InputError(
            f"{name}: the scores have shape {scores.shape}; expected (classes + 1, "
            f"{truth.shape[0]}, {truth.shape[1]}), as the photo."
        )
    if not np.isfinite(scores).all():
        raise DivergedError(f"{name}: the segmenter's scores hold NaN or infinity.")
    n_classes = 2 if rules.is_binary else len(classes) + 1
    foreground = scores[1:].sum(axis=0)
    if n_classes == 2:
        mask = foreground > 0.5
    elif len(scores) == n_classes:
        mask = scores.argmax(axis=0)
    else:
        raise InputError(
            f"{name}: the segmenter knows {len(scores) - 1} classes, but the data set has "
            f"{len(classes)}: {', '.join(classes)}. "
            "Measure the foreground alone with --protocol melas2021."
        )
    valid = truth != IGNORE
    thresholds = np.insert(metrics.THRESHOLDS, HALF, 0.5)
    confusion = metrics.confusion_matrix(mask.astype(np.uint8), truth, n_classes=n_classes)
    counts = metrics.threshold_counts(foreground[valid], truth[valid] > 0, thresholds)
    return _Measured(name, confusion, *counts)


def _summarise(measured: Sequence[_Measured], dataset: RealDataset, rules: Rules) -> Result:
    scores = tuple(
        ImageScore(image.name, metrics.accuracy(image.confusion), _image_iou(image, rules))
        for image in measured
    )
    ious = np.array([score.iou for score in scores])
    confusion = np.sum([image.confusion for image in measured], axis=0)
    class_iou = metrics.iou(confusion)[1:]
    known = class_iou[~np.isnan(class_iou)]
    f_curve = _f_curve(measured, rules)
    f_at_thresholds = np.delete(f_curve, HALF)
    best = int(f_at_thresholds.argmax())
    names = dataset.classes if len(class_iou) == len(dataset.classes) else ("foreground",)
    return Result(
        dataset=dataset.name,
        protocol=rules.name,
        n_images=len(scores),
        n_unlabelled=len(dataset) - len(scores),
        acc=metrics.accuracy(confusion) if rules.pools else float(np.mean([s.acc for s in scores])),
        iou=float(ious.mean()),
        iou_error=float(ious.std(ddof=1) / math.sqrt(len(ious))) if len(ious) > 1 else math.nan,
        iou_pooled=float(known.mean()) if len(known) else math.nan,
        f_half=float(f_curve[HALF]),
        max_f=float(f_at_thresholds[best]),
        threshold=float(metrics.THRESHOLDS[best]),
        class_iou=dict(zip(names, class_iou.tolist(), strict=True)),
        per_image=scores,
    )


def _image_iou(image: _Measured, rules: Rules) -> float:
    ious = metrics.iou(image.confusion)[1:]
    present = ious[~np.isnan(ious)]
    return float(present.mean()) if len(present) else rules.empty_iou


def _f_curve(measured: Sequence[_Measured], rules: Rules) -> metrics.Floats:
    """F-beta of the data set at the 254 thresholds and 0.5: (255,)."""
    right = np.array([image.right for image in measured])
    predicted = np.array([image.predicted for image in measured])
    true = np.array([[image.confusion[1:].sum()] for image in measured])
    if rules.pools:
        right, predicted, true = (
            counts.sum(0, keepdims=True) for counts in (right, predicted, true)
        )
    return metrics.f_beta(*metrics.precision_recall(right, predicted, true)).mean(axis=0)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
