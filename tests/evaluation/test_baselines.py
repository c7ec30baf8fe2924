import numpy as np
import pytest

from latentseg.evaluation.baselines import (
    CentrePrior,
    Ellipse,
    Everything,
    find_ellipse,
    find_places,
    floors,
)
from latentseg.evaluation.measuring import measure
from latentseg.images import IGNORE
from tests.datasets.fabricate import blob, make_dataset


def test_find_ellipse_when_all_masks_are_one_ellipse_finds_it(tmp_path):
    true = Ellipse(y=0.55, x=0.42, radius_y=0.3, radius_x=0.2)
    masks = [true.mask(*shape).astype(np.uint8) for shape in [(96, 96), (64, 120), (120, 64)]]
    masks[0][:, :20] = IGNORE
    found = find_ellipse(make_dataset(tmp_path, masks))
    for name in ("y", "x", "radius_y", "radius_x"):
        assert getattr(found, name) == pytest.approx(getattr(true, name), abs=0.02)


@pytest.mark.parametrize("protocol", ["melas2021", "pooled"])
def test_found_ellipse_is_better_than_its_neighbours_and_random_ones(protocol, tmp_path):
    dataset = make_dataset(tmp_path, [blob(i, height=48, width=48) for i in range(12)])
    best = find_ellipse(dataset, protocol=protocol)
    rng = np.random.default_rng(0)
    values = np.array([best.y, best.x, best.radius_y, best.radius_x])
    others = [*(values + 0.05 * rng.normal(size=(15, 4))), *rng.uniform(0.2, 0.6, (15, 4))]

    def iou(ellipse: Ellipse) -> float:
        result = measure(ellipse, dataset, protocol=protocol, quiet=True)
        return result.iou if protocol == "melas2021" else result.iou_pooled

    assert iou(best) >= max(iou(Ellipse(*map(float, row))) for row in others) - 1e-3


def test_everything_has_the_share_of_foreground_as_iou(tmp_path):
    masks = [blob(i) for i in range(4)]
    masks[1][:5] = IGNORE
    result = measure(Everything(), make_dataset(tmp_path, masks), quiet=True)
    expected = np.mean([(m == 1).sum() / (m != IGNORE).sum() for m in masks])
    assert result.iou == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (8, 8), (9, 31)])
def test_centre_prior_falls_from_the_centre_to_the_corners(shape):
    scores = CentrePrior().scores(np.zeros((*shape, 3), np.uint8))
    assert scores.shape == (2, *shape)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(0), 1)
    assert scores[1].max() == scores[1, shape[0] // 2, shape[1] // 2]
    if max(shape) > 1:
        corners = scores[1][[0, 0, -1, -1], [0, -1, 0, -1]]
        np.testing.assert_allclose(corners, 0, atol=1e-6)


def test_floors_come_with_notes_and_the_ellipse_is_the_best_of_them(tmp_path):
    dataset = make_dataset(tmp_path, [blob(i, height=40, width=60) for i in range(10)])
    found = floors(dataset)
    assert list(found) == ["everything", "ellipse", "centre"]
    assert "searched with their true masks" in found["ellipse"].note
    assert found["ellipse"].iou > max(found["everything"].iou, found["centre"].iou)
    assert floors(dataset, limit=3)["centre"].n_images == 3


def test_places_have_the_class_that_is_most_frequent_there(tmp_path):
    masks = [np.zeros((96, 48), np.uint8) for _ in range(3)]
    for mask in masks:
        mask[:48] = 1
        mask[10:20, 10:20] = IGNORE
    masks[0][:24] = masks[1][:24] = 2
    masks[2][:, 24:] = IGNORE
    dataset = make_dataset(tmp_path, masks, classes=("a", "b"))
    answer = find_places(dataset).scores(np.zeros((12, 24, 3), np.uint8)).argmax(0)
    assert answer.tolist() == np.repeat([[2], [1], [0], [0]], 3, axis=0).repeat(24, axis=1).tolist()


def test_floors_of_several_classes_are_background_and_places(tmp_path):
    masks = [blob(i, height=48, width=48) for i in range(6)]
    for mask in masks:
        mask[:24] *= 2
    dataset = make_dataset(tmp_path, masks, classes=("a", "b"))
    found = floors(dataset, protocol="tritrong2021")
    assert list(found) == ["background", "places"]
    share = float(np.mean(np.array(masks) == 0))
    assert found["background"].acc == pytest.approx(share)
    assert found["background"].class_iou == {"background": pytest.approx(share), "a": 0, "b": 0}
    assert found["places"].mean_iou > found["background"].mean_iou
    assert list(floors(dataset)) == ["everything", "ellipse", "centre"]
