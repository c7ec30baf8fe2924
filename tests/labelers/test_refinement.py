"""The filters, each against a slow reference on single images, and their order."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.ndimage
import skimage.measure
import torch

from latentseg.labelers.components import large_components
from latentseg.labelers.directions_settings import RefinementConfig
from latentseg.labelers.mask_measures import area_share
from latentseg.labelers.refinement import FILTERS, histogram_peaks, refine
from latentseg.labelers.roundness import perimeter, roundness

OFF = RefinementConfig(min_area=0.0, max_area=1.0, min_peaks=0)


def blobs(n: int = 40, size: tuple[int, int] = (20, 24), key: int = 0) -> np.ndarray:
    noise = np.random.default_rng(key).standard_normal((n, *size))
    levels = np.linspace(-0.5, 0.6, n)[:, None, None]
    return scipy.ndimage.gaussian_filter(noise, (0, 1.5, 1.5)) * 4 > levels * 3


def images(n: int, key: int = 0) -> torch.Tensor:
    return torch.rand((n, 3, 8, 8), generator=torch.Generator().manual_seed(key)) * 2 - 1


def large_components_one_by_one(mask: np.ndarray, min_share: float) -> np.ndarray:
    regions = np.asarray(skimage.measure.label(mask, connectivity=2))
    areas = np.bincount(regions.ravel())[1:]
    kept = [i + 1 for i, area in enumerate(areas) if area / areas.max() > min_share]
    return np.isin(regions, kept)


def peaks_one_by_one(image: np.ndarray, bins: int, smooth: int) -> int:
    ids = np.clip((image + np.float32(1)) * np.float32(bins / 2), 0, bins - 1).astype(int)
    counts = [int((ids == k).sum()) for k in range(bins)]
    reach = smooth // 2
    box = [sum(counts[max(0, k - reach) : k + reach + 1]) for k in range(bins)]
    ends = [-1, *box, -1]
    return sum(ends[k] <= ends[k + 1] >= ends[k + 2] for k in range(bins))


def roundness_one_by_one(mask: np.ndarray) -> float:
    regions = np.asarray(skimage.measure.label(mask, connectivity=2))
    areas = np.bincount(regions.ravel())
    areas[0] = 0
    component = regions == areas.argmax()
    if not 0.05 < areas.max() / mask.size < 0.9:
        return 0.0
    return areas.max() / skimage.measure.perimeter(component, neighborhood=4) ** 2


def verdict_one_by_one(
    mask: np.ndarray, parts: list[np.ndarray], shifted: list[np.ndarray], config: RefinementConfig
) -> tuple[np.ndarray, int]:
    mask = large_components_one_by_one(mask, config.min_component)
    parts = [large_components_one_by_one(part, config.min_component) for part in parts]
    areas = [judged.sum() / mask.size for judged in parts or [mask]]
    peaks = [peaks_one_by_one(image, config.bins, config.smooth) for image in shifted]
    passed = [
        mask.any() or config.min_area == 0,
        min(*areas, mask.mean()) >= config.min_area and max(areas) <= config.max_area,
        min(peaks) >= config.min_peaks,
        roundness_one_by_one(mask) >= config.min_roundness,
        not parts or (parts[0] == parts[1]).mean() >= config.min_overlap,
    ]
    return mask, 0 if all(passed) else passed.index(False) + 1


@pytest.mark.parametrize("n_parts", [0, 2])
@pytest.mark.parametrize("key", range(4))
def test_refine_when_compared_with_single_masks_then_not_one_bit_differs(key: int, n_parts: int):
    rng = np.random.default_rng(key)
    size = (int(rng.integers(9, 40)), int(rng.integers(9, 40)))
    masks, *parts = [blobs(48, size, 3 * key + i) for i in range(1 + n_parts)]
    masks[0], masks[1], masks[2] = False, True, rng.random(size) > 0.6
    noise = rng.random((max(n_parts, 1), 48, 3, *size))
    images = np.sign(noise - 0.5) * rng.random((48, 1, 1, 1)) + noise / 2 - 0.2
    shifted = list(images.astype(np.float32))
    config = RefinementConfig(min_roundness=0.01, min_overlap=0.45, max_area=0.7, bins=12 + key)
    cleaned, rejected_by = refine(masks, parts, [torch.from_numpy(x) for x in shifted], config)
    expected = [
        verdict_one_by_one(masks[i], [p[i] for p in parts], [x[i] for x in shifted], config)
        for i in range(48)
    ]
    np.testing.assert_array_equal(cleaned, [mask for mask, _ in expected])
    np.testing.assert_array_equal(rejected_by, [verdict for _, verdict in expected])
    assert len(set(rejected_by.tolist())) >= 3


def test_area_share_when_compared_with_the_mean_then_not_one_bit_differs():
    masks = blobs(30, (7, 11))
    np.testing.assert_array_equal(area_share(masks), [mask.mean() for mask in masks])
    np.testing.assert_array_equal(area_share(masks[::2, 1:, ::-1]), masks[::2, 1:].mean((1, 2)))
    assert area_share(masks[:0]).shape == (0,)


def test_histogram_peaks_when_the_batch_is_large_then_images_are_counted_on_their_own():
    large = torch.rand((3, 3, 700, 500), generator=torch.Generator().manual_seed(0)) * 2.6 - 1.3
    large[1] = large[1] ** 3
    kept = large.clone()
    found = histogram_peaks(large, 20, 5)
    assert found.tolist() == [peaks_one_by_one(image.numpy(), 20, 5) for image in large]
    assert torch.equal(large, kept)


def test_large_components_when_the_array_is_a_view_then_it_is_read_as_it_is_seen():
    masks = blobs(12, (20, 24))
    view = masks[::2, ::-1, 3:]
    np.testing.assert_array_equal(large_components(view, 0.3), large_components(view.copy(), 0.3))


@pytest.mark.parametrize("min_share", [0.0, 0.2, 0.6])
def test_large_components_when_compared_with_skimage_then_they_agree(min_share: float):
    masks = blobs()
    expected = [large_components_one_by_one(mask, min_share) for mask in masks]
    np.testing.assert_array_equal(large_components(masks, min_share), expected)


def test_large_components_when_a_component_has_exactly_the_share_then_it_goes():
    mask = np.zeros((1, 6, 12), bool)
    mask[0, 0:2, 0:5] = True  # 10 pixels
    mask[0, 4, 0:2] = True  # 2 pixels: 0.2
    mask[0, 4, 6:9] = True  # 3 pixels
    cleaned = large_components(mask, 0.2)
    assert not cleaned[0, 4, 0:2].any()
    assert cleaned[0, 4, 6:9].all()


def test_large_components_when_pixels_touch_at_a_corner_then_they_are_one():
    mask = np.eye(5, dtype=bool)[None]
    np.testing.assert_array_equal(large_components(mask, 0.2), mask)


def test_large_components_when_images_of_a_batch_touch_then_they_stay_apart():
    masks = np.zeros((3, 4, 4), bool)
    masks[0], masks[1, 0, 0] = True, True
    np.testing.assert_array_equal(large_components(masks, 0.2), masks)


def test_histogram_peaks_when_compared_with_histc_then_they_agree():
    x = torch.cat([images(20), images(20, key=1) ** 3, torch.ones(1, 3, 8, 8)])
    for image, found in zip(x, histogram_peaks(x, 12, 3), strict=True):
        counts = torch.histc(image, bins=12, min=-1, max=1).numpy()
        box = np.convolve(counts, np.ones(3), mode="same")
        peaks = [
            (i == 0 or box[i] >= box[i - 1]) and (i == 11 or box[i] >= box[i + 1])
            for i in range(12)
        ]
        assert found == sum(peaks)


def test_perimeter_when_compared_with_skimage_then_they_agree():
    masks = blobs()
    expected = [skimage.measure.perimeter(mask, neighborhood=4) for mask in masks]
    np.testing.assert_allclose(perimeter(masks), expected)


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (33, 31)])
def test_perimeter_when_masks_touch_the_border_then_it_is_as_in_skimage(size: tuple[int, int]):
    masks = np.random.default_rng(0).random((30, *size)) > 0.3
    masks[0] = True
    expected = [skimage.measure.perimeter(mask, neighborhood=4) for mask in masks]
    np.testing.assert_allclose(perimeter(masks), expected, rtol=1e-12)


def test_roundness_when_disc_bar_or_nothing_then_it_orders_them():
    y, x = np.mgrid[-20:21, -20:21]
    disc = x**2 + y**2 <= 12**2
    with_specks = disc | ((np.abs(x) > 18) & (np.abs(y) > 18))
    bar = (np.abs(x) <= 18) & (np.abs(y) <= 2)
    found = roundness(np.stack([disc, with_specks, bar, np.zeros_like(disc)]))
    assert found[0] == pytest.approx(1 / (4 * np.pi), rel=0.1)
    assert found[1] == found[0]
    assert 0 < found[2] < 0.5 * found[0]
    assert found[3] == 0


def test_refine_when_all_filters_are_off_then_nothing_is_refused():
    masks = blobs()
    masks[0] = False
    _, rejected_by = refine(masks, [], [images(len(masks))], OFF)
    assert not rejected_by.any()


def test_refine_when_a_mask_is_empty_then_it_passes_only_the_official_setting():
    masks = np.zeros((1, 8, 8), bool)
    official = RefinementConfig(min_area=0.0, min_peaks=0)
    assert refine(masks, [], [], official)[1] == 0
    assert refine(masks, [], [], replace(official, min_area=0.01))[1] == 1


def test_refine_when_a_mask_covers_half_then_it_passes_and_not_one_pixel_more():
    masks = np.zeros((2, 8, 8), bool)
    masks[:, :, :4] = True
    masks[1, 0, 4] = True
    np.testing.assert_array_equal(refine(masks, [], [], replace(OFF, max_area=0.5))[1], [0, 2])


def test_refine_when_two_directions_then_their_masks_are_judged_by_area():
    small, large = np.zeros((1, 8, 8), bool), np.ones((1, 8, 8), bool)
    small[0, :2] = True
    limits = replace(OFF, max_area=0.5)
    assert refine(large, [small, small], [], limits)[1] == 0
    assert refine(small, [small, large], [], limits)[1] == 2


def test_refine_when_the_two_masks_differ_too_much_then_overlap_refuses():
    light, dark = np.zeros((2, 1, 8, 8), bool)
    light[0, :4] = True
    dark[0, 2:6] = True
    assert refine(light, [light, dark], [], replace(OFF, min_overlap=0.5))[1] == 0
    assert refine(light, [light, dark], [], replace(OFF, min_overlap=0.6))[1] == 5
    assert refine(light, [], [], replace(OFF, min_overlap=0.6))[1] == 0


def test_refine_when_several_filters_refuse_then_the_first_is_named():
    full = np.ones((1, 8, 8), bool)
    strict = RefinementConfig(max_area=0.5, min_peaks=13, min_roundness=1.0)
    x = [images(1)]
    named = [
        FILTERS[refine(full, [], x, config)[1][0] - 1]
        for config in (strict, replace(strict, max_area=1.0), replace(strict, max_area=1, bins=14))
    ]
    assert named == ["area", "histogram", "histogram"]
    round_only = replace(strict, max_area=1.0, min_peaks=0)
    assert FILTERS[refine(full, [], x, round_only)[1][0] - 1] == "roundness"


def test_refine_when_the_batch_is_split_then_nothing_changes():
    masks, parts, x = blobs(), [blobs(key=1), blobs(key=2)], images(40)
    config = RefinementConfig(min_roundness=0.01, min_overlap=0.4)
    whole = refine(masks, parts, [x], config)
    pieces = [
        refine(masks[rows], [part[rows] for part in parts], [x[rows]], config)
        for rows in np.array_split(np.arange(len(masks)), 7)
    ]
    np.testing.assert_array_equal(whole[0], np.concatenate([cleaned for cleaned, _ in pieces]))
    np.testing.assert_array_equal(whole[1], np.concatenate([verdict for _, verdict in pieces]))
