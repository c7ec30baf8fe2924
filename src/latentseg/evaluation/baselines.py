"""Floors: what can be had without looking at the photo, and a segmenter must surpass."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

from latentseg.datasets.real import RealDataset
from latentseg.evaluation import metrics
from latentseg.evaluation.measuring import Scorer, Scores, measure, photos
from latentseg.evaluation.protocols import Rules, find_rules
from latentseg.evaluation.results import Result
from latentseg.images import IGNORE, Pixels, resize_mask

SEARCH_PX = 48  # masks are reduced to this square when a floor is searched
COARSE_STEP = 0.08
FINEST_STEP = 0.004
CHUNK = 256  # ellipses compared at once


class Everything:
    """Calls every pixel foreground."""

    def scores(self, image: Pixels) -> Scores:
        """Probability 1 of the foreground everywhere."""
        return _both(np.ones(image.shape[:2], dtype=np.float32))


class CentrePrior:
    """Calls the centre foreground: the prior with which directions are searched.

    The probability falls linearly from 1 at the centre to 0 at the corners.

    Source: Melas-Kyriazi et al. 2021, the map r of the contrast loss, here (r + 1) / 2.
    """

    def scores(self, image: Pixels) -> Scores:
        """The same probabilities for every photo of one size."""
        height, width = image.shape[:2]
        y = np.arange(height) - (height - 1) / 2
        x = np.arange(width) - (width - 1) / 2
        corner = max(float(np.hypot(y[0], x[0])), 1e-9)
        distance = np.hypot(y[:, None], x[None, :])
        return _both((1 - distance / corner).astype(np.float32))


@dataclass(frozen=True)
class Ellipse:
    """Calls one upright ellipse foreground in every photo.

    Attributes:
        y: Centre, as a share of the photo's height.
        x: Centre, as a share of its width.
        radius_y: Half its height, as a share of the photo's.
        radius_x: Half its width, as a share of the photo's.
    """

    y: float
    x: float
    radius_y: float
    radius_x: float

    def mask(self, height: int, width: int) -> NDArray[np.bool_]:
        """(height, width): which pixels have their centre in the ellipse."""
        y = ((np.arange(height) + 0.5) / height - self.y) / self.radius_y
        x = ((np.arange(width) + 0.5) / width - self.x) / self.radius_x
        return y[:, None] ** 2 + x[None, :] ** 2 <= 1

    def scores(self, image: Pixels) -> Scores:
        """Probability 1 of the foreground in the ellipse, 0 elsewhere."""
        return _both(self.mask(*image.shape[:2]).astype(np.float32))


@dataclass(frozen=True)
class SamePlaces:
    """Gives each place the class that is most frequent there, in every photo.

    Attributes:
        shares: (K + 1, h, w) float32: how often each class is true at each place of a photo.
    """

    shares: Scores = field(repr=False)

    def scores(self, image: Pixels) -> Scores:
        """The shares, brought to the size of the photo: those of the place of each pixel."""
        height, width = image.shape[:2]
        y = np.arange(height) * self.shares.shape[1] // height
        x = np.arange(width) * self.shares.shape[2] // width
        return self.shares[:, y[:, None], x[None, :]]


def floors(
    dataset: RealDataset, *, protocol: str = "melas2021", limit: int | None = None
) -> dict[str, Result]:
    """Measures what a segmenter must surpass, without a look at the photos.

    Of a foreground: "everything", the best fixed "ellipse", and the "centre" prior. Of several
    classes: "background" everywhere, and at all "places" the class most frequent there.

    Args:
        dataset: The photos that a segmenter is measured on.
        protocol: The rules that it is measured by.
        limit: As it was given to `measure`.
    """
    dataset = dataset.thinned(limit)
    if len(dataset.classes) > 1 and not find_rules(protocol).is_binary:
        scorers = _floors_of_classes(dataset)
    else:
        scorers = _floors_of_foreground(dataset, protocol)
    return {
        name: replace(measure(scorer, dataset, protocol=protocol, quiet=True), note=note)
        for name, (scorer, note) in scorers.items()
    }


def _floors_of_foreground(dataset: RealDataset, protocol: str) -> dict[str, tuple[Scorer, str]]:
    ellipse = find_ellipse(dataset, protocol=protocol)
    return {
        "everything": (Everything(), "Every pixel is called foreground."),
        "ellipse": (
            ellipse,
            "One ellipse for all photos, searched with their true masks: centre at "
            f"{ellipse.y:.0%} of the height and {ellipse.x:.0%} of the width, "
            f"{2 * ellipse.radius_y:.0%} high and {2 * ellipse.radius_x:.0%} wide.",
        ),
        "centre": (CentrePrior(), "Brightest in the centre, as the prior of the directions."),
    }


def _floors_of_classes(dataset: RealDataset) -> dict[str, tuple[Scorer, str]]:
    nothing = np.zeros((len(dataset.classes) + 1, 1, 1), np.float32)
    nothing[0] = 1
    return {
        "background": (SamePlaces(nothing), "Every pixel is called background."),
        "places": (
            find_places(dataset),
            "Each place has one class in all photos: the most frequent by their true masks.",
        ),
    }


def find_places(dataset: RealDataset) -> SamePlaces:
    """How often each class is true at each of 48 x 48 places, over all photos."""
    counts = np.zeros((len(dataset.classes) + 1, SEARCH_PX, SEARCH_PX))
    for _, _, truth in dataset:
        reduced = resize_mask(truth, (SEARCH_PX, SEARCH_PX))
        for number, of_class in enumerate(counts):
            of_class += reduced == number
    return SamePlaces((counts / np.maximum(counts.sum(axis=0), 1)).astype(np.float32))


def find_ellipse(dataset: RealDataset, *, protocol: str = "melas2021") -> Ellipse:
    """The upright ellipse that has the largest IoU when drawn into every photo.

    It is searched with the truth: a grid first, then steps to the best neighbour, halved until
    nothing is gained. IoU is per image, or pooled if the protocol pools.
    """
    truths = _Truths(dataset, find_rules(protocol))
    centres, radii = np.arange(0.34, 0.67, COARSE_STEP), np.arange(0.1, 0.75, COARSE_STEP)
    grid = [Ellipse(*map(float, row)) for row in product(centres, centres, radii, radii)]
    best, reached = truths.best(grid)
    step = COARSE_STEP / 2
    while step >= FINEST_STEP:
        better, gained = truths.best(_neighbours(best, step))
        if gained > reached:
            best, reached = better, gained
        else:
            step /= 2
    return best


class _Truths:
    """All true masks of a data set, reduced, to compare ellipses with every one of them."""

    def __init__(self, dataset: RealDataset, rules: Rules) -> None:
        truths = np.stack(
            [resize_mask(truth, (SEARCH_PX, SEARCH_PX)) for _, _, truth in photos(dataset, rules)]
        ).reshape(len(dataset), -1)
        self.is_true = ((truths > 0) & (truths != IGNORE)).astype(np.float32)
        self.is_valid = (truths != IGNORE).astype(np.float32)
        self.pools = rules.pools

    def best(self, ellipses: Sequence[Ellipse]) -> tuple[Ellipse, float]:
        """The ellipse of largest IoU, and that IoU."""
        ious = np.concatenate(
            [self._ious(ellipses[i : i + CHUNK]) for i in range(0, len(ellipses), CHUNK)]
        )
        return ellipses[int(ious.argmax())], float(ious.max())

    def _ious(self, ellipses: Sequence[Ellipse]) -> metrics.Floats:
        masks = np.stack([ellipse.mask(SEARCH_PX, SEARCH_PX).ravel() for ellipse in ellipses])
        inside = masks.astype(np.float32).T
        intersection = (self.is_true @ inside).astype(np.float64)
        union = self.is_valid @ inside + self.is_true.sum(axis=1, keepdims=True) - intersection
        if self.pools:
            return intersection.sum(axis=0) / np.maximum(union.sum(axis=0), 1)
        return (intersection / np.maximum(union, 1)).mean(axis=0)


def _neighbours(ellipse: Ellipse, step: float) -> list[Ellipse]:
    values = np.array([ellipse.y, ellipse.x, ellipse.radius_y, ellipse.radius_x])
    moved = values + step * np.concatenate([np.eye(4), -np.eye(4)])
    moved[:, 2:] = np.maximum(moved[:, 2:], step)
    return [Ellipse(*map(float, row)) for row in moved]


def _both(foreground: NDArray[np.float32]) -> Scores:
    return np.stack([1 - foreground, foreground])
