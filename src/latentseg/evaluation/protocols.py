"""The named ways of measuring, with their rules: in print, equal names hide different numbers."""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.groupings import BACKGROUND
from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.errors import DivergedError, InputError
from latentseg.evaluation import metrics
from latentseg.images import IGNORE, Pixels
from latentseg.progress import Progress

BATCH = 32
BATCH_PX = 2**21  # pixels of a batch: its scores take 4 bytes for each pixel and class
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


@runtime_checkable
class NamedScorer(Protocol):
    """A scorer that tells the names of its classes, by which they are matched with the truth's."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the rows of its scores, without the background."""
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
        counts_background: The background stands among the classes in `Result.class_iou`.
        columns: What a table shows: the heading of each number, and its field in `Result`.
        summary: The rules in a sentence.
    """

    name: str
    crops: bool
    is_binary: bool
    pools: bool
    empty_iou: float
    counts_background: bool
    columns: Mapping[str, str]
    summary: str


_FOREGROUND_COLUMNS = {"acc": "acc", "IoU": "iou", "pooled IoU": "iou_pooled", "max F": "max_f"}
PROTOCOLS = {
    # Melas-Kyriazi et al. 2021, official code (src/segmentation/metrics.py).
    "melas2021": Rules(
        name="melas2021",
        crops=True,
        is_binary=True,
        pools=False,
        empty_iou=0.0,
        counts_background=False,
        columns=_FOREGROUND_COLUMNS,
        summary="Accuracy, IoU and F of the foreground (probability above 0.5) are means over the "
        "images. The threshold of max F is one for the data set. CUB and Flowers are cropped.",
    ),
    "pooled": Rules(
        name="pooled",
        crops=False,
        is_binary=False,
        pools=True,
        empty_iou=1.0,
        counts_background=False,
        columns=_FOREGROUND_COLUMNS,
        summary="Accuracy, pooled IoU and F are of all pixels of the data set together. "
        "Every class counts. Nothing is cropped.",
    ),
    # Tritrong et al. 2021, section 4. No code of theirs measures; whether the background counts is
    # not said, but it does in the averages that are printed of their numbers (SLiMe, tables 2-4).
    "tritrong2021": Rules(
        name="tritrong2021",
        crops=False,
        is_binary=False,
        pools=True,
        empty_iou=1.0,
        counts_background=True,
        columns={
            "acc": "acc",
            "mean IoU": "mean_iou",
            "without background": "iou_pooled",
            "weighted IoU": "weighted_iou",
        },
        summary="IoU of each class over all pixels of the data set together. The mean IoU counts "
        "the background like a class; the weighted IoU weighs each of them by its share of the "
        "true pixels.",
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
        iou_pooled: IoU over all pixels together, mean over the classes without the background;
            NaN if there is no foreground.
        mean_iou: The same with the background.
        weighted_iou: The same with the background, each weighed by its share of the true pixels.
        f_half: F-beta (beta^2 = 0.3) at the threshold 0.5.
        max_f: The largest F-beta that one threshold reaches on the whole data set.
        threshold: That threshold.
        class_iou: Pooled IoU of each class, and of the background if the protocol counts it; NaN
            where it is neither true nor predicted.
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
    mean_iou: float
    weighted_iou: float
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
    Where there are several classes, those of the scorer are matched with the data set's by name.

    Args:
        scorer: Gives class probabilities at the size of the photo.
        dataset: An opened data set, or its folder.
        protocol: "melas2021", "pooled" or "tritrong2021"; see `PROTOCOLS`.
        limit: At most so many photos, evenly spread over the data set.
        quiet: No progress line.

    Raises:
        InputError: no such protocol, a damaged data set, or a scorer of other classes.
        DivergedError: scores are NaN or infinite.
    """
    rules = find_rules(protocol)
    if not isinstance(dataset, RealDataset):
        dataset = open_dataset(dataset)
    dataset = dataset.thinned(limit)
    ids = class_ids(scorer, dataset, rules)
    tally = _Tally(dataset, rules)
    with Progress("measure", total=len(dataset), quiet=quiet) as progress:
        for done, (name, scores, truth) in enumerate(_answers(scorer, dataset, rules), start=1):
            if (truth != IGNORE).any():
                tally.add(_measure(name, scores, truth, ids, dataset.classes))
            progress.update(done)
    if not tally.scores:
        raise InputError(f"{dataset.name}: no photo has a labelled pixel; nothing can be measured.")
    return tally.result()


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


def class_ids(scorer: Scorer, dataset: RealDataset, rules: Rules) -> NDArray[np.uint8]:
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
            "of the data set with --group FILE, or measure the foreground alone with "
            "--protocol melas2021."
        )
    return np.array([0, *(theirs.index(name) + 1 for name in ours)], np.uint8)


def _answers(
    scorer: Scorer, dataset: RealDataset, rules: Rules
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
    scorer: Scorer, waiting: Sequence[tuple[str, Pixels, Pixels]]
) -> Iterator[tuple[str, Scores, Pixels]]:
    images = [image for _, image, _ in waiting]
    if isinstance(scorer, BatchScorer):
        answers = scorer.scores_batch(images)
    else:
        answers = [scorer.scores(image) for image in images]
    for (name, _, truth), scores in zip(waiting, answers, strict=True):
        yield name, scores, truth


@dataclass(frozen=True)
class _Measured:
    """The counts of one photo, from which every number is made."""

    name: str
    confusion: metrics.Counts
    right: metrics.Counts  # truly foreground above each of the 254 thresholds and 0.5: (255,)
    predicted: metrics.Counts  # all above each of them


def _measure(
    name: str, scores: Scores, truth: Pixels, ids: NDArray[np.uint8], classes: Sequence[str]
) -> _Measured:
    if scores.ndim != 3 or scores.shape[1:] != truth.shape or len(scores) < 2:
        raise InputError(
            f"{name}: the scores have shape {scores.shape}; expected (classes + 1, "
            f"{truth.shape[0]}, {truth.shape[1]}), as the photo."
        )
    if not np.isfinite(scores).all():
        raise DivergedError(f"{name}: the segmenter's scores hold NaN or infinity.")
    foreground = scores[1:].sum(axis=0)
    if len(ids) == 2:
        mask = (foreground > 0.5).astype(np.uint8)
    elif len(scores) == len(ids):
        mask = ids[scores.argmax(axis=0)]
    else:
        raise InputError(
            f"{name}: the segmenter knows {len(scores) - 1} classes, but the data set has "
            f"{len(classes)}: {', '.join(classes)}. "
            "Measure the foreground alone with --protocol melas2021."
        )
    valid = truth != IGNORE
    thresholds = np.insert(metrics.THRESHOLDS, HALF, 0.5)
    confusion = metrics.confusion_matrix(mask, truth, n_classes=len(ids))
    counts = metrics.threshold_counts(foreground[valid], truth[valid] > 0, thresholds)
    return _Measured(name, confusion, *counts)


class _Tally:
    """All photos together; of each one only two numbers are kept."""

    def __init__(self, dataset: RealDataset, rules: Rules) -> None:
        self.dataset, self.rules = dataset, rules
        merges = rules.is_binary and len(dataset.classes) > 1
        self.names = ("foreground",) if merges else dataset.classes
        n_classes = len(self.names) + 1
        self.scores: list[ImageScore] = []
        self.confusion = np.zeros((n_classes, n_classes), np.int64)
        self.right, self.predicted = np.zeros((2, len(metrics.THRESHOLDS) + 1), np.int64)
        self.f_total = np.zeros(len(metrics.THRESHOLDS) + 1)

    def add(self, photo: _Measured) -> None:
        ious = metrics.iou(photo.confusion)[1:]
        iou = self.rules.empty_iou if np.isnan(ious).all() else float(np.nanmean(ious))
        self.scores.append(ImageScore(photo.name, metrics.accuracy(photo.confusion), iou))
        self.confusion += photo.confusion
        self.right += photo.right
        self.predicted += photo.predicted
        self.f_total += _f_curve(photo.right, photo.predicted, photo.confusion)

    def result(self) -> Result:
        rules, confusion = self.rules, self.confusion
        accs, ious = np.array([(score.acc, score.iou) for score in self.scores]).T
        class_iou = dict(zip((BACKGROUND, *self.names), metrics.iou(confusion), strict=True))
        if rules.pools:
            f_curve = _f_curve(self.right, self.predicted, confusion)
        else:
            f_curve = self.f_total / len(ious)
        f_at_thresholds = np.delete(f_curve, HALF)
        best = int(f_at_thresholds.argmax())
        return Result(
            dataset=self.dataset.name,
            protocol=rules.name,
            n_images=len(ious),
            n_unlabelled=len(self.dataset) - len(ious),
            acc=metrics.accuracy(confusion) if rules.pools else float(accs.mean()),
            iou=float(ious.mean()),
            iou_error=float(ious.std(ddof=1) / math.sqrt(len(ious))) if len(ious) > 1 else math.nan,
            iou_pooled=_mean_known([class_iou[name] for name in self.names]),
            mean_iou=_mean_known(list(class_iou.values())),
            weighted_iou=metrics.weighted_iou(confusion),
            f_half=float(f_curve[HALF]),
            max_f=float(f_at_thresholds[best]),
            threshold=float(metrics.THRESHOLDS[best]),
            class_iou={
                name: float(value)
                for name, value in class_iou.items()
                if name != BACKGROUND or rules.counts_background
            },
            per_image=tuple(self.scores),
        )


def _f_curve(
    right: metrics.Counts, predicted: metrics.Counts, confusion: metrics.Counts
) -> metrics.Floats:
    """F-beta of the foreground at the 254 thresholds and 0.5: (255,)."""
    return metrics.f_beta(*metrics.precision_recall(right, predicted, confusion[1:].sum()))


def _mean_known(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
