import math

import numpy as np
import pytest

from latentseg.evaluation.boundaries import boundary_f, trimap
from latentseg.images import IGNORE, Pixels
from tests.datasets.fabricate import blob


def random_masks(seed: int) -> tuple[Pixels, Pixels]:
    """A mask and a truth with ignored pixels; some of them empty, full or of one pixel."""
    rng = np.random.default_rng(seed)
    shape = (int(rng.integers(1, 22)), int(rng.integers(1, 22)))
    mask, truth = (
        blob(int(rng.integers(1000)), height=shape[0], width=shape[1]) if max(shape) > 1 else
        np.ones(shape, np.uint8)
        for _ in range(2)
    )  # fmt: skip
    mask ^= (rng.random(shape) < 0.05).astype(np.uint8)
    truth ^= (rng.random(shape) < 0.05).astype(np.uint8)
    if seed % 4 == 1:
        truth[:] = seed % 3 == 0
    if seed % 4 == 2:
        mask[:] = seed % 3 == 0
    if seed % 2:
        truth[rng.random(shape) < 0.2] = IGNORE
    return mask, truth


def plain_trimap(truth: Pixels, width: float) -> np.ndarray:
    """Every pixel against the midpoint of every edge that parts foreground from background."""
    height, breadth = truth.shape
    sides = {(y, x): truth[y, x] for y in range(height) for x in range(breadth)}
    is_in = np.zeros(truth.shape, bool)
    for (y, x), value in sides.items():
        others = [
            max(abs(y - v), abs(x - u))
            for (v, u), other in sides.items()
            if IGNORE not in (value, other) and (value > 0) != (other > 0)
        ]
        # The edge lies half a pixel before the nearest pixel of the other side.
        is_in[y, x] = bool(others) and min(others) - 0.5 <= width
    return is_in


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("width", [0.5, 1.5, 3.0])
def test_trimap_is_that_of_plain_loops(seed: int, width: float):
    _, truth = random_masks(seed)
    np.testing.assert_array_equal(trimap(truth, width), plain_trimap(truth, width))


def test_trimap_of_3_px_has_three_pixels_on_either_side_and_none_at_the_border_of_the_image():
    truth = np.zeros((1, 20), np.uint8)
    truth[0, 10:] = 1
    assert np.flatnonzero(trimap(truth, 3)).tolist() == [7, 8, 9, 10, 11, 12]
    assert np.flatnonzero(trimap(truth, 1.5)).tolist() == [8, 9, 10, 11]


def plain_boundary(mask: np.ndarray, truth: Pixels) -> list[tuple[int, int]]:
    height, width = truth.shape
    found = []
    for y in range(height):
        for x in range(width):
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                is_inside = 0 <= v < height and 0 <= u < width
                if not mask[y, x] or truth[y, x] == IGNORE or not is_inside:
                    continue
                if not mask[v, u] and truth[v, u] != IGNORE:
                    found.append((y, x))
                    break
    return found


def plain_boundary_f(mask: Pixels, truth: Pixels, tolerance: float) -> float:
    """Every boundary pixel against every other one."""
    found, true = plain_boundary(mask > 0, truth), plain_boundary(truth > 0, truth)
    if not found or not true:
        return float(not found and not true)
    limit = tolerance * math.hypot(*truth.shape)
    precision = np.mean([min(math.dist(p, q) for q in true) < limit for p in found])
    recall = np.mean([min(math.dist(p, q) for q in found) < limit for p in true])
    return float(2 * precision * recall / (precision + recall)) if precision + recall else 0.0


@pytest.mark.parametrize("seed", range(16))
@pytest.mark.parametrize("tolerance", [0.0075, 0.1])
def test_boundary_f_is_that_of_plain_loops(seed: int, tolerance: float):
    mask, truth = random_masks(seed)
    expected = plain_boundary_f(mask, truth, tolerance)
    assert boundary_f(mask, truth, tolerance=tolerance) == pytest.approx(expected, abs=1e-12)


def test_boundary_f_falls_when_the_outline_moves_by_more_than_the_tolerance():
    truth = np.zeros((200, 200), np.uint8)
    truth[50:150, 50:150] = 1  # the tolerance is 2.1 px
    near, far = (np.roll(truth, by, axis=1) for by in (2, 3))
    assert boundary_f(truth, truth) == 1
    assert boundary_f(near, truth) == 1
    assert boundary_f(far, truth) < 0.6


@pytest.mark.parametrize(("mask", "truth", "expected"), [(0, 0, 1), (1, 1, 1), (0, 1, 1)])
def test_boundary_f_without_any_boundary_is_perfect(mask: int, truth: int, expected: float):
    shape = (4, 5)
    pair = np.full(shape, mask, np.uint8), np.full(shape, truth, np.uint8)
    assert boundary_f(*pair) == expected
    assert boundary_f(blob(0), np.zeros((16, 16), np.uint8)) == 0
    assert boundary_f(np.zeros((16, 16), np.uint8), blob(0)) == 0
