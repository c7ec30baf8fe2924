"""Windows that cover, blend and vanish; strips that are together what the whole would be."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.images import cut_out, overlay
from latentseg.students import tiling
from latentseg.students.tiling import blend, by_strips, check_tiling, upscale, window_starts


def make_picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("length", [16, 17, 31, 32, 33, 100, 257])
def test_windows_cover_a_length_and_share_what_was_asked_for(length, overlap):
    starts = window_starts(length, 16, overlap)
    assert starts[0] == 0
    assert starts[-1] == length - 16
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (16 - steps >= math.floor(16 * overlap)).all()
    assert len(starts) <= 1 + math.ceil((length - 16) / max(1, round(16 * (1 - overlap))))


def plain_blend(picture, answer, side, overlap):
    """The whole at once, in double precision, pixel by pixel of the definition."""
    height, width = picture.shape[:2]
    ramp = np.sin((np.arange(side) + 0.5) * np.pi / side) ** 2
    weights = np.outer(ramp, ramp)
    total = np.zeros((height, width))
    sums = 0.0
    for top in window_starts(height, side, overlap):
        for left in window_starts(width, side, overlap):
            place = (slice(top, top + side), slice(left, left + side))
            probabilities = answer(picture[place]).double().exp().numpy()
            placed = np.zeros((len(probabilities), height, width))
            placed[:, *place] = weights * probabilities
            sums = sums + placed
            total[place] += weights
    return np.log(sums / total)


def answer_by_colour(window):
    """Depends on the pixel, on the place in the window, and on the mean of the window."""
    x = torch.from_numpy(window).movedim(-1, 0).float() / 255
    return (3 * x * torch.linspace(0, 1, x.shape[-1]) + x.mean((1, 2), keepdim=True)).log_softmax(0)


@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.8])
@pytest.mark.parametrize("size", [(8, 8), (8, 21), (30, 9), (25, 40)])
def test_blending_row_by_row_is_the_plain_average(size, overlap):
    picture = make_picture(*size)
    bands = blend(picture, lambda w: map(answer_by_colour, w), side=8, overlap=overlap)
    expected = plain_blend(picture, answer_by_colour, 8, overlap)
    np.testing.assert_allclose(torch.cat(list(bands), 1).numpy(), expected, atol=2e-6)


def test_constant_answers_stay_what_they_are():
    logits = torch.tensor([0.3, -2.0, 1.1]).log_softmax(0)
    answers = lambda windows: [logits[:, None, None].expand(3, 8, 8) for _ in windows]  # noqa: E731
    blended = torch.cat(list(blend(make_picture(30, 50), answers, side=8)), 1)
    torch.testing.assert_close(
        blended, logits[:, None, None].expand(3, 30, 50), atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_seams_are_invisible_though_each_window_is_wrong_at_its_edge(overlap):
    """Foreground 0.6, but 0.95 in the outer tenth of each window, as networks that pad do."""
    probability = torch.full((32, 32), 0.6)
    for edge in (slice(None, 3), slice(-3, None)):
        probability[edge] = 0.95
        probability[:, edge] = 0.95
    answer = torch.stack([1 - probability, probability]).log()
    bands = list(blend(make_picture(128, 160), lambda w: [answer] * len(w), side=32))
    blended = torch.cat(bands, 1)[1].exp()[4:-4, 4:-4]
    assert max(blended.diff(dim=0).abs().max(), blended.diff(dim=1).abs().max()) < 0.03
    assert blended.max() < 0.65


def test_only_one_row_of_windows_is_asked_for_at_a_time():
    asked = []

    def answers(windows):
        asked.append(len(windows))
        return map(answer_by_colour, windows)

    bands = blend(make_picture(40, 24), answers, side=8, overlap=0.5)
    assert next(bands).shape == (3, 4, 24)
    assert asked == [5]
    assert sum(band.shape[1] for band in bands) == 36
    assert asked == [5] * 9


@pytest.mark.parametrize("values", [1, 500, 10**9])
@pytest.mark.parametrize("cuts", [(), (1,), (3, 4), (1, 2, 3, 4, 5, 6)])
@pytest.mark.parametrize("size", [(7, 9), (50, 31), (3, 4), (1, 1), (7, 40), (8, 9)])
def test_strips_together_are_the_interpolated_whole(size, cuts, values, monkeypatch):
    monkeypatch.setattr(tiling, "STRIP_VALUES", values)
    maps = torch.randn(2, 7, 9, generator=torch.Generator().manual_seed(0))
    bands = [maps[:, a:b] for a, b in zip((0, *cuts), (*cuts, 7), strict=True)]
    strips = list(upscale(bands, 7, size))
    assert all(strip.numel() <= max(values, 2 * size[1]) for strip in strips)
    expected = functional.interpolate(maps[None].double(), size=size, mode="bilinear")[0]
    torch.testing.assert_close(torch.cat(strips, 1).double(), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("compose", [overlay, cut_out])
def test_pictures_composed_by_strips_have_the_outlines_of_the_whole(compose, monkeypatch):
    image = make_picture(23, 10)
    mask = np.random.default_rng(1).integers(0, 3, (23, 10), dtype=np.uint8)
    for values in (1, 30, 90, 10**6):
        monkeypatch.setattr(tiling, "STRIP_VALUES", values)
        assert np.array_equal(by_strips(compose, image, mask), compose(image, mask))


@pytest.mark.parametrize(
    ("tile", "overlap", "said"),
    [(63, 0.5, "64"), (0, 0.5, "64"), (64, -0.1, "0.9"), (64, 1, "0.9")],
)
def test_windows_that_networks_cannot_use_are_refused(tile, overlap, said):
    with pytest.raises(InputError, match=said):
        check_tiling(tile, overlap, 64)
