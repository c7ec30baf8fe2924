"""Clusters of pixels: k-means for many images at once.

Starts are compared in a few dimensions, the principal axes of each image. Only the best one is
taken to its end in all dimensions, so that what comes back is a fixed point of Lloyd's algorithm
with its exact inertia, at a fraction of the cost.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from latentseg.errors import DivergedError, InputError
from latentseg.labelers.memory import GIB
from latentseg.seeds import random_generator

AXES = 12  # principal axes in which starts are compared; at least 3 k
AXES_STEPS = 2  # of subspace iteration: the axes need not be exact
AXES_SPARSER = 2  # of the points from which starts are searched, each second gives the axes
START_POINTS = 700  # from which starts are searched
START_TOLERANCE = 1e-3  # of the points' variance
FINAL_TOLERANCE = 1e-5
TRIALS = 3  # candidates for each first center, of which the best one is taken
START_ITERATIONS = 4  # after which starts are compared
FINALISTS = 3  # starts that are taken to their end
SAME = 1e-3  # share of the inertia by which starts differ that have come to different clusters
ROUNDING = 1e-6  # share of the largest square, below which a squared distance is rounding
LEAST_POINTS = 1024  # whose scores are held at once, however little memory there is
CACHED_BYTES = 64 * 2**20  # on a CPU, more images at once fall out of its cache


@dataclass(frozen=True)
class Clusters:
    """The clusters of the points of B images.

    Attributes:
        labels: Cluster of each point, (B, P) int64 in [0, k); 0 is the largest cluster.
        centers: (B, k, D) float32. A cluster without points, which only images with fewer distinct
            points than clusters have, has the center of cluster 0.
        inertia: The sum of squared distances to the centers, (B,) float64.
        margins: How far each point is from the boundary to the next cluster, (B, P) float32 in
            [0, 1]: 1 - (distance to its center) / (distance to the next center). 0 if there is no
            other cluster.
        slopes: (B, k, D) float32; with `offsets` it tells the cluster of any other point: the one
            with the largest slope * point + offset.
        offsets: (B, k) float32.
    """

    labels: Tensor
    centers: Tensor
    inertia: Tensor
    margins: Tensor
    slopes: Tensor
    offsets: Tensor

    def assign(self, points: Tensor) -> Tensor:
        """The cluster of points (B, Q, D) that need not be those clustered, (B, Q) int64."""
        scores = torch.baddbmm(self.offsets[..., None], self.slopes, points.mT)
        return scores.argmax(dim=1)


def cluster(
    points: Tensor,
    k: int,
    *,
    seeds: Tensor,
    restarts: int = 10,
    iterations: int = 100,
    memory: int = GIB,
) -> Clusters:
    """Clusters the points of each image; on the device of `points`.

    The clusters of an image depend on its points and its seed, not on its neighbours in the batch,
    up to rounding.

    Args:
        points: (B, P, D) float32. Fastest if it is the transposed view of (B, D, P).
        k: Number of clusters, 1 to P. Where an image has fewer distinct points, clusters stay
            empty.
        seeds: (B,) int64, of the starts.
        restarts: Pairs of starts, one by k-means++ and one by its greedy form; the best one counts.
        iterations: Most iterations of Lloyd's algorithm.
        memory: Bytes that may be used beside `points`; it bounds how many images, and how many of
            their points, are worked on at once. The least that can be done is one image.

    Raises:
        InputError: k is larger than the number of points or below 1, or another argument is
            impossible.
        DivergedError: points are NaN or infinite.

    Source: Lloyd 1982; Arthur and Vassilvitskii 2007 (k-means++). Checked against
    sklearn.cluster.KMeans.
    """
    _check(points, k, seeds, restarts, iterations, memory)
    n_axes = max(AXES, 3 * k)
    n_images, n_points = _at_once(points, 2 * k * restarts + n_axes, memory)
    parts = []
    for start in range(0, len(points), n_images):
        rows = slice(start, start + n_images)
        draws = [
            torch.rand(2 * restarts, k, TRIALS, generator=random_generator(int(seed)))
            for seed in seeds[rows]
        ]
        uniform = torch.stack(draws).to(points.device)
        parts.append(_cluster(points[rows].float(), uniform, n_axes, iterations, n_points))
    names = [field.name for field in fields(Clusters)]
    return Clusters(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def nearest(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster and margin of points that need not be those that were clustered.

    Args:
        points: (B, P, D) float32.
        centers: (B, k, D) float32.

    Returns:
        Labels (B, P) int64 and margins (B, P) in [0, 1], as `Clusters` has them.
    """
    labels, first, second = _two_nearest(_distances(points.mT, centers))
    return labels, _margins(first, second)


def _check(
    points: Tensor, k: int, seeds: Tensor, restarts: int, iterations: int, memory: int
) -> None:
    if points.ndim != 3 or len(seeds) != len(points) or not len(points):
        raise InputError(
            f"points of shape {tuple(points.shape)} with {len(seeds)} seeds: expected "
            "(images, points, dimensions), at least one image, and a seed for each."
        )
    if not 1 <= k <= points.shape[1]:
        raise InputError(
            f"`k`: expected 1 to {points.shape[1]}, the number of pixels, found {k}. "
            "Ask for fewer clusters, or give larger images."
        )
    for name, value in (("restarts", restarts), ("iterations", iterations), ("memory", memory)):
        if value < 1:
            raise InputError(f"`{name}`: expected at least 1, found {value}.")
    if not points.sum().isfinite():  # one pass, where looking at every number takes five
        raise DivergedError("the pixels to be clustered hold NaN or infinity.")


def _at_once(points: Tensor, n_scores: int, memory: int) -> tuple[int, int]:
    """How many images, and how many of their points, are worked on at once."""
    _, n_points, n_dimensions = points.shape
    bytes_each = 4 * n_points * (2 * n_dimensions + 3 * n_scores)
    allowed = min(memory, CACHED_BYTES) if points.device.type == "cpu" else memory
    n_images = max(1, allowed // bytes_each)
    left = max(memory - 8 * n_images * n_points * n_dimensions, memory // 4)
    return n_images, min(n_points, max(LEAST_POINTS, left // (12 * n_images * n_scores)))


def _cluster(
    points: Tensor, uniform: Tensor, n_axes: int, iterations: int, n_points: int
) -> Clusters:
    """The clusters of so few images that all of them fit; see `cluster`."""
    columns = points.mT
    # Ones below the points: one product then gives scores with offset, or sums and counts.
    homogeneous = columns.new_empty(len(columns), columns.shape[1] + 1, columns.shape[2])
    homogeneous[:, -1] = 1
    # Products of float32 lose least where what all points share has been taken away.
    mean = columns.mean(dim=2, keepdim=True)
    torch.sub(columns, mean, out=homogeneous[:, :-1])
    columns = homogeneous[:, :-1]
    centers = _first_centers(columns, uniform, n_axes, iterations, n_points)
    centers = _lloyd(homogeneous, centers[:, None], iterations, 0.0, n_points)[0][:, 0]
    distances = _distances(columns, centers)
    # Which of several equally good starts won is a matter of rounding; the order may not be.
    order = _falling_size(_one_hot(_two_nearest(distances)[0], centers))
    centers = centers.gather(1, order[..., None].expand_as(centers))
    labels, first, second = _two_nearest(distances.gather(1, order[..., None].expand_as(distances)))
    offsets = -0.5 * centers.square().sum(dim=2)
    return Clusters(
        labels=labels,
        centers=centers + mean.mT,
        inertia=first.double().square().sum(dim=1),
        margins=_margins(first, second),
        slopes=centers,
        offsets=offsets - (centers @ mean)[..., 0],
    )


def _distances(columns: Tensor, centers: Tensor) -> Tensor:
    """(B, k, P): distance of points (B, D, P) to centers (B, k, D); 0 below what float32 sees."""
    scratch = torch.empty_like(columns[0])  # squares of all images would not stay in the cache
    squares = torch.stack(
        [torch.mul(one, one, out=scratch).sum(dim=0, keepdim=True) for one in columns]
    )
    offsets = centers.square().sum(dim=2, keepdim=True)
    squared = torch.baddbmm(squares, centers, columns, alpha=-2) + offsets
    least = ROUNDING * torch.maximum(squares.amax(dim=2, keepdim=True), offsets)
    return torch.where(squared > least, squared, 0.0).sqrt()


def _two_nearest(distances: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """From distances (B, k, P): the nearest cluster (B, P), its distance, that of the next one.

    Of equally near clusters the first counts. Without another cluster the next is as near.
    """
    first = distances[:, 0]
    labels = torch.zeros_like(first, dtype=torch.int64)
    second = first if distances.shape[1] == 1 else torch.full_like(first, torch.inf)
    for j, distance in enumerate(distances.unbind(dim=1)[1:], start=1):
        is_nearer = distance < first
        second = torch.minimum(second, torch.maximum(first, distance))
        first = torch.minimum(first, distance)
        labels = torch.where(is_nearer, j, labels)
    return labels, first, second


def _margins(first: Tensor, second: Tensor) -> Tensor:
    return torch.where(second > 0, 1 - first / second.clamp(min=1e-30), 0.0)


def _one_hot(labels: Tensor, centers: Tensor) -> Tensor:
    """(B, k, P): 1 where a point has the label, else 0, in the type of the centers (B, k, D)."""
    ids = torch.arange(centers.shape[1], device=labels.device)[:, None]
    return (labels[:, None] == ids).to(centers.dtype)


def _falling_size(members: Tensor) -> Tensor:
    """(B, k): the clusters of members (B, k, P), largest first, of equals the one seen first."""
    n = members.shape[2]
    return (n * members.sum(dim=2).long() - members.argmax(dim=2)).argsort(dim=1, descending=True)


def _first_centers(
    columns: Tensor, uniform: Tensor, n_axes: int, iterations: int, n_points: int
) -> Tensor:
    """(B, k, D): centers that lie close to the best ones, searched along the principal axes.

    All starts make a few steps on some of the points, the best of them settle there, then on all
    points, and the best one is taken.
    """
    every = max(1, columns.shape[2] // START_POINTS)
    every -= 1 - every % 2  # odd, so that the points do not stand in a few columns of the image
    reduced = columns
    if columns.shape[1] > n_axes:
        reduced = _principal_axes(columns[..., :: AXES_SPARSER * every], n_axes).mT @ columns
    reduced = torch.cat([reduced, torch.ones_like(reduced[:, :1])], dim=1)
    some = reduced[..., ::every].contiguous()
    starts = _plus_plus(some, uniform)
    starts, inertia = _lloyd(some, starts, START_ITERATIONS, 0.0, n_points)
    finalists = _distinct(starts, inertia)
    finalists, _ = _lloyd(some, finalists, iterations, START_TOLERANCE, n_points)
    finalists, inertia = _lloyd(reduced, finalists, iterations, FINAL_TOLERANCE, n_points)
    rows = torch.arange(len(columns), device=columns.device)
    best = finalists[rows, inertia.argmin(dim=1)][:, None]
    members = _memberships(_scores(reduced, best))[:, 0]
    return members @ columns.mT / members.sum(dim=2, keepdim=True).clamp(min=1)


def _distinct(centers: Tensor, inertia: Tensor) -> Tensor:
    """The `FINALISTS` starts of least inertia, those first that have come to different clusters."""
    ranked, order = inertia.sort(dim=1, stable=True)
    is_repeated = ranked.diff(dim=1) < SAME * ranked[:, :1].abs()
    ranked[:, 1:].masked_fill_(is_repeated, torch.inf)
    best = order.gather(1, ranked.argsort(dim=1, stable=True)[:, :FINALISTS])[..., None, None]
    return centers.gather(1, best.expand(-1, -1, *centers.shape[2:]))


def _principal_axes(columns: Tensor, n: int) -> Tensor:
    """(B, D, n): orthonormal axes that nearly span the `n` directions of largest variance.

    Source: subspace iteration, Halko, Martinsson and Tropp 2011, algorithm 4.4.
    """
    columns = columns.contiguous()
    covariance = columns @ columns.mT
    drawn = torch.randn(columns.shape[1], n, generator=random_generator(n))
    axes = drawn.to(columns).expand(len(columns), -1, -1)
    for _ in range(AXES_STEPS):
        axes = torch.linalg.qr(covariance @ axes).Q
    return axes


def _plus_plus(points: Tensor, uniform: Tensor) -> Tensor:
    """Starts by k-means++, every second one greedy: of several candidates the best one is taken.

    Greedy starts are better on average, plain ones differ more from each other.

    Args:
        points: (B, d + 1, P), the last row ones.
        uniform: Random numbers, (B, S, k, T) for T candidates.

    Returns:
        (B, S, k, d).
    """
    columns = points[:, :-1]
    squares = columns.square().sum(dim=1, keepdim=True)
    # Below this, a distance is rounding: the point is one of the centers.
    least = ROUNDING * squares.amax(dim=2, keepdim=True)
    n_images, n_starts, k, _ = uniform.shape
    drawn = (uniform[:, :, 0, :1] * columns.shape[2]).long()
    away = columns.new_full((n_images, n_starts, 1, columns.shape[2]), torch.inf)
    centers = []
    for j in range(k):
        if j > 0:
            reach = away[:, :, 0].cumsum(dim=2)
            target = uniform[:, :, j] * reach[..., -1:]
            drawn = torch.searchsorted(reach, target, right=True)
            drawn = drawn.clamp(max=columns.shape[2] - 1)
        index = drawn.flatten(1)[:, None].expand(-1, columns.shape[1], -1)
        candidates = columns.gather(2, index).mT
        squared = torch.baddbmm(squares, candidates, columns, alpha=-2)
        squared += candidates.square().sum(dim=2, keepdim=True)
        squared = torch.where(squared > least, squared, 0.0).unflatten(1, drawn.shape[1:])
        remaining = torch.minimum(away, squared)
        left = remaining.sum(dim=3)
        left[:, ::2, 1:] = torch.inf
        best = left.argmin(dim=2)[:, :, None, None]
        away = remaining.gather(2, best.expand(-1, -1, 1, remaining.shape[3]))
        chosen = candidates.unflatten(1, drawn.shape[1:])
        centers.append(chosen.gather(2, best.expand(-1, -1, 1, columns.shape[1]))[:, :, 0])
    return torch.stack(centers, dim=2)


def _lloyd(
    points: Tensor,
    centers: Tensor,
    iterations: int,
    tolerance: float,
    n_points: int,
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from S starts for each image; an image stops when it has settled.

    Args:
        points: (B, d + 1, P), the last row ones.
        centers: (B, S, k, d).
        iterations: Most of them.
        tolerance: An image has settled when no start moved its centers by more, as a share of the
            points' variance. 0: when nothing moves.
        n_points: Points whose scores are held at once.

    Returns:
        Centres (B, S, k, d), and inertia (B, S) but for a constant of the image.
    """
    centers, inertia = centers.clone(), centers.new_zeros(centers.shape[:2])
    least = points.new_zeros(len(points))
    if tolerance > 0:
        least = tolerance * points[:, :-1].square().sum(dim=1).mean(dim=1)
    rows = torch.arange(len(points), device=points.device)
    is_moving = torch.ones_like(rows, dtype=torch.bool)
    for _ in range(iterations):
        moved, explained = _step(points, centers[rows], n_points)
        shift = (moved - centers[rows]).square().sum(dim=(2, 3)).amax(dim=1)
        # Settled images stay as they are, however long they are carried along.
        chosen = is_moving[rows]
        centers[rows[chosen]], inertia[rows[chosen]] = moved[chosen], -explained[chosen]
        is_moving[rows] &= shift > least[rows]
        n_moving = int(is_moving.sum())
        if n_moving == 0:
            break
        if n_moving <= len(rows) / 2:
            points, rows = points[is_moving[rows]], rows[is_moving[rows]]
    return centers, inertia


def _step(points: Tensor, centers: Tensor, n_points: int) -> tuple[Tensor, Tensor]:
    """One iteration: new centers (B, S, k, d), and the sum of squares that they explain (B, S)."""
    sums = centers.new_zeros(*centers.shape[:3], points.shape[1])
    for part in points.split(n_points, dim=2):
        members = _memberships(_scores(part, centers))
        sums += (members.flatten(1, 2) @ part.mT).unflatten(1, centers.shape[1:3])
    counts = sums[..., -1:]
    moved = torch.where(counts > 0, sums[..., :-1] / counts.clamp(min=1), centers)
    if (counts == 0).any():
        moved = _refilled(points, moved, counts[..., 0] == 0)
    return moved, (counts * moved.square()).sum(dim=(2, 3))


def _scores(points: Tensor, centers: Tensor) -> Tensor:
    """(B, S, k, P): larger for nearer centers; minus half the squared distance but for |x|^2."""
    offset = -0.5 * centers.square().sum(dim=3, keepdim=True)
    weights = torch.cat([centers, offset], dim=3)
    return (weights.flatten(1, 2) @ points).unflatten(1, centers.shape[1:3])


def _memberships(scores: Tensor) -> Tensor:
    """Turns scores (B, S, k, P) into 1 for the best cluster, or several equal ones, and 0 else."""
    return scores.eq_(scores.amax(dim=2, keepdim=True))


def _refilled(points: Tensor, centers: Tensor, is_empty: Tensor) -> Tensor:
    """Moves the centers of empty clusters to the points that lie farthest from their own center.

    Where every point lies on its center, an empty cluster takes the center of cluster 0, and no
    point will ever prefer it.
    """
    centers = centers.clone()
    for image, start in is_empty.any(dim=2).nonzero().tolist():
        columns = points[image, :-1]
        empty = is_empty[image, start]
        distances = torch.cdist(columns.T, centers[image, start, ~empty]).amin(dim=1)
        scale = columns.square().sum(dim=0).amax().sqrt()
        for j in empty.nonzero()[:, 0].tolist():
            farthest = int(distances.argmax())
            if distances[farthest] > 1e-4 * scale:
                centers[image, start, j] = columns[:, farthest]
                away = (columns - columns[:, farthest, None]).norm(dim=0)
                distances = torch.minimum(distances, away)
            else:
                centers[image, start, j] = centers[image, start, 0]
    return centers
