"""Clustering: against scikit-learn, independent of the batch, defined where there is no answer."""

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans

from latentseg.errors import DivergedError, InputError
from latentseg.labelers import clustering
from latentseg.labelers.clustering import cluster, nearest
from tests.closeness import assert_same_masks


def blobs(n_images: int = 6, n: int = 400, dimensions: int = 24, k: int = 4, key: int = 0):
    """Points (n_images, n, dimensions) around k centers, close enough to touch; and their blob."""
    rng = np.random.default_rng(key)
    centers = rng.normal(0, 1, (n_images, k, dimensions))
    ids = rng.integers(0, k, (n_images, n))
    points = np.take_along_axis(centers, ids[..., None], axis=1)
    points = points + rng.normal(0, 0.8, points.shape) + 3
    return torch.from_numpy(points).float(), ids


def sklearn_inertia(points: np.ndarray, k: int) -> float:
    # Its annotations know only the text "auto" for n_init.
    model = KMeans(k, n_init=10, random_state=0)  # pyright: ignore[reportArgumentType]
    return float(model.fit(points).inertia_ or 0.0)


def zeros(n: int) -> torch.Tensor:
    return torch.zeros(n, dtype=torch.int64)


def inertia_of(points: torch.Tensor, labels: torch.Tensor, k: int) -> float:
    """Of one image, in float64, from the labels alone."""
    total = 0.0
    for j in range(k):
        members = points[labels == j].double()
        total += float((members - members.mean(dim=0)).square().sum()) if len(members) else 0.0
    return total


@pytest.mark.parametrize("k", [1, 2, 4])
def test_kmeans_when_compared_with_scikit_learn_then_inertia_is_equal_or_better(k: int):
    points, _ = blobs()
    found = cluster(points, k, seeds=zeros(6), restarts=20)
    reference = [sklearn_inertia(one.numpy(), k) for one in points]
    # Optima that differ by less are not told apart along the principal axes.
    assert (found.inertia.numpy() <= np.array(reference) * (1 + 1e-4)).all()


def test_kmeans_when_done_then_inertia_is_exact_and_the_labels_are_a_fixed_point():
    points, _ = blobs()
    found = cluster(points, 4, seeds=zeros(6))
    for one, labels, centers, inertia in zip(
        points, found.labels, found.centers, found.inertia, strict=True
    ):
        assert float(inertia) == pytest.approx(inertia_of(one, labels, 4), rel=1e-5)
        means = torch.stack([one[labels == j].mean(dim=0) for j in range(4)])
        torch.testing.assert_close(centers, means, atol=1e-4, rtol=1e-4)
        assert_same_masks(torch.cdist(one, centers).argmin(dim=1), labels)


def test_cluster_when_blobs_are_clear_then_they_are_found():
    points, ids = blobs(n_images=3)
    found = cluster(points, 4, seeds=zeros(3))
    for labels, truth in zip(found.labels.numpy(), ids, strict=True):
        counts = np.histogram2d(labels, truth, bins=(4, 4))[0]
        assert counts.max(axis=1).sum() >= 0.98 * len(truth)


def test_cluster_when_the_batch_is_split_or_memory_is_small_then_the_same():
    points, _ = blobs(n_images=7, n=1500)
    seeds = torch.arange(7)
    whole = cluster(points, 3, seeds=seeds)
    parts = [
        cluster(points[rows], 3, seeds=seeds[rows])
        for rows in (slice(0, 1), slice(1, 5), slice(5, 7))
    ]
    tight = cluster(points, 3, seeds=seeds, memory=100_000)
    assert_same_masks(whole.labels, torch.cat([part.labels for part in parts]))
    assert_same_masks(whole.labels, tight.labels)
    torch.testing.assert_close(whole.inertia, tight.inertia, rtol=1e-5, atol=1e-5)
    assert_same_masks(whole.labels, cluster(points, 3, seeds=seeds).labels)


def test_at_once_when_memory_is_small_then_images_and_then_points_are_split():
    points = torch.zeros(64, 4096, 12)
    many, all_points = clustering._at_once(points, 40, 2**26)
    one, few_points = clustering._at_once(points, 40, 2**18)
    assert many > one == 1
    assert all_points == 4096 > few_points == clustering.LEAST_POINTS


def test_cluster_when_the_image_is_constant_then_one_cluster_and_no_confidence():
    found = cluster(torch.full((2, 30, 6), 0.3), 3, seeds=zeros(2))
    assert (found.labels == 0).all()
    assert (found.margins == 0).all()
    assert found.centers.isfinite().all()
    torch.testing.assert_close(found.inertia, torch.zeros(2, dtype=torch.float64))


def test_cluster_when_there_are_fewer_distinct_points_than_clusters_then_each_is_one():
    distinct = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 2.0]])
    found = cluster(distinct.repeat(1, 10, 1), 5, seeds=zeros(1))
    assert len(found.labels.unique()) == 3
    assert float(found.inertia) == 0
    assert len({tuple(found.labels[0, i::3].unique().tolist()) for i in range(3)}) == 3


def test_cluster_when_there_are_as_many_clusters_as_points_then_each_point_is_one():
    points = torch.arange(6.0)[None, :, None].expand(2, 6, 3)
    found = cluster(points, 6, seeds=torch.arange(2))
    assert [len(labels.unique()) for labels in found.labels] == [6, 6]
    assert (found.inertia == 0).all()


def test_refilled_when_a_cluster_is_empty_then_it_takes_the_farthest_point():
    columns = torch.tensor([[0.0, 0.1, 5.0]])
    points = torch.cat([columns, torch.ones(1, 3)])[None]
    centers = torch.tensor([[[[0.0], [9.0]]]])
    moved = clustering._refilled(points, centers, torch.tensor([[[False, True]]]))
    assert moved.flatten().tolist() == [0.0, 5.0]


def test_margins_when_points_are_at_a_center_or_between_then_1_and_0():
    centers = torch.tensor([[[0.0, 0.0], [2.0, 0.0]]])
    points = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [0.5, 0.0]]])
    labels, margins = nearest(points, centers)
    assert labels.tolist() == [[0, 0, 0]]
    torch.testing.assert_close(margins, torch.tensor([[1.0, 0.0, 2 / 3]]))


def test_assign_when_given_the_clustered_points_then_their_labels():
    points, _ = blobs()
    found = cluster(points, 3, seeds=zeros(6))
    assert (found.assign(points) == found.labels).float().mean() > 0.999


def test_cluster_when_k_exceeds_the_points_then_both_are_named():
    with pytest.raises(InputError, match="`k`: expected 1 to 30"):
        cluster(torch.zeros(1, 30, 2), 31, seeds=zeros(1))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"restarts": 0}, "`restarts`"),
        ({"memory": 0}, "`memory`"),
        ({"seeds": zeros(3)}, "3 seeds"),
    ],
)
def test_cluster_when_an_argument_is_impossible_then_it_is_named(change, named):
    with pytest.raises(InputError, match=named):
        cluster(torch.zeros(2, 9, 2), 2, **{"seeds": zeros(2), **change})


def test_cluster_when_points_are_nan_then_it_says_so():
    points = torch.zeros(1, 9, 2)
    points[0, 3, 1] = float("nan")
    with pytest.raises(DivergedError, match="NaN"):
        cluster(points, 2, seeds=zeros(1))
