import numpy as np
import pytest
import torch

from latentseg.errors import InputError
from latentseg.students.edges import as_probabilities, check_radius, follow_edges, guided_lines
from tests.students.test_segmenter import make_image, make_segmenter


def plain_guided_filter(guide, values, radius, epsilon):
    """He et al. 2010, Algorithm 1, window by window."""

    def window_means(image):
        means = np.empty_like(image)
        for i, j in np.ndindex(*image.shape):
            top, left = max(0, i - radius), max(0, j - radius)
            means[i, j] = image[top : i + radius + 1, left : j + radius + 1].mean()
        return means

    covariance = window_means(guide * values) - window_means(guide) * window_means(values)
    variance = window_means(guide**2) - window_means(guide) ** 2
    slope = covariance / (variance + epsilon)
    offset = window_means(values) - slope * window_means(guide)
    return window_means(slope) * guide + window_means(offset)


def test_lines_give_the_guided_filter():
    rng = np.random.default_rng(0)
    guide, values = rng.random((2, 9, 12))
    given = (torch.from_numpy(a)[None, None] for a in (guide, values))
    slope, offset = guided_lines(*given, radius=2, epsilon=0.01)
    filtered = slope[0, 0].numpy() * guide + offset[0, 0].numpy()
    np.testing.assert_allclose(filtered, plain_guided_filter(guide, values, 2, 0.01), atol=1e-9)


def test_a_coarse_mask_takes_over_the_edge_of_the_photo():
    photo = torch.full((1, 3, 32, 32), -0.8)
    photo[..., 13:] = 0.8
    coarse = torch.zeros(1, 2, 32, 32)
    coarse[:, 1, :, 16:] = 1
    coarse[:, 0] = 1 - coarse[:, 1]
    found = follow_edges(photo, coarse, radius=6)[0, 1] > 0.5
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[:, 13:] = True
    assert (found != expected).float().mean() < (coarse[0, 1].bool() != expected).float().mean() / 2


def test_results_are_probabilities():
    maps = torch.tensor([[-0.2, 0.5], [1.2, 0.5]]).view(1, 2, 1, 2)
    fixed = as_probabilities(maps)
    torch.testing.assert_close(fixed.sum(1), torch.ones(1, 1, 2))
    assert (fixed >= 0).all()


def test_a_segmenter_follows_edges_alike_whole_and_in_strips(monkeypatch):
    segmenter, image = make_segmenter(logits_up_to=3), make_image(40, 30)
    whole = segmenter.scores(image, edges=2)
    monkeypatch.setattr("latentseg.students.tiling.STRIP_VALUES", 1)
    np.testing.assert_allclose(segmenter.scores(image, edges=2), whole, atol=1e-6)
    np.testing.assert_allclose(whole.sum(0), 1, atol=1e-5)
    assert np.abs(whole - segmenter.scores(image)).max() > 1e-3


def test_a_window_of_nothing_is_refused():
    check_radius(None)
    with pytest.raises(InputError, match=r"`edges`.*found 0"):
        check_radius(0)
