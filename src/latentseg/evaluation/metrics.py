"""How well a mask agrees with the truth: counts of pixels, and the numbers made from them."""

import numpy as np
from numpy.typing import NDArray

from latentseg.errors import InputError
from latentseg.images import IGNORE, Pixels

BETA_SQUARED = 0.3  # Achanta et al. 2009, section 4
# k / 255 for k = 0 ... 254; the official code of Melas-Kyriazi 2021 skips 0.
THRESHOLDS = np.arange(255, dtype=np.float32) / np.float32(255)

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def confusion_matrix(
    mask: Pixels, truth: Pixels, *, n_classes: int, ignore: int = IGNORE
) -> Counts:
    """Counts pixels by true and predicted class.

    Args:
        mask: Predicted class ids, (H, W) uint8, values in [0, n_classes).
        truth: True class ids, same shape; pixels equal to `ignore` do not count.
        n_classes: Number of classes with the background, at least 2.
        ignore: Id of pixels without a label.

    Returns:
        (n_classes, n_classes) int64; rows are true classes, columns predicted ones.

    Raises:
        InputError: shapes differ, or an id is outside the range (the first such pixel is named).

    >>> confusion_matrix(np.uint8([[0, 1]]), np.uint8([[1, 1]]), n_classes=2).tolist()
    [[0, 0], [1, 1]]
    """
    if mask.shape != truth.shape:
        raise InputError(f"The mask has shape {mask.shape}, but the truth has {truth.shape}.")
    valid = truth != ignore
    for name, ids in (("mask", mask), ("truth", truth)):
        wrong = valid & (ids >= n_classes)
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise InputError(
                f"Pixel ({y}, {x}) of the {name} has class id {ids[y, x]}, "
                f"but there are {n_classes} classes (0-{n_classes - 1})."
            )
    joint = truth[valid].astype(np.int64) * n_classes + mask[valid]
    return np.bincount(joint, minlength=n_classes**2).reshape(n_classes, n_classes)


def accuracy(confusion: Counts) -> float:
    """Share of pixels whose class is right, in [0, 1]; NaN if no pixel was counted.

    >>> accuracy(np.array([[3, 1], [0, 4]]))
    0.875
    """
    total = confusion.sum()
    return float(np.trace(confusion) / total) if total else float("nan")


def iou(confusion: Counts, *, epsilon: float = 0.0) -> Floats:
    """Intersection over union of each class.

    Args:
        confusion: (n_classes, n_classes), of `confusion_matrix`.
        epsilon: Added to the union.

    Returns:
        (n_classes,) float64 in [0, 1]. Where a class is neither true nor predicted anywhere, NaN
        without `epsilon`, and 0 with it.

    Source: Everingham et al. 2010, section 4.4. Checked against sklearn.metrics.jaccard_score.

    >>> iou(np.array([[3, 1], [0, 4]])).tolist()
    [0.75, 0.8]
    """
    intersection = np.diagonal(confusion).astype(np.float64)
    union = confusion.sum(0) + confusion.sum(1) - intersection + epsilon
    return np.divide(intersection, union, out=np.full_like(intersection, np.nan), where=union > 0)


def weighted_iou(confusion: Counts) -> float:
    """IoU of the classes, each weighed by its share of the true pixels, in [0, 1].

    NaN if no pixel was counted. A class that is predicted but never true has no weight.

    Source: Tritrong et al. 2021, section 4: the sum over c of (n_c / N) IoU_c, with n_c of all N
    pixels truly of class c. Checked against sklearn.metrics.jaccard_score(average="weighted").

    >>> round(weighted_iou(np.array([[3, 1], [0, 8]])), 3)
    0.843
    """
    true = confusion.sum(axis=1)
    total = true.sum()
    return float(np.nan_to_num(iou(confusion)) @ true / total) if total else float("nan")


def threshold_counts(
    scores: NDArray[np.float32],
    truth: NDArray[np.bool_],
    thresholds: NDArray[np.float32] = THRESHOLDS,
) -> tuple[Counts, Counts]:
    """Counts what lies above each of many thresholds, in one pass over the pixels.

    Args:
        scores: Foreground probability of each pixel that counts, (N,) in [0, 1].
        truth: Whether it is foreground, (N,).
        thresholds: (T,), rising.

    Returns:
        For each threshold t, how many pixels with score > t are truly foreground, and how many
        pixels have a score > t: two arrays (T,) int64.

    >>> right, predicted = threshold_counts(np.float32([0.5, 0.9]), np.array([False, True]))
    >>> right[1].item(), predicted[1].item(), predicted[200].item()
    (1, 2, 1)
    """
    below = np.searchsorted(thresholds, scores.astype(np.float32, copy=False), side="left")
    n_bins = len(thresholds) + 1
    histogram = np.bincount(below + n_bins * truth, minlength=2 * n_bins).reshape(2, n_bins)
    above = histogram[:, ::-1].cumsum(axis=1)[:, ::-1][:, 1:]
    return above[1], above.sum(axis=0)


def precision_recall(
    right: Counts, predicted: Counts, true: Counts, *, epsilon: float = 0.0
) -> tuple[Floats, Floats]:
    """Precision and recall.

    Without `epsilon` an empty prediction has precision 1 and an empty truth recall 1; with it both
    are 0.

    Args:
        right: Number of pixels that are predicted and true, any shape.
        predicted: Number of predicted pixels.
        true: Number of true pixels.
        epsilon: Added to the denominators.

    >>> [float(x) for x in precision_recall(np.int64(2), np.int64(4), np.int64(8))]
    [0.5, 0.25]
    """
    right, predicted, true = np.broadcast_arrays(right, predicted, true)
    if epsilon:
        return right / (predicted + epsilon), right / (true + epsilon)
    ones = np.ones(right.shape)
    precision = np.divide(right, predicted, out=ones.copy(), where=predicted > 0)
    recall = np.divide(right, true, out=ones.copy(), where=true > 0)
    return precision, recall


def f_beta(precision: Floats, recall: Floats, *, beta_squared: float = BETA_SQUARED) -> Floats:
    """The weighted harmonic mean of precision and recall; 0 where both are 0.

    Source: Achanta et al. 2009, Eq. 6. Checked against sklearn.metrics.fbeta_score.

    >>> round(float(f_beta(np.float64(0.9), np.float64(0.6))), 3)
    0.807
    """
    product = (1 + beta_squared) * precision * recall
    total = beta_squared * precision + recall
    return np.divide(product, total, out=np.zeros(np.shape(total)), where=total > 0)
