import doctest

import numpy as np
import pytest
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    fbeta_score,
    jaccard_score,
    precision_score,
    recall_score,
)

from latentseg.errors import InputError
from latentseg.evaluation import baselines, metrics, papers, protocols

TOLERANCE = 1e-9


def random_case(seed: int, size: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Scores (N,) float32 and truth (N,) bool: random, empty, full and one-pixel ones, 8-bit and fine scores."""
    rng = np.random.default_rng(seed)
    size = size or int(rng.integers(1, 200))
    scores = rng.random(size, dtype=np.float32)
    if seed % 3 == 0:  # exactly on the thresholds
        scores = (rng.integers(0, 256, size).astype(np.float32) / np.float32(255)).astype(np.float32)
    truth = rng.random(size) < rng.random()
    if seed % 7 == 1:
        truth[:] = seed % 2
    if seed % 7 == 2:
        truth[:] = False
        truth[rng.integers(size)] = True
    if seed % 11 == 3:
        scores[:] = seed % 2
    return scores, truth


@pytest.mark.parametrize("module", [metrics, baselines, papers, protocols])
def test_examples_in_docstrings(module):
    assert doctest.testmod(module).failed == 0


def test_threshold_counts_of_500_masks_when_compared_with_254_passes():
    for seed in range(500):
        scores, truth = random_case(seed)
        right, predicted = metrics.threshold_counts(scores, truth)
        above = scores[None] > metrics.THRESHOLDS[:, None]
        np.testing.assert_array_equal(predicted, above.sum(1))
        np.testing.assert_array_equal(right, (above & truth).sum(1))


def test_thresholds_are_254_and_skip_zero():
    assert len(metrics.THRESHOLDS) == 254
    assert metrics.THRESHOLDS[0] == np.float32(1 / 255)
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
    is_any = (truth | predicted).any(1)
    ours = {
        accuracy_score: [metrics.accuracy(c) for c in confusions],
        precision_score: precision,
        recall_score: recall,
        jaccard_score: np.array([metrics.iou(c)[1] for c in confusions])[is_any],
        fbeta_score: metrics.f_beta(precision, recall)[truth.any(1) & predicted.any(1)],
    }
    # To sklearn each mask is a label of 150 samples, so that one call answers for all of them.
    labels = {"average": None}
    reference = {
        accuracy_score: [accuracy_score(t, p) for t, p in zip(truth, predicted, strict=True)],
        precision_score: precision_score(truth.T, predicted.T, zero_division=1, **labels),
        recall_score: recall_score(truth.T, predicted.T, zero_division=1, **labels),
        jaccard_score: jaccard_score(truth[is_any].T, predicted[is_any].T, zero_division=0, **labels),
        fbeta_score: fbeta_score(
            truth[truth.any(1) & predicted.any(1)].T,
            predicted[truth.any(1) & predicted.any(1)].T,
            beta=0.3**0.5,
            zero_division=0,
            **labels,
        ),
    }
    for name, expected in reference.items():
        np.testing.assert_allclose(ours[name], expected, rtol=0, atol=TOLERANCE)
    assert np.isnan(metrics.iou(confusions[int(np.argmin(is_any))])[1])


def test_f_beta_when_both_are_zero_is_zero():
    assert metrics.f_beta(np.float64(0), np.float64(0)) == 0


def test_confusion_matrix_leaves_ignored_pixels_out():
    truth = np.uint8([[0, 1, 255, 255]])
    counted = metrics.confusion_matrix(np.uint8([[0, 0, 1, 0]]), truth, n_classes=2)
    assert counted.tolist() == [[1, 0], [1, 0]]


def test_confusion_matrix_with_many_classes_matches_sklearn():
    rng = np.random.default_rng(0)
    truth, mask = rng.integers(0, 5, (2, 40, 30), dtype=np.uint8)
    ours = metrics.confusion_matrix(mask, truth, n_classes=5)
    assert ours.tolist() == confusion_matrix(truth.ravel(), mask.ravel()).tolist()
    reference = jaccard_score(truth.ravel(), mask.ravel(), average=None)
    np.testing.assert_allclose(metrics.iou(ours), reference, atol=TOLERANCE)


def test_confusion_matrix_when_an_id_is_out_of_range_names_the_pixel():
    with pytest.raises(InputError, match=r"Pixel \(0, 1\) of the truth has class id 7"):
        metrics.confusion_matrix(np.uint8([[0, 0]]), np.uint8([[0, 7]]), n_classes=2)


def test_confusion_matrix_when_shapes_differ_is_refused():
    with pytest.raises(InputError, match="shape"):
        metrics.confusion_matrix(np.zeros((2, 2), np.uint8), np.zeros((2, 3), np.uint8), n_classes=2)
