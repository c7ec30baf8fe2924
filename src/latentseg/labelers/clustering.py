"""Clusters of pixels: k-means, spherical k-means and Gaussian mixtures, many images at once.

Starts are compared in a few dimensions, the principal axes of each image. Only the best one is
taken to its end in all dimensions, so that what comes back is a fixed point of Lloyd's algorithm
with its exact inertia, at a fraction of the cost.
"""

import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from latentseg.errors import DivergedError, InputError
from latentseg.seeds import random_generator

Method = Literal["kmeans", "spherical", "mixture"]

GIB = 2**30
AXES = 12  # principal axes in which starts are compared; at least 3 k
AXES_STEPS = 2  # of subspace iteration: the axes need not be exact
AXES_SPARSER = 2  # of the points from which starts are searched, each second gives the axes
START_POINTS = 700  # from which starts are searched
START_TOLERANCE = 1e-3  # of the points' variance
FINAL_TOLERANCE = 1e-5
TRIALS = 3  # candidates for each first centre, of which the best one is taken
START_ITERATIONS = 4  # after which starts are compared
FINALISTS = 3  # starts that are taken to their end
SAME = 1e-3  # share of the inertia by which starts differ that have come to different clusters
ROUNDING = 1e-6  # share of the largest square, below which a squared distance is rounding
TOLERANCE = 1e-6  # of the log-likelihood of a point, for mixtures
RIDGE = 1e-2  # share of the mean variance that is added to the covariance of a mixture
LEAST_POINTS = 1024  # whose scores are held at once, however little memory there is
CACHED_BYTES = 64 * 2**20  # on a CPU, more images at once fall out of its cache


@dataclass(frozen=True)
class Clusters:
    """The clusters of the points of B images.

    Attributes:
        labels: Cluster of each point, (B, P) int64 in [0, k); 0 is the largest cluster.
        centres: (B, k, D) float32. A cluster without points, which only images with fewer distinct
            points than clusters have, has the centre of cluster 0.
        inertia: What the method makes small, (B,) float64: the sum of squared distances to the
            centres ("kmeans"; "spherical": of points and centres on the unit sphere), or minus the
            log-likelihood of all points ("mixture").
        margins: How far each point is from the boundary to the next cluster, (B, P) float32 in
            [0, 1]: 1 - (distance to its centre) / (distance to the next centre). 0 if there is no
            other cluster.
        slopes: (B, k, D) float32; with `offsets` it tells the cluster of any other point: the one
            with the largest slope * point + offset.
        offsets: (B, k) float32.
    """

    labels: Tensor
    centres: Tensor
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
    method: Method = "kmeans",
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
        method: "kmeans"; "spherical", which compares only the directions of points; "mixture", of
            Gaussians with one covariance in common, from the clusters of k-means.
        restarts: Pairs of starts, one by k-means++ and one by its greedy form; the best one counts.
        iterations: Most iterations of Lloyd's algorithm, or of expectation and maximisation.
        memory: Bytes that may be used beside `points`; it bounds how many images, and how many of
            their points, are worked on at once. The least that can be done is one image.

    Raises:
        InputError: k is larger than the number of points or below 1, or another argument is
            impossible.
        DivergedError: points are NaN or infinite.

    Source: Lloyd 1982; Arthur and Vassilvitskii 2007 (k-means++); Dhillon and Modha 2001
    (spherical); Dempster, Laird and Rubin 1977. Checked against sklearn.cluster.KMeans.
    """
    _check(points, k, seeds, method, restarts, iterations, memory)
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
        parts.append(_cluster(points[rows].float(), uniform, n_axes, iterations, n_points, method))
    names = [field.name for field in fields(Clusters)]
    return Clusters(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def nearest(points: Tensor, centres: Tensor) -> tuple[Tensor, Tensor]:
    """Cluster and margin of points that need not be those that were clustered.

    Args:
        points: (B, P, D) float32.
        centres: (B, k, D) float32.

    Returns:
        Labels (B, P) int64 and margins (B, P) in [0, 1], as `Clusters` has them.
    """
    labels, first, second = _two_nearest(_distances(points.mT, centres))
    return labels, _margins(first, second)


def _check(
    points: Tensor, k: int, seeds: Tensor, method: str, restarts: int, iterations: int, memory: int
) -> None:
    if points.ndim != 3 or len(seeds) != len(points) or not len(points):
        raise InputError(
            f"points of shape {tuple(points.shape)} with {len(seeds)} seeds: expected "
            "(images, points, dimensions), at least one image, and a seed for each."
        )
    if not 1 <= k <= points.shape[1]:
        raise InputError(
            f"k {k}: expected 1 to {points.shape[1]}, the number of pixels. "
            "Ask for fewer clusters, or give larger images."
        )
    if method not in get_args(Method):
        raise InputError(f"clustering {method!r}: expected one of {', '.join(get_args(Method))}.")
    for name, value in (("restarts", restarts), ("iterations", iterations), ("memory", memory)):
        if value < 1:
            raise InputError(f"{name} {value}: must be at least 1.")
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
    points: Tensor, uniform: Tensor, n_axes: int, iterations: int, n_points: int, method: Method
) -> Clusters:
    """The clusters of so few images that all of them fit; see `cluster`."""
    columns, is_unit = points.mT, method == "spherical"
    # Ones below the points: one product then gives scores with offset, or sums and counts.
    homogeneous = columns.new_empty(len(columns), columns.shape[1] + 1, columns.shape[2])
    homogeneous[:, -1] = 1
    if is_unit:
        mean = columns.new_zeros(len(columns), columns.shape[1], 1)
        lengths = columns.square().sum(dim=1, keepdim=True).sqrt()
        torch.div(columns, lengths.clamp(min=1e-12), out=homogeneous[:, :-1])
    else:
        # Products of float32 lose least where what all points share has been taken away.
        mean = columns.mean(dim=2, keepdim=True)
        torch.sub(columns, mean, out=homogeneous[:, :-1])
    columns = homogeneous[:, :-1]
    centres = _first_centres(columns, uniform, n_axes, iterations, n_points)
    centres = _lloyd(homogeneous, centres[:, None], iterations, 0.0, n_points, is_unit)[0][:, 0]
    distances = _distances(columns, centres)
    # Which of several equally good starts won is a matter of rounding; the order may not be.
    order = _falling_size(_one_hot(_two_nearest(distances)[0], centres))
    centres = centres.gather(1, order[..., None].expand_as(centres))
    labels, first, second = _two_nearest(distances.gather(1, order[..., None].expand_as(distances)))
    inertia, slopes = first.double().square().sum(dim=1), centres
    offsets = -0.5 * centres.square().sum(dim=2)
    if method == "mixture":
        labels, inertia, found = _mixture(columns, labels, centres, iterations)
        centres, slopes, offsets = found.means, found.slopes, found.offsets[..., 0]
        white = torch.linalg.solve_triangular(found.factor, columns, upper=False)
        white_centres = torch.linalg.solve_triangular(found.factor, centres.mT, upper=False).mT
        _, first, second = _two_nearest(_distances(white, white_centres))
    return Clusters(
        labels=labels,
        centres=centres + mean.mT,
        inertia=inertia,
        margins=_margins(first, second),
        slopes=slopes,
        offsets=offsets - (slopes @ mean)[..., 0],
    )


def _distances(columns: Tensor, centres: Tensor) -> Tensor:
    """(B, k, P): distance of points (B, D, P) to centres (B, k, D); 0 below what float32 sees."""
    scratch = torch.empty_like(columns[0])  # squares of all images would not stay in the cache
    squares = torch.stack(
        [torch.mul(one, one, out=scratch).sum(dim=0, keepdim=True) for one in columns]
    )
    offsets = centres.square().sum(dim=2, keepdim=True)
    squared = torch.baddbmm(squares, centres, columns, alpha=-2) + offsets
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


def _one_hot(labels: Tensor, centres: Tensor) -> Tensor:
    """(B, k, P): 1 where a point has the label, else 0, in the type of the centres (B, k, D)."""
    ids = torch.arange(centres.shape[1], device=labels.device)[:, None]
    return (labels[:, None] == ids).to(centres.dtype)


def _falling_size(members: Tensor) -> Tensor:
    """(B, k): the clusters of members (B, k, P), largest first, of equals the one seen first."""
    n = members.shape[2]
    return (n * members.sum(dim=2).long() - members.argmax(dim=2)).argsort(dim=1, descending=True)


def _first_centres(
    columns: Tensor, uniform: Tensor, n_axes: int, iterations: int, n_points: int
) -> Tensor:
    """(B, k, D): centres that lie close to the best ones, searched along the principal axes.

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


def _distinct(centres: Tensor, inertia: Tensor) -> Tensor:
    """The `FINALISTS` starts of least inertia, those first that have come to different clusters."""
    ranked, order = inertia.sort(dim=1, stable=True)
    is_repeated = ranked.diff(dim=1) < SAME * ranked[:, :1].abs()
    ranked[:, 1:].masked_fill_(is_repeated, torch.inf)
    best = order.gather(1, ranked.argsort(dim=1, stable=True)[:, :FINALISTS])[..., None, None]
    return centres.gather(1, best.expand(-1, -1, *centres.shape[2:]))


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
    # Below this, a distance is rounding: the point is one of the centres.
    least = ROUNDING * squares.amax(dim=2, keepdim=True)
    n_images, n_starts, k, _ = uniform.shape
    drawn = (uniform[:, :, 0, :1] * columns.shape[2]).long()
    away = columns.new_full((n_images, n_starts, 1, columns.shape[2]), torch.inf)
    centres = []
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
        centres.append(chosen.gather(2, best.expand(-1, -1, 1, columns.shape[1]))[:, :, 0])
    return torch.stack(centres, dim=2)


def _lloyd(
    points: Tensor,
    centres: Tensor,
    iterations: int,
    tolerance: float,
    n_points: int,
    is_unit: bool = False,
) -> tuple[Tensor, Tensor]:
    """Lloyd's algorithm from S starts for each image; an image stops when it has settled.

    Args:
        points: (B, d + 1, P), the last row ones.
        centres: (B, S, k, d).
        iterations: Most of them.
        tolerance: An image has settled when no start moved its centres by more, as a share of the
            points' variance. 0: when nothing moves.
        n_points: Points whose scores are held at once.
        is_unit: Keep the centres on the unit sphere.

    Returns:
        Centres (B, S, k, d), and inertia (B, S) but for a constant of the image.
    """
    centres, inertia = centres.clone(), centres.new_zeros(centres.shape[:2])
    least = points.new_zeros(len(points))
    if tolerance > 0:
        least = tolerance * points[:, :-1].square().sum(dim=1).mean(dim=1)
    rows = torch.arange(len(points), device=points.device)
    is_moving = torch.ones_like(rows, dtype=torch.bool)
    for _ in range(iterations):
        moved, explained = _step(points, centres[rows], n_points, is_unit)
        shift = (moved - centres[rows]).square().sum(dim=(2, 3)).amax(dim=1)
        # Settled images stay as they are, however long they are carried along.
        chosen = is_moving[rows]
        centres[rows[chosen]], inertia[rows[chosen]] = moved[chosen], -explained[chosen]
        is_moving[rows] &= shift > least[rows]
        n_moving = int(is_moving.sum())
        if n_moving == 0:
            break
        if n_moving <= len(rows) / 2:
            points, rows = points[is_moving[rows]], rows[is_moving[rows]]
    return centres, inertia


def _step(points: Tensor, centres: Tensor, n_points: int, is_unit: bool) -> tuple[Tensor, Tensor]:
    """One iteration: new centres (B, S, k, d), and the sum of squares that they explain (B, S)."""
    sums = centres.new_zeros(*centres.shape[:3], points.shape[1])
    for part in points.split(n_points, dim=2):
        members = _memberships(_scores(part, centres))
        sums += (members.flatten(1, 2) @ part.mT).unflatten(1, centres.shape[1:3])
    counts = sums[..., -1:]
    moved = torch.where(counts > 0, sums[..., :-1] / counts.clamp(min=1), centres)
    if is_unit:
        moved = moved / moved.norm(dim=3, keepdim=True).clamp(min=1e-12)
    if (counts == 0).any():
        moved = _refilled(points, moved, counts[..., 0] == 0)
    return moved, (counts * moved.square()).sum(dim=(2, 3))


def _scores(points: Tensor, centres: Tensor) -> Tensor:
    """(B, S, k, P): larger for nearer centres; minus half the squared distance but for |x|^2."""
    offset = -0.5 * centres.square().sum(dim=3, keepdim=True)
    weights = torch.cat([centres, offset], dim=3)
    return (weights.flatten(1, 2) @ points).unflatten(1, centres.shape[1:3])


def _memberships(scores: Tensor) -> Tensor:
    """Turns scores (B, S, k, P) into 1 for the best cluster, or several equal ones, and 0 else."""
    return scores.eq_(scores.amax(dim=2, keepdim=True))


def _refilled(points: Tensor, centres: Tensor, is_empty: Tensor) -> Tensor:
    """Moves the centres of empty clusters to the points that lie farthest from their own centre.

    Where every point lies on its centre, an empty cluster takes the centre of cluster 0, and no
    point will ever prefer it.
    """
    centres = centres.clone()
    for image, start in is_empty.any(dim=2).nonzero().tolist():
        columns = points[image, :-1]
        empty = is_empty[image, start]
        distances = torch.cdist(columns.T, centres[image, start, ~empty]).amin(dim=1)
        scale = columns.square().sum(dim=0).amax().sqrt()
        for j in empty.nonzero()[:, 0].tolist():
            farthest = int(distances.argmax())
            if distances[farthest] > 1e-4 * scale:
                centres[image, start, j] = columns[:, farthest]
                away = (columns - columns[:, farthest, None]).norm(dim=0)
                distances = torch.minimum(distances, away)
            else:
                centres[image, start, j] = centres[image, start, 0]
    return centres


class _Gaussians(NamedTuple):
    """k Gaussians with one covariance, for each of B images.

    Attributes:
        means: (B, k, D).
        factor: (B, D, D), the Cholesky factor of the covariance.
        slopes: (B, k, D); slopes @ x + offsets is the log-density of x, weighted, but for a term
            that all clusters share.
        offsets: (B, k, 1).
    """

    means: Tensor
    factor: Tensor
    slopes: Tensor
    offsets: Tensor


def _mixture(
    columns: Tensor, labels: Tensor, centres: Tensor, iterations: int
) -> tuple[Tensor, Tensor, _Gaussians]:
    """Expectation and maximisation for Gaussians with one covariance, from given clusters.

    As the covariance is common, the score of a point is linear in it: an iteration costs hardly
    more than one of k-means, and the second moments of the points are taken once.

    Returns:
        Labels (B, P), minus the log-likelihood (B,), the Gaussians.
    """
    n, dimensions = columns.shape[2], columns.shape[1]
    moments = columns @ columns.mT / n
    members = _one_hot(labels, centres)
    likelihood = columns.new_full((len(columns),), -torch.inf, dtype=torch.float64)
    is_moving = torch.ones_like(likelihood, dtype=torch.bool)
    for _ in range(iterations):
        found = _maximise(columns, moments, members, centres)
        scores = found.slopes @ columns + found.offsets
        risen = _log_likelihood(scores, moments, found)
        # What an image reaches may not depend on how long its neighbours take.
        is_moving = is_moving & (risen - likelihood > TOLERANCE * n)
        members = torch.where(is_moving[:, None, None], scores.softmax(dim=1), members)
        likelihood = torch.where(is_moving, risen, likelihood)
        if not is_moving.any():
            break
    found = _maximise(columns, moments, members, centres)
    scores = found.slopes @ columns + found.offsets
    constant = 0.5 * n * dimensions * math.log(2 * math.pi)
    return scores.argmax(dim=1), constant - _log_likelihood(scores, moments, found), found


def _maximise(columns: Tensor, moments: Tensor, members: Tensor, centres: Tensor) -> _Gaussians:
    """The Gaussians of points (B, D, P) that belong to clusters to the degree `members`."""
    weights = members.sum(dim=2, keepdim=True)
    means = torch.where(weights > 0, members @ columns.mT / weights.clamp(min=1e-6), centres)
    shares = (weights / columns.shape[2]).clamp(min=1e-6)
    diagonal = moments.diagonal(dim1=1, dim2=2)
    ridge = RIDGE * diagonal.mean(dim=1, keepdim=True) + 1e-8
    covariance = moments - means.mT @ (shares * means) + torch.diag_embed(ridge.expand_as(diagonal))
    factor = torch.linalg.cholesky(covariance)
    slopes = torch.cholesky_solve(means.mT, factor).mT
    offsets = shares.log() - 0.5 * (slopes * means).sum(dim=2, keepdim=True)
    return _Gaussians(means, factor, slopes, offsets)


def _log_likelihood(scores: Tensor, moments: Tensor, found: _Gaussians) -> Tensor:
    """Of all points, (B,) float64, but for the constant."""
    n = scores.shape[2]
    spread = torch.cholesky_solve(moments, found.factor).diagonal(dim1=1, dim2=2).sum(dim=1)
    volume = found.factor.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    return scores.logsumexp(dim=1).double().sum(dim=1) - n * (0.5 * spread + volume)
