import doctest
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from latentseg.datasets import groupings
from latentseg.errors import InputError
from latentseg.evaluation import baselines, metrics, papers, protocols
from tests.datasets.fabricate import ids

TOLERANCE = 1e-9
reference: Any = sklearn.metrics  # its types are wrong about None and 0


def random_case(seed: int, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) and truth (N,): random, empty, full and one-pixel, 8-bit and fine."""
    rng = np.random.default_rng(seed)
    size = size or int(rng.integers(1, 200))
    scores = rng.random(size, dtype=np.float32)
    if seed % 3 == 0:  # exactly on the thresholds
        scores = (rng.integers(0, 256, size).astype(np.float32) / np.float32(255)).astype(
            np.float32
        )
    truth = rng.random(size) < rng.random()
    if seed % 7 == 1:
        truth[:] = seed % 2
    if seed % 7 == 2:
        truth[:] = False
        truth[rng.integers(size)] = True
    if seed % 11 == 3:
        scores[:] = seed % 2
    return scores, truth


@pytest.mark.parametrize("module", [metrics, baselines, groupings, papers, protocols])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_threshold_counts_of_500_masks_when_compared_with_254_passes():
    for seed in range(500):
        scores, truth = random_case(seed)
        right, predicted = metrics.threshold_counts(scores, truth)
        above = scores[None] > metrics.THRESHOLDS[:, None]
        np.testing.assert_array_equal(predicted, above.sum(1))
        np.testing.assert_array_equal(right, (above & truth).sum(1))


def test_thresholds_are_255_from_zero_on():
    assert len(metrics.THRESHOLDS) == 255
    assert metrics.THRESHOLDS[0] == 0
    assert metrics.THRESHOLDS[1] == np.float32(1 / 255)
    assert metrics.THRESHOLDS[-1] == np.float32(254 / 255)


def test_numbers_of_500_masks_when_compared_with_sklearn():
    cases = [random_case(seed, size=150) for seed in range(500)]
    predicted, truth = np.array([s > 0.5 for s, _ in cases]), np.array([t for _, t in cases])
    confusions = [
        metrics.confusion_matrix(p[None].astype(np.uint8), t[None].astype(np.uint8), n_classes=2)
        for p, t in zip(predicted, truth, strict=True)
    ]
    right, said, true = np.array([(c[1, 1], c[:, 1].sum(), c[1].sum()) for c in confusions]).T
    precision, recall = metrics.precision_recall(right, said, true)
    accuracies = [metrics.accuracy(c) for c in confusions]
    ious = np.array([metrics.iou(c)[1] for c in confusions])

    def agree(ours: Any, theirs: Any) -> None:
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)

    # To sklearn each mask is a label of 150 samples, so that one call answers for all of them.
    agree(
        accuracies, [reference.accuracy_score(t, p) for t, p in zip(truth, predicted, strict=True)]
    )
    one = {"average": None, "zero_division": 1}
    agree(precision, reference.precision_score(truth.T, predicted.T, **one))
    agree(recall, reference.recall_score(truth.T, predicted.T, **one))
    some = (truth | predicted).any(1)
    agree(ious[some], reference.jaccard_score(truth[some].T, predicted[some].T, average=None))
    assert np.isnan(ious[~some]).all()
    both = truth.any(1) & predicted.any(1)
    options = {"beta": 0.3**0.5, "average": None, "zero_division": 0}
    f = reference.fbeta_score(truth[both].T, predicted[both].T, **options)
    agree(metrics.f_beta(precision, recall)[both], f)


def test_f_beta_when_both_are_zero_is_zero():
    assert metrics.f_beta(np.zeros(1), np.zeros(1)) == 0


def test_confusion_matrix_leaves_ignored_pixels_out():
    truth = ids([[0, 1, 255, 255]])
    counted = metrics.confusion_matrix(ids([[0, 0, 1, 0]]), truth, n_classes=2)
    assert counted.tolist() == [[1, 0], [1, 0]]


def test_confusion_matrix_with_many_classes_matches_sklearn():
    rng = np.random.default_rng(0)
    truth, mask = rng.integers(0, 5, (2, 40, 30), dtype=np.uint8)
    ours = metrics.confusion_matrix(mask, truth, n_classes=5)
    assert ours.tolist() == reference.confusion_matrix(truth.ravel(), mask.ravel()).tolist()
    theirs = reference.jaccard_score(truth.ravel(), mask.ravel(), average=None)
    np.testing.assert_allclose(metrics.iou(ours), theirs, atol=TOLERANCE)


def test_confusion_matrix_when_an_id_is_out_of_range_names_the_pixel():
    with pytest.raises(InputError, match=r"Pixel \(0, 1\) of the truth has class id 7"):
        metrics.confusion_matrix(ids([[0, 0]]), ids([[0, 7]]), n_classes=2)


def test_confusion_matrix_when_shapes_differ_is_refused():
    with pytest.raises(InputError, match="shape"):
        metrics.confusion_matrix(
            np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), n_classes=2
        )


@pytest.mark.parametrize("seed", range(20))
def test_weighted_iou_when_compared_with_sklearn(seed):
    rng = np.random.default_rng(seed)
    n_classes = int(rng.integers(2, 8))
    shares = rng.dirichlet(np.full(n_classes, 0.5))
    truth = rng.choice(n_classes, (30, 20), p=shares).astype(np.uint8)
    mask = np.where(rng.random(truth.shape) < 0.7, truth, rng.integers(0, n_classes, truth.shape))
    confusion = metrics.confusion_matrix(mask.astype(np.uint8), truth, n_classes=n_classes)
    theirs = reference.jaccard_score(truth.ravel(), mask.ravel(), average="weighted")
    assert metrics.weighted_iou(confusion) == pytest.approx(theirs, abs=TOLERANCE)


def test_weighted_iou_of_classes_that_never_occur_and_of_nothing():
    assert metrics.weighted_iou(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]])) == 0.75
    assert np.isnan(metrics.weighted_iou(np.zeros((3, 3), np.int64)))
