"""The numbers of a protocol, added up photo by photo."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.groupings import BACKGROUND
from latentseg.errors import DivergedError, InputError
from latentseg.evaluation import metrics
from latentseg.evaluation.boundaries import boundary_f, trimap
from latentseg.evaluation.protocols import Rules
from latentseg.evaluation.results import ImageScore, Result, mean_known
from latentseg.images import IGNORE, Pixels

TRIMAP_PX, NARROW_PX = 3.0, 1.5  # Feng et al. 2023, and half of it
Scores = NDArray[np.float32]


@dataclass(frozen=True)
class _Counts:
    """What is counted in one photo, and added up over all of them.

    Attributes:
        confusion: By true and predicted class.
        right: Pixels above each threshold of the F curve, and above 0.5, that are truly foreground.
        predicted: All pixels above each of them.
        band, narrow: As `confusion`, within 3 and 1.5 px of the true boundary.
    """

    confusion: metrics.Counts
    right: metrics.Counts
    predicted: metrics.Counts
    band: metrics.Counts
    narrow: metrics.Counts

    def __add__(self, other: "_Counts") -> "_Counts":
        return _Counts(
            self.confusion + other.confusion,
            self.right + other.right,
            self.predicted + other.predicted,
            self.band + other.band,
            self.narrow + other.narrow,
        )


class Tally:
    """The numbers of photos, added up one by one, so that no photo has to be kept.

    Args:
        name: Of the data set.
        classes: Names of its classes, without the background.
        rules: How it is measured.
    """

    def __init__(self, name: str, classes: Sequence[str], rules: Rules) -> None:
        self.name, self.classes, self.rules = name, classes, rules
        merges = rules.is_binary and len(classes) > 1
        self.names = ("foreground",) if merges else tuple(classes)
        lowest = metrics.THRESHOLDS[rules.lowest :]
        self.half = int(np.searchsorted(lowest, 0.5))
        self.thresholds = np.insert(lowest, self.half, np.float32(0.5))
        self.scores: list[ImageScore] = []
        self.n_unlabelled = 0
        n_classes = len(self.names) + 1
        square = np.zeros((n_classes, n_classes), np.int64)
        none = np.zeros(len(self.thresholds), np.int64)
        self.counts = _Counts(square, none, none, square, square)
        self.f_total = np.zeros(len(self.thresholds))
        self.best, self.adaptive, self.errors, self.boundaries = ([] for _ in range(4))

    def add(self, name: str, scores: Scores, truth: Pixels, ids: NDArray[np.uint8]) -> None:
        """Measures a photo.

        Args:
            name: Name of the photo.
            scores: (K + 1, H, W).
            truth: (H, W) class ids; 255 counts nowhere.
            ids: As `class_ids` gives them.
        """
        is_valid = truth != IGNORE
        if not is_valid.any():
            self.n_unlabelled += 1
            return
        _check_scores(name, scores, truth)
        foreground = scores[1:].sum(axis=0)
        mask = self._mask(name, scores, foreground, ids)
        counts = self._count(mask, foreground, truth)
        self.counts = self.counts + counts
        self.scores.append(self._score(name, counts.confusion))
        curve = self._f_curve(counts)
        self.f_total += curve
        self.best.append(float(np.delete(curve, self.half).max()))
        soft, is_true = foreground[is_valid], truth[is_valid] > 0
        self.errors.append(float(np.abs(soft.astype(np.float64) - is_true).mean()))
        self.adaptive.append(self._adaptive_f(soft, is_true))
        if self.rules.sees_boundaries:
            self.boundaries.append(boundary_f(mask, truth))

    def _mask(
        self, name: str, scores: Scores, foreground: Scores, ids: NDArray[np.uint8]
    ) -> Pixels:
        """(H, W): the predicted class ids."""
        if len(ids) == 2:
            is_predicted = foreground >= 0.5 if self.rules.takes_half else foreground > 0.5
            return is_predicted.astype(np.uint8)
        if len(scores) != len(ids):
            raise InputError(
                f"{name}: the segmenter knows {len(scores) - 1} classes, but the data set has "
                f"{len(self.classes)}: {', '.join(self.classes)}. Measure the foreground alone "
                "with `protocol` melas2021."
            )
        return ids[scores.argmax(axis=0)]

    def _count(self, mask: Pixels, foreground: Scores, truth: Pixels) -> _Counts:
        n_classes, is_valid = len(self.names) + 1, truth != IGNORE
        right, predicted = metrics.threshold_counts(
            foreground[is_valid], truth[is_valid] > 0, self.thresholds
        )
        bands = [np.zeros((n_classes, n_classes), np.int64)] * 2
        if self.rules.sees_boundaries:
            bands = [
                metrics.confusion_matrix(
                    mask,
                    np.where(trimap(truth, width), truth, IGNORE).astype(np.uint8),
                    n_classes=n_classes,
                )
                for width in (TRIMAP_PX, NARROW_PX)
            ]
        confusion = metrics.confusion_matrix(mask, truth, n_classes=n_classes)
        return _Counts(confusion, right, predicted, *bands)

    def _score(self, name: str, confusion: metrics.Counts) -> ImageScore:
        ious = metrics.iou(confusion, epsilon=self.rules.epsilon)[1:]
        iou = self.rules.empty_iou if np.isnan(ious).all() else float(np.nanmean(ious))
        return ImageScore(name, metrics.accuracy(confusion), iou)

    def _f_curve(self, counts: _Counts) -> metrics.Floats:
        """F-beta of the foreground at every threshold and at 0.5."""
        true = counts.confusion[1:].sum()
        return self._f(counts.right, counts.predicted, true)

    def _f(
        self, right: metrics.Counts, predicted: metrics.Counts, true: metrics.Counts
    ) -> metrics.Floats:
        rules = self.rules
        pair = metrics.precision_recall(right, predicted, true, epsilon=rules.epsilon)
        return metrics.f_beta(*pair, beta_squared=rules.beta_squared)

    def _adaptive_f(self, soft: Scores, is_true: NDArray[np.bool_]) -> float:
        """F-beta at twice the mean probability, at most the largest one.

        Source: Achanta et al. 2009, section 4.
        """
        limit = min(2 * float(soft.mean(dtype=np.float64)), float(soft.max()))
        is_predicted = (soft >= limit) & (soft > 0)
        counts = ((is_predicted & is_true).sum(), is_predicted.sum(), is_true.sum())
        return float(self._f(*(np.asarray(count, np.int64) for count in counts)))

    def result(self) -> Result:
        """The numbers of all photos.

        Raises:
            InputError: no photo has a labelled pixel.
        """
        if not self.scores:
            raise InputError(f"{self.name}: no photo has a labelled pixel, so nothing is measured.")
        rules, confusion, n = self.rules, self.counts.confusion, len(self.scores)
        accs, ious = np.array([(score.acc, score.iou) for score in self.scores]).T
        class_iou = dict(
            zip((BACKGROUND, *self.names), metrics.iou(confusion).tolist(), strict=True)
        )
        f_curve = self._f_curve(self.counts) if rules.pools else self.f_total / n
        f_at_thresholds, best = np.delete(f_curve, self.half), math.nan
        if not rules.best_per_image:
            best = float(np.delete(self.thresholds, self.half)[f_at_thresholds.argmax()])
        result = Result(
            dataset=self.name,
            protocol=rules.name,
            n_images=n,
            n_unlabelled=self.n_unlabelled,
            acc=metrics.accuracy(confusion) if rules.pools else float(accs.mean()),
            iou=float(ious.mean()),
            iou_error=float(ious.std(ddof=1) / math.sqrt(n)) if n > 1 else math.nan,
            iou_pooled=mean_known([class_iou[name] for name in self.names]),
            iou_background=class_iou[BACKGROUND],
            mean_iou=mean_known(list(class_iou.values())),
            weighted_iou=metrics.weighted_iou(confusion),
            f_half=float(f_curve[self.half]),
            max_f=float(np.mean(self.best) if rules.best_per_image else f_at_thresholds.max()),
            threshold=best,
            mean_f=float(f_at_thresholds.mean()),
            adaptive_f=float(np.mean(self.adaptive)),
            one_minus_mae=1 - float(np.mean(self.errors)),
            class_iou={
                name: value
                for name, value in class_iou.items()
                if name != BACKGROUND or rules.counts_background
            },
            per_image=tuple(self.scores),
        )
        return self._with_boundaries(result)

    def _with_boundaries(self, result: Result) -> Result:
        if not self.rules.sees_boundaries:
            return result
        band, narrow = (metrics.iou(c).tolist() for c in (self.counts.band, self.counts.narrow))
        return replace(
            result,
            trimap_foreground=mean_known(band[1:]),
            trimap_background=band[0],
            trimap_mean=mean_known(band),
            trimap_narrow=mean_known(narrow),
            boundary_f=float(np.mean(self.boundaries)),
        )


def _check_scores(name: str, scores: Scores, truth: Pixels) -> None:
    if scores.ndim != 3 or scores.shape[1:] != truth.shape or len(scores) < 2:
        raise InputError(
            f"{name}: the scores have shape {scores.shape}; expected (classes + 1, "
            f"{truth.shape[0]}, {truth.shape[1]}), as the photo."
        )
    if not np.isfinite(scores).all():
        raise DivergedError(f"{name}: the segmenter's scores hold NaN or infinity.")
