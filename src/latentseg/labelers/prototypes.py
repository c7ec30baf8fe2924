"""The same meaning of a class in every image, where there are more than two segments.

Clusters of single images have no names: cluster 2 is the head here and the sky there. Variants of
all images take the same styles, so that what a part does as styles change can be compared between
images. Two ways: the segments of each image are matched to prototypes, or one clustering is shared
by all images.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from latentseg.labelers.clustering import GIB, cluster
from latentseg.labelers.foreground import places

ROUNDS = 50  # of matching and averaging; a dozen is enough in practice
SHARED_POINTS = 65_536  # pixels from which the shared clusters are found


@dataclass(frozen=True)
class Prototypes:
    """What the segments of each class have in common.

    Attributes:
        statistics: (k, F) float32, the mean over the images, in units of `scale`.
        scale: (F,) float32, what a statistic is divided by.
    """

    statistics: Tensor
    scale: Tensor

    def match(self, statistics: Tensor) -> Tensor:
        """The class of each segment, a permutation of 0 to k - 1 for each image.

        Args:
            statistics: Of the segments, (B, k, F).

        Returns:
            (B, k) int64 on the CPU: entry j is the class of segment j.

        Source: Kuhn 1955, the Hungarian method, as scipy has it.
        """
        scaled = _array(statistics) / _array(self.scale)
        return torch.from_numpy(_match(scaled, _array(self.statistics))[0])


@dataclass(frozen=True)
class Classes:
    """What gives a class the same meaning in every image, for more than two segments.

    Attributes:
        centers: Of the clustering that all images share, (k, D); or None.
        prototypes: To which the clusters of an image are matched; or None.
    """

    centers: Tensor | None = None
    prototypes: Prototypes | None = None

    def tensors(self) -> dict[str, Tensor]:
        """By name, for the disk."""
        if self.prototypes is not None:
            return {"statistics": self.prototypes.statistics, "scale": self.prototypes.scale}
        return {} if self.centers is None else {"centres": self.centers}

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor]) -> "Classes":
        """What `tensors` gave."""
        if "statistics" in tensors:
            return Classes(prototypes=Prototypes(tensors["statistics"], tensors["scale"]))
        return Classes(centers=tensors.get("centres"))


def segment_statistics(points: Tensor, labels: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """What can be compared between the segments of different images.

    Args:
        points: Descriptors of the pixels, (B, H * W, D) float32: how each one changes over the
            variants, which take the same styles for every image.
        labels: (B, H, W) int64 in [0, k).
        k: Number of segments.

    Returns:
        Statistics (B, k, D + 5): the mean descriptor, mean y and x, standard deviation, area
        and share of the border; and the weight of each, (D + 5,), such that
        appearance and place weigh alike.
    """
    ids = torch.arange(k, device=labels.device)[:, None]
    members = (labels.flatten(1)[:, None] == ids).to(points.dtype)
    appearance = members @ points / members.sum(dim=2, keepdim=True).clamp(min=1)
    found = places(labels, k)
    place = torch.stack([found.y, found.x, found.std, found.area, found.border], dim=2)
    n, m = appearance.shape[2], place.shape[2]
    weights = torch.cat([torch.full((n,), n**-0.5), torch.full((m,), m**-0.5)])
    return torch.cat([appearance, place], dim=2), weights


def fit_prototypes(
    statistics: Tensor, weights: Tensor, *, restarts: int = 16
) -> tuple[Prototypes, float]:
    """Finds prototypes by matching and averaging in turns.

    Args:
        statistics: Of the segments of many images, (B, k, F).
        weights: Of each statistic, (F,), after division by its standard deviation.
        restarts: Images, evenly spread, whose segments are the first prototypes; the start with
            the lowest cost counts.

    Returns:
        The prototypes, and the mean squared distance of a segment to its own.
    """
    flat = statistics.flatten(0, 1)
    std = flat.std(dim=0, unbiased=False).clamp(min=1e-6)
    scale = std / weights.to(std)
    segments = _array(statistics / scale)
    starts = np.unique(np.linspace(0, len(segments) - 1, restarts).astype(int))
    found = [_settle(segments, segments[start]) for start in starts]
    prototypes, cost = min(found, key=lambda entry: entry[1])
    return Prototypes(torch.from_numpy(prototypes.astype(np.float32)), scale.cpu()), cost


def _settle(
    segments: NDArray[np.float64], prototypes: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Matches and averages until no segment changes its class."""
    classes, cost = _match(segments, prototypes)
    for _ in range(ROUNDS):
        order = np.argsort(classes, axis=1)
        prototypes = np.take_along_axis(segments, order[..., None], axis=1).mean(axis=0)
        again, cost = _match(segments, prototypes)
        if np.array_equal(again, classes):
            break
        classes = again
    return prototypes, cost


def _match(
    segments: NDArray[np.float64], prototypes: NDArray[np.float64]
) -> tuple[NDArray[np.int64], float]:
    """Classes (B, k) of segments (B, k, F), and their mean squared distance to the prototypes."""
    costs = np.square(segments[:, :, None] - prototypes[None, None]).sum(axis=3)
    classes = np.stack([linear_sum_assignment(cost)[1] for cost in costs])
    return classes, float(np.take_along_axis(costs, classes[..., None], axis=2).mean())


def fit_shared(points: Tensor, k: int, *, seed: int, memory: int = GIB) -> Tensor:
    """The centers of one clustering of the pixels of all images, (k, D).

    Args:
        points: Descriptors of pixels of any images, (P, D) float32; some are enough.
        k: Number of classes.
        seed: Of the starts.
        memory: Bytes that may be used beside `points`.
    """
    some = points[:: max(1, len(points) // SHARED_POINTS)]
    return cluster(some[None], k, seeds=torch.tensor([seed]), memory=memory).centers[0]


def _array(values: Tensor) -> NDArray[np.float64]:
    return values.detach().double().cpu().numpy()
