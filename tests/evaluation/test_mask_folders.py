import json
from pathlib import Path

import numpy as np
import pytest

from latentseg.datasets.coco_files import encode_region
from latentseg.datasets.real import RealDataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.evaluation.mask_folders import holds_masks, open_masks
from latentseg.evaluation.measuring import measure
from latentseg.evaluation.real_photos import evaluate
from latentseg.files import write_json
from latentseg.images import IGNORE, Pixels, cover, write_mask
from tests.datasets.fabricate import Lookup, blob, make_dataset, write

TRUTHS = [blob(i, height=14, width=20 + i) for i in range(4)]
FOUND = [blob(i + 50, height=14, width=20 + i) for i in range(4)]


def scores(mask: Pixels) -> np.ndarray:
    return np.stack([mask == 0, mask == 1]).astype(np.float32)


def expected(dataset: RealDataset, masks: list[Pixels], protocol: str = "melas2021"):
    scorer = Lookup(dataset, [scores(mask) for mask in masks])
    return measure(scorer, dataset, protocol=protocol, quiet=True)


@pytest.fixture
def dataset(tmp_path: Path) -> RealDataset:
    return make_dataset(tmp_path / "data", TRUTHS)


@pytest.mark.parametrize("name", ["{}.png", "{}_mask.png", "masks/{}.png", "sub/{}_mask.png"])
@pytest.mark.parametrize("values", [(0, 1), (0, 255)])
def test_masks_of_a_folder_are_measured_as_a_segmenter_is(name, values, tmp_path, dataset):
    for i, mask in enumerate(FOUND):
        write(tmp_path / "out" / name.format(f"{i:04d}"), np.array(values, np.uint8)[mask])
    if "_mask" in name:
        write(tmp_path / "out" / name.replace("_mask", "_overlay").format("0000"), FOUND[0])
    assert holds_masks(tmp_path / "out")
    result = evaluate(tmp_path / "out", dataset, protocol="feng2023", quiet=True)
    plain = expected(dataset, FOUND, "feng2023")
    assert result.to_json()["class_iou"] == plain.to_json()["class_iou"]
    assert result.per_image == plain.per_image
    assert result.note == ""
    assert set(result.floors) == {"everything", "ellipse", "centre"}


def test_photos_without_a_mask_and_masks_without_a_photo_are_named(tmp_path, dataset, capsys):
    for i in (0, 2):
        write(tmp_path / "out" / f"{i:04d}.png", FOUND[i])
    write(tmp_path / "out" / "stranger.png", FOUND[0])
    result = evaluate(tmp_path / "out", dataset, quiet=True)
    assert [each.name for each in result.per_image] == ["0000", "0002"]
    assert result.floors["everything"].n_images == 2
    for text in (result.note, capsys.readouterr().err):
        assert "2 photos have no mask: 0001, 0003." in text
        assert "1 masks are of no photo: stranger." in text


def test_a_stem_that_occurs_twice_tells_nothing(tmp_path, dataset):
    for folder in ("a", "b"):
        write(tmp_path / "out" / folder / "0000.png", FOUND[0])
    write(tmp_path / "out" / "a" / "0001.png", FOUND[1])
    result = evaluate(tmp_path / "out", dataset, quiet=True)
    assert [each.name for each in result.per_image] == ["0001"]


def test_masks_of_an_inversion_are_measured_on_the_photos_as_they_were_fitted(tmp_path, dataset):
    small = [cover(mask, (16, 16)) for mask in FOUND]
    for i, mask in enumerate(small):
        write_mask(tmp_path / "out" / f"{i:04d}_mask.png", mask)
    write_json(tmp_path / "out" / "inversions.json", {"fit": "covers"})
    result = evaluate(tmp_path / "out", dataset, protocol="pooled", quiet=True)
    truths = np.stack([cover(truth, (16, 16)) for truth in TRUTHS])
    hard = np.stack(small)
    assert result.iou_pooled == pytest.approx((hard & truths).sum() / (hard | truths).sum())
    (tmp_path / "out" / "inversions.json").unlink()
    with pytest.raises(InputError, match="0000: its mask has 16 x 16 pixels, but the photo has 14"):
        evaluate(tmp_path / "out", dataset, quiet=True)


def coco(masks: list[Pixels]) -> dict:
    images = [
        {"id": 7 + i, "file_name": f"{i:04d}.png", "height": m.shape[0], "width": m.shape[1]}
        for i, m in enumerate(masks)
    ]
    halves = [np.arange(m.shape[1]) < m.shape[1] // 2 for m in masks]
    annotations = [
        {"id": 1, "image_id": 7 + i, "category_id": 5, **encode_region((m == 1) & side)}
        for i, (m, left) in enumerate(zip(masks, halves, strict=True))
        for side in (left, ~left)
    ]
    categories = [{"id": 5, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def test_instances_are_measured_as_the_union_of_their_masks(tmp_path, dataset):
    write_json(tmp_path / "out" / "instances.json", coco(FOUND))
    result = evaluate(tmp_path / "out", dataset, quiet=True)
    assert result.per_image == expected(dataset, FOUND).per_image
    again = evaluate(tmp_path / "out" / "instances.json", dataset, quiet=True)
    assert again.per_image == result.per_image


@pytest.mark.parametrize("key", ["images", "annotations", "categories"])
@pytest.mark.parametrize("value", [None, 3, [3], [{}], "x"])
def test_instances_of_wrong_types_are_refused(key, value, tmp_path, dataset):
    (tmp_path / "i.json").write_text(json.dumps({**coco(FOUND), key: value}))
    with pytest.raises(CorruptFileError, match="not a COCO file with masks"):
        open_masks(tmp_path / "i.json", dataset)


def test_classes_are_those_of_the_truth_or_of_the_folder(tmp_path):
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 4, (9, 9), dtype=np.uint8) for _ in range(3)]
    dataset = make_dataset(tmp_path / "data", truths, classes=("hair", "skin", "bag"))
    for i, truth in enumerate(truths):
        mask = truth.copy()
        mask[0, 0] = IGNORE  # not painted: background
        write(tmp_path / "out" / f"{i:04d}.png", mask)
    result = evaluate(tmp_path / "out", dataset, protocol="tritrong2021", quiet=True)
    assert result.mean_iou > 0.9
    order = np.array([0, 2, 3, 1], np.uint8)
    for i, truth in enumerate(truths):
        write(tmp_path / "turned" / f"{i:04d}.png", order[truth])
    write_json(tmp_path / "turned" / "dataset.json", {"classes": ["bag", "hair", "skin"]})
    turned = evaluate(tmp_path / "turned", dataset, protocol="tritrong2021", quiet=True)
    assert turned.mean_iou == 1


def test_masks_that_do_not_fit_are_refused(tmp_path, dataset):
    write(tmp_path / "a" / "other.png", FOUND[0])
    with pytest.raises(InputError, match=r"none of 1 masks \(other\) is of one of the 4 photos"):
        evaluate(tmp_path / "a", dataset, quiet=True)
    write(tmp_path / "b" / "0000.png", 7 * FOUND[0])
    with pytest.raises(InputError, match="the mask of 0000 holds the value 7; expected class ids"):
        evaluate(tmp_path / "b", dataset, quiet=True)
    write(tmp_path / "c" / "0000.png", FOUND[0])
    with pytest.raises(InputError, match=r"`flip`.*masks are measured as they are"):
        evaluate(tmp_path / "c", dataset, flip=True, quiet=True)


def test_the_folder_of_a_segmenter_is_none_of_masks(tmp_path):
    write(tmp_path / "run" / "0000.png", FOUND[0])
    assert holds_masks(tmp_path / "run")
    (tmp_path / "run" / "model").mkdir()
    assert not holds_masks(tmp_path / "run")
    assert not holds_masks(tmp_path / "nowhere")
    assert not holds_masks("pets64")
