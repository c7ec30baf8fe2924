import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sklearn.metrics

from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.errors import DivergedError, InputError
from latentseg.evaluation.measuring import Scores, center_square, measure
from latentseg.files import write_json
from latentseg.images import IGNORE, Pixels
from tests.datasets.fabricate import (
    Bright,
    Lookup,
    blob,
    ids,
    make_dataset,
    photo,
    write,
    write_pair,
)

TOLERANCE = 1e-9


def random_photos(seed: int, n: int) -> tuple[list[Pixels], list[Scores]]:
    """Masks with all that is awkward (empty, full, one pixel, ignored), and scores for them."""
    rng = np.random.default_rng(seed)
    masks, answers = [], []
    for i in range(n):
        shape = (int(rng.integers(1, 12)), int(rng.integers(1, 12)))
        mask = (rng.random(shape) < rng.random()).astype(np.uint8)
        if i % 6 == 1:
            mask[:] = i % 4 == 1
        if i % 6 == 2:
            mask[:] = 0
            mask.flat[rng.integers(mask.size)] = 1
        if i % 2:
            mask[rng.random(shape) < 0.3] = IGNORE
        foreground = rng.random(shape, dtype=np.float32)
        if i % 5 == 0:
            foreground = (foreground * 255).round().astype(np.uint8).astype(np.float32) / 255
        if i % 7 == 3:
            foreground[:] = i % 2
        masks.append(mask)
        answers.append(np.stack([1 - foreground, foreground]).astype(np.float32))
    return masks, answers


def naive_melas2021(masks: list[Pixels], answers: list[Scores]) -> dict[str, float]:
    """The clauses of the official code, pixel lists and one pass for each threshold."""
    accs, ious, precisions, recalls = [], [], [], []
    pairs = [(m[m != IGNORE] == 1, s[1][m != IGNORE]) for m, s in zip(masks, answers, strict=True)]
    for truth, soft in [pair for pair in pairs if len(pair[0])]:
        hard = soft > 0.5
        accs.append(np.mean(hard == truth))
        union = (hard | truth).sum()
        ious.append((hard & truth).sum() / union if union else 0.0)
        thresholds = np.array([0.5] + [k / 255 for k in range(1, 255)], np.float32)
        above = soft[None] > thresholds[:, None]
        right, area = (above & truth).sum(1), above.sum(1)
        precisions.append(np.where(area > 0, right / np.maximum(area, 1), 1.0))
        recalls.append(right / truth.sum() if truth.any() else np.ones(255))
    p, r = np.array(precisions), np.array(recalls)
    with np.errstate(invalid="ignore"):
        f = np.nan_to_num(1.3 * p * r / (0.3 * p + r)).mean(0)
    hard, truth = (np.concatenate(x) for x in ([s > 0.5 for _, s in pairs], [t for t, _ in pairs]))
    pooled = (hard & truth).sum() / (hard | truth).sum()
    return {
        "acc": float(np.mean(accs)),
        "iou": float(np.mean(ious)),
        "iou_pooled": float(pooled),
        "f_half": float(f[0]),
        "max_f": float(f[1:].max()),
        "threshold": (1 + int(f[1:].argmax())) / 255,
    }


@pytest.mark.parametrize("seed", range(6))
def test_melas2021_when_compared_with_a_naive_reference(seed, tmp_path):
    masks, answers = random_photos(seed, 60)
    dataset = make_dataset(tmp_path, masks)
    result = measure(Lookup(dataset, answers), dataset, quiet=True)
    for name, expected in naive_melas2021(masks, answers).items():
        tolerance = 1e-7 if name == "threshold" else TOLERANCE  # thresholds are float32
        assert getattr(result, name) == pytest.approx(expected, abs=tolerance), name
    assert result.n_images + result.n_unlabelled == 60


class Batched(Bright):
    """The same answers, several at once."""

    def scores_batch(self, images):
        assert len({image.shape for image in images}) == 1
        return [self.scores(image) for image in images]


def test_measure_when_batched_gives_the_same_numbers(tmp_path):
    dataset = make_dataset(tmp_path, [blob(i, width=12 + 3 * (i // 5)) for i in range(20)])
    assert measure(Batched(), dataset, quiet=True) == measure(Bright(), dataset, quiet=True)


def test_measure_does_not_see_predictions_on_ignored_pixels(tmp_path):
    masks, answers = random_photos(1, 30)
    turned = [a.copy() for a in answers]
    for mask, answer in zip(masks, turned, strict=True):
        answer[:, mask == IGNORE] = 1 - answer[:, mask == IGNORE]
    dataset = make_dataset(tmp_path, masks)
    for protocol in ("melas2021", "pooled"):
        first, second = (
            measure(Lookup(dataset, a), dataset, protocol=protocol, quiet=True)
            for a in (answers, turned)
        )
        assert first == second


def test_iou_per_photo_and_pooled_differ_as_the_two_conventions_do(tmp_path):
    large, small = np.zeros((2, 40, 40), np.uint8)
    large[:, :20], small[0, 0] = 1, 1
    dataset = make_dataset(tmp_path, [large, small])
    answers = [np.stack([1 - p, p]).astype(np.float32) for p in (large, 0 * small)]
    result = measure(Lookup(dataset, answers), dataset, quiet=True)
    assert result.iou == 0.5
    assert result.iou_pooled == pytest.approx(800 / 801)


@pytest.mark.parametrize(("protocol", "expected"), [("melas2021", 0.0), ("pooled", 1.0)])
def test_iou_of_an_empty_prediction_of_an_empty_truth(protocol, expected, tmp_path):
    full, empty = np.ones((4, 4), np.uint8), np.zeros((4, 4), np.uint8)
    dataset = make_dataset(tmp_path, [full, empty])
    answers = [np.stack([1 - p, p]).astype(np.float32) for p in (full, empty)]
    result = measure(Lookup(dataset, answers), dataset, protocol=protocol, quiet=True)
    assert [score.iou for score in result.per_image] == [1.0, expected]


def test_measure_when_a_photo_is_all_ignored_leaves_it_out(tmp_path):
    dataset = make_dataset(tmp_path, [blob(0), np.full((5, 5), IGNORE, np.uint8)])
    result = measure(Bright(), dataset, quiet=True)
    assert (result.n_images, result.n_unlabelled) == (1, 1)


def test_pooled_with_several_classes_matches_sklearn(tmp_path):
    rng = np.random.default_rng(3)
    masks = list(rng.integers(0, 4, (5, 9, 9), dtype=np.uint8))
    answers = list(rng.random((5, 4, 9, 9), dtype=np.float32))
    dataset = make_dataset(tmp_path, masks, classes=("a", "b", "c"))
    result = measure(Lookup(dataset, answers), dataset, protocol="pooled", quiet=True)
    truth, hard = np.array(masks).ravel(), np.array([a.argmax(0) for a in answers]).ravel()
    reference: Any = sklearn.metrics  # its types are wrong about None
    expected = reference.jaccard_score(truth, hard, average=None, labels=[1, 2, 3])
    np.testing.assert_allclose(list(result.class_iou.values()), expected, atol=TOLERANCE)
    assert result.iou_pooled == pytest.approx(expected.mean(), abs=TOLERANCE)
    assert result.acc == pytest.approx((truth == hard).mean(), abs=TOLERANCE)
    assert list(result.class_iou) == ["a", "b", "c"]


class Named(Lookup):
    """A lookup that tells the names of its classes."""

    def __init__(
        self, dataset: RealDataset, answers: list[Scores], classes: tuple[str, ...]
    ) -> None:
        super().__init__(dataset, answers)
        self.classes = classes


def random_parts(seed: int, n_classes: int) -> tuple[list[Pixels], list[Scores]]:
    """Masks of photos of many sizes, a quarter of them ignored, and scores that half know them."""
    rng = np.random.default_rng(seed)
    masks, answers = [], []
    for _ in range(12):
        shape = (int(rng.integers(1, 14)), int(rng.integers(1, 14)))
        mask = rng.integers(0, n_classes + 1, shape).astype(np.uint8)
        scores = rng.random((n_classes + 1, *shape)).astype(np.float32)
        scores += 0.5 * (np.arange(n_classes + 1)[:, None, None] == mask)
        mask[rng.random(shape) < 0.25] = IGNORE
        masks.append(mask)
        answers.append(scores / scores.sum(0))
    return masks, answers


@pytest.mark.parametrize("seed", range(5))
def test_tritrong2021_when_compared_with_sklearn_on_all_pixels_at_once(seed, tmp_path):
    masks, answers = random_parts(seed, n_classes=4)
    dataset = make_dataset(tmp_path, masks, classes=("a", "b", "c", "d"))
    result = measure(Lookup(dataset, answers), dataset, protocol="tritrong2021", quiet=True)
    truth = np.concatenate([mask[mask != IGNORE] for mask in masks])
    hard = np.concatenate(
        [scores.argmax(0)[mask != IGNORE] for mask, scores in zip(masks, answers, strict=True)]
    )
    reference: Any = sklearn.metrics  # its types are wrong about None
    expected = reference.jaccard_score(truth, hard, average=None)
    np.testing.assert_allclose(list(result.class_iou.values()), expected, atol=TOLERANCE)
    assert list(result.class_iou) == ["background", "a", "b", "c", "d"]
    weighted = reference.jaccard_score(truth, hard, average="weighted")
    assert result.weighted_iou == pytest.approx(weighted, abs=TOLERANCE)
    assert result.mean_iou == pytest.approx(expected.mean(), abs=TOLERANCE)
    assert result.iou_pooled == pytest.approx(expected[1:].mean(), abs=TOLERANCE)
    assert result.acc == pytest.approx((truth == hard).mean(), abs=TOLERANCE)


def test_a_class_that_occurs_nowhere_is_left_out_of_the_means(tmp_path):
    dataset = make_dataset(tmp_path, [ids([[0, 0, 1, 1]])], classes=("a", "b"))
    answer = np.zeros((3, 1, 4), np.float32)
    answer[0, 0, :3], answer[1, 0, 3] = 1, 1
    result = measure(Lookup(dataset, [answer]), dataset, protocol="tritrong2021", quiet=True)
    assert result.to_json()["class_iou"] == {
        "background": pytest.approx(2 / 3),
        "a": 0.5,
        "b": None,
    }
    assert result.mean_iou == pytest.approx((2 / 3 + 0.5) / 2)


@pytest.mark.parametrize("protocol", ["pooled", "tritrong2021"])
def test_classes_are_matched_by_name_whatever_their_order(protocol, tmp_path):
    masks, answers = random_parts(0, n_classes=3)
    dataset = make_dataset(tmp_path, masks, classes=("hair", "skin", "bag"))
    turned = [scores[[0, 3, 1, 2]] for scores in answers]
    plain = measure(Lookup(dataset, answers), dataset, protocol=protocol, quiet=True)
    named = Named(dataset, turned, ("bag", "hair", "skin"))
    result = measure(named, dataset, protocol=protocol, quiet=True)
    assert result.class_iou == plain.class_iou
    assert [score.iou for score in result.per_image] == [score.iou for score in plain.per_image]
    wrong = measure(Lookup(dataset, turned), dataset, protocol=protocol, quiet=True)
    assert wrong.class_iou != plain.class_iou


@pytest.mark.parametrize(
    ("classes", "alone"),
    [
        (("hair", "skin"), "only the data set: bag"),
        (("hair", "skin", "bag", "hat"), "only the segmenter: hat."),
        (("hair", "skin", "purse"), "only the segmenter: purse; only the data set: bag"),
        (("hair", "hair", "bag"), "only the data set: skin"),
    ],
)
def test_other_classes_are_refused_with_both_lists(classes, alone, tmp_path):
    masks, answers = random_parts(0, n_classes=3)
    dataset = make_dataset(tmp_path, masks, classes=("hair", "skin", "bag"))
    with pytest.raises(InputError) as caught:
        measure(Named(dataset, answers, classes), dataset, protocol="tritrong2021", quiet=True)
    for text in (f"({', '.join(classes)})", "(hair, skin, bag)", alone, "by a `group`"):
        assert text in str(caught.value)


def test_the_foreground_is_measured_whatever_the_classes_are_called(tmp_path):
    masks, answers = random_parts(0, n_classes=3)
    dataset = make_dataset(tmp_path, masks, classes=("hair", "skin", "bag"))
    strange = Named(dataset, answers, ("x", "y", "z"))
    plain = measure(Lookup(dataset, answers), dataset, quiet=True)
    assert measure(strange, dataset, quiet=True) == plain
    assert list(plain.class_iou) == ["foreground"]


def test_photos_are_measured_together_only_as_far_as_memory_allows(tmp_path, monkeypatch):
    dataset = make_dataset(tmp_path, [blob(i) for i in range(9)])
    sizes = []

    class Counted(Bright):
        def scores_batch(self, images):
            sizes.append(len(images))
            return [self.scores(image) for image in images]

    monkeypatch.setattr("latentseg.evaluation.measuring.BATCH_PX", 4 * 16 * 16)
    few = measure(Counted(), dataset, quiet=True)
    assert sizes == [4, 4, 1]
    monkeypatch.setattr("latentseg.evaluation.measuring.BATCH_PX", 1)
    assert measure(Counted(), dataset, quiet=True) == few


def test_melas2021_counts_every_class_as_foreground(tmp_path):
    mask = ids([[0, 1, 2, IGNORE]])
    dataset = make_dataset(tmp_path, [mask], classes=("a", "b"))
    rows = [[0.9, 0.4, 0.4, 0.1], [0.1, 0.3, 0.3, 0.4], [0.0, 0.3, 0.3, 0.5]]
    answer = np.array(rows, np.float32)
    result = measure(Lookup(dataset, [answer[:, None]]), dataset, quiet=True)
    assert (result.iou, result.acc) == (1.0, 1.0)


def test_measure_when_the_classes_do_not_fit_is_refused(tmp_path):
    dataset = make_dataset(tmp_path, [ids([[0, 1, 2]])], classes=("a", "b"))
    with pytest.raises(InputError, match="knows 1 classes, but the data set has 2: a, b"):
        measure(Bright(), dataset, protocol="pooled", quiet=True)


class Broken:
    def __init__(self, scores: Scores) -> None:
        self.answer = scores

    def scores(self, image: Pixels) -> Scores:
        return self.answer


def test_measure_when_scores_are_nan_stops_and_names_the_photo(tmp_path):
    dataset = make_dataset(tmp_path, [blob(0)])
    with pytest.raises(DivergedError, match="0000"):
        measure(Broken(np.full((2, 16, 16), np.nan, np.float32)), dataset, quiet=True)


def test_measure_when_scores_have_another_size_is_refused(tmp_path):
    dataset = make_dataset(tmp_path, [blob(0)])
    with pytest.raises(InputError, match=r"0000: the scores have shape \(2, 8, 8\)"):
        measure(Broken(np.zeros((2, 8, 8), np.float32)), dataset, quiet=True)


def test_measure_when_the_protocol_is_misspelt_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="Perhaps melas2021"):
        measure(Bright(), make_dataset(tmp_path, [blob(0)]), protocol="melas2020", quiet=True)


def published_like_cub(folder: Path) -> RealDataset:
    image, mask = photo(0, blob(0, width=30)), blob(0, width=30)
    mask[:, :3] = 1  # outside the square
    write(folder / "test_images" / "a.png", image)
    write(folder / "test_segmentations" / "a.png", 255 * mask)
    return open_dataset(folder)


def test_melas2021_crops_cub_and_pooled_does_not(tmp_path):
    dataset = published_like_cub(tmp_path / "CUB_200_2011")
    assert dataset.crops
    cropped = measure(Bright(), dataset, quiet=True)
    whole = measure(Bright(), dataset, protocol="pooled", quiet=True)
    _, image, mask = dataset[0]
    assert cropped.acc == np.mean((image.mean(-1) / 255 > 0.5)[:, 7:23] == mask[:, 7:23])
    assert whole.acc == np.mean((image.mean(-1) / 255 > 0.5) == mask)


@pytest.mark.parametrize("shape", [(5, 9), (9, 5), (6, 9), (4, 4), (1, 7)])
def test_centre_square_is_centred(shape):
    picture = np.arange(shape[0] * shape[1], dtype=np.uint8).reshape(shape)
    square = center_square(picture)
    assert square.shape == (min(shape), min(shape))
    top, left = (round((side - min(shape)) / 2) for side in shape)
    assert square[0, 0] == picture[top, left]


def test_measure_with_a_limit_takes_photos_from_everywhere(tmp_path):
    dataset = make_dataset(tmp_path, [blob(i) for i in range(10)])
    result = measure(Bright(), dataset, limit=5, quiet=True)
    assert [s.name for s in result.per_image] == ["0000", "0002", "0004", "0006", "0008"]
    assert measure(Bright(), dataset, limit=99, quiet=True).n_images == 10


def test_result_as_json_is_strict(tmp_path):
    write_pair(tmp_path, "a", photo(0, blob(0)), np.zeros((16, 16), np.uint8))
    write_pair(tmp_path, "b", photo(0, blob(0)), ids([[2] * 16] * 16))
    write_json(tmp_path / "dataset.json", {"classes": ["x", "y", "z"]})
    nothing = Broken(np.stack([np.ones((16, 16)), *np.zeros((3, 16, 16))]).astype(np.float32))
    result = measure(nothing, open_dataset(tmp_path), protocol="pooled", quiet=True)
    values = json.loads(json.dumps(result.to_json(per_image=True), allow_nan=False))
    assert values["class_iou"] == {"x": None, "y": 0.0, "z": None}
    assert values["per_image"][0] == {"name": "a", "acc": 1.0, "iou": 1.0}
    assert "per_image" not in result.to_json()
    assert len(json.dumps(values)) < 1000


def test_result_of_one_photo_has_no_standard_error(tmp_path):
    result = measure(Bright(), make_dataset(tmp_path, [blob(0)]), quiet=True)
    assert result.to_json()["iou_error"] is None
