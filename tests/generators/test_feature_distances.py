"""Distances by features: against scipy and scikit-learn, and what they say of known cases."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.training.feature_distances import (
    FeatureDistances,
    Gaussian,
    frechet_distance,
    precision_and_recall,
)
from tests.generators.random_features import random_features


def normal(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [200, 7])
def test_frechet_distance_is_that_of_scipys_matrix_root(n: int) -> None:
    a, b = normal(n, 12, 0), normal(n + 3, 12, 1) * 1.5 + 0.5
    mean = (a.double().mean(0) - b.double().mean(0)).square().sum().item()
    cov_a, cov_b = (np.cov(x.double().numpy(), rowvar=False) for x in (a, b))
    # A sum of roots, not a root of the product: it is defined for singular matrices, too.
    root_a = np.real(scipy.linalg.sqrtm(cov_a + 1e-12 * np.eye(12)))
    inner = np.real(scipy.linalg.sqrtm(root_a @ cov_b @ root_a + 1e-12 * np.eye(12)))
    expected = mean + np.trace(cov_a) + np.trace(cov_b) - 2 * np.trace(inner)
    actual = frechet_distance(Gaussian.of(a), Gaussian.of(b))
    assert actual == pytest.approx(expected, rel=1e-3)


def test_frechet_distance_of_a_shift_is_its_square() -> None:
    a = normal(50, 4, 0)
    assert frechet_distance(Gaussian.of(a), Gaussian.of(a)) == pytest.approx(0, abs=1e-5)
    assert frechet_distance(Gaussian.of(a), Gaussian.of(a + 2)) == pytest.approx(16, rel=1e-5)


def by_scikit_learn(reference: np.ndarray, asked: np.ndarray) -> float:
    """Share of `asked` inside the third-neighbor balls of `reference`."""
    search = NearestNeighbors(n_neighbors=4, algorithm="brute").fit(reference)
    radii = search.kneighbors(reference)[0][:, 3]
    near = NearestNeighbors(n_neighbors=len(reference), algorithm="brute").fit(reference)
    distances, index = near.kneighbors(asked)
    return float((distances <= radii[index]).any(axis=1).mean())


def test_precision_and_recall_are_those_of_scikit_learns_neighbors() -> None:
    photos, drawn = normal(80, 6, 0), normal(90, 6, 1) * 0.6 + 0.3
    precision, recall = precision_and_recall(photos, drawn)
    a, b = photos.double().numpy(), drawn.double().numpy()
    assert precision == pytest.approx(by_scikit_learn(a, b))
    assert recall == pytest.approx(by_scikit_learn(b, a))
    assert 0 < recall < precision <= 1


def test_one_repeated_photo_is_precise_and_has_no_recall() -> None:
    photos = normal(50, 6, 0)
    precision, recall = precision_and_recall(photos, photos[:1].repeat(50, 1))
    assert precision == 1
    assert recall < 0.1


def test_too_few_images_are_refused() -> None:
    with pytest.raises(InputError, match="more than 3 images, found 3 photos"):
        precision_and_recall(normal(3, 2, 0), normal(9, 2, 0))
    with pytest.raises(InputError, match="at least 2 images, found 1"):
        Gaussian.of(normal(1, 2, 0))


def test_distances_of_pictures_grow_with_their_difference() -> None:
    drawn = torch.Generator().manual_seed(1)
    photos = torch.randint(0, 256, (12, 3, 16, 16), dtype=torch.uint8, generator=drawn)
    distances = FeatureDistances(random_features(), photos)
    same, darker = distances(photos), distances(photos // 4)
    assert set(same) == {"fd-lite0", "precision", "recall"}
    assert same["fd-lite0"] == pytest.approx(0, abs=1e-3)
    assert same["precision"] == same["recall"] == 1
    assert darker["fd-lite0"] > same["fd-lite0"] + 1e-3
