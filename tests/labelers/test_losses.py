"""The losses against independent references: scipy's filters and plain numpy."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from latentseg.labelers.losses import (
    LOSSES,
    center_minus_border,
    edges,
    gray,
    official_prior,
    paper_prior,
    squared_edges,
)


def random_images(n: int = 2, size: tuple[int, int] = (12, 9), key: int = 0) -> torch.Tensor:
    rng = torch.Generator().manual_seed(key)
    return torch.rand((n, 3, *size), generator=rng, dtype=torch.float64) * 2 - 1


def sobel_by_scipy(plane: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Responses along x and y of the plain kernels, the border replicated."""
    gx, gy = (scipy.ndimage.sobel(plane, axis=axis, mode="nearest") for axis in (1, 0))
    return np.asarray(gx), np.asarray(gy)


def test_edges_when_compared_with_scipy_then_they_agree():
    x = random_images()
    for image, found in zip(x.numpy(), edges(x).numpy(), strict=True):
        plane = 0.2989 * image[0] + 0.5870 * image[1] + 0.1140 * image[2]
        gx, gy = sobel_by_scipy(plane)
        expected = np.sqrt((gx / 8) ** 2 + (gy / 8) ** 2 + 1e-6)
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_squared_edges_when_compared_with_scipy_then_they_agree():
    x = random_images()
    for image, found in zip(x.numpy(), squared_edges(x).numpy(), strict=True):
        expected = sum(gx**2 + gy**2 for gx, gy in map(sobel_by_scipy, image))
        np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_official_prior_when_128_px_then_it_has_the_published_numbers():
    prior = official_prior((128, 128))
    assert prior.mean() == pytest.approx(0, abs=1e-5)
    assert prior[63:65, 63:65].mean() == pytest.approx(-3.04, abs=0.01)
    assert prior[0, 63:65].mean() == pytest.approx(0.915, abs=0.005)
    assert prior[0, 0] == pytest.approx(2.572, abs=0.005)
    assert (prior < 0).float().mean() == pytest.approx(0.460, abs=0.001)


def test_paper_prior_when_128_px_then_it_is_1_in_the_centre_and_minus_1_in_the_corners():
    prior = paper_prior((128, 128))
    assert prior[63:65, 63:65].mean() == pytest.approx(1, abs=0.02)
    assert prior[0, 0] == pytest.approx(-1)
    assert prior[0, 63:65].mean() == pytest.approx(-0.414, abs=0.001)


def test_priors_when_128_px_then_one_is_the_other_scaled():
    official, paper = official_prior((128, 128)), paper_prior((128, 128))
    torch.testing.assert_close(official, -2 * 2**0.5 * paper - 0.256, atol=0.01, rtol=0)


def test_priors_when_not_square_then_they_have_the_shape_and_mirror():
    for prior in (official_prior((10, 7)), paper_prior((10, 7))):
        assert prior.shape == (10, 7)
        torch.testing.assert_close(prior, prior.flip(0, 1))


def test_official_losses_when_compared_with_plain_numpy_then_they_agree():
    x, shifted = random_images(), random_images(key=1)
    losses = LOSSES["official"]
    prior = official_prior((12, 9)).numpy()
    expected = np.mean([[gray(image).numpy() * prior] for image in shifted])
    assert float(losses.contrast(shifted)) == pytest.approx(expected, rel=1e-6)
    expected = np.mean((edges(shifted) - edges(x)).numpy() ** 2)
    assert float(losses.structure(shifted, x)) == pytest.approx(expected)


def test_paper_losses_when_compared_with_plain_numpy_then_they_agree():
    x, shifted = random_images(), random_images(key=1)
    losses = LOSSES["paper"]
    contrast = structure = 0.0
    for image, moved in zip(x.numpy(), shifted.numpy(), strict=True):
        for c in range(3):
            for i in range(12):
                for j in range(9):
                    distance = np.hypot(i + 1 - (12 + 1) / 2, j + 1 - (9 + 1) / 2)
                    alpha = np.hypot(12 - 1, 9 - 1) / 4
                    contrast -= moved[c, i, j] * (1 - distance / alpha) / len(x)
        before, after = (
            np.sum([gx**2 + gy**2 for gx, gy in map(sobel_by_scipy, picture)], axis=0)
            for picture in (image, moved)
        )
        structure += ((after - before) ** 2).sum() / len(x)
    assert float(losses.contrast(shifted)) == pytest.approx(contrast, rel=1e-6)
    assert float(losses.structure(shifted, x)) == pytest.approx(structure)


@pytest.mark.parametrize("version", LOSSES)
def test_contrast_when_the_centre_lightens_then_it_falls(version: str):
    x = random_images(size=(16, 16))
    lighter = x.clone()
    lighter[:, :, 6:10, 6:10] += 0.5
    assert LOSSES[version].contrast(lighter) < LOSSES[version].contrast(x)
    assert (center_minus_border(lighter) > center_minus_border(x)).all()


@pytest.mark.parametrize("version", LOSSES)
def test_losses_when_differentiated_then_gradcheck_passes(version: str):
    x, shifted = random_images(1, (5, 4)), random_images(1, (5, 4), key=1).requires_grad_()
    losses = LOSSES[version]
    assert torch.autograd.gradcheck(losses.contrast, (shifted,))
    assert torch.autograd.gradcheck(lambda y: losses.structure(y, x), (shifted,))
