"""Data sets of parts in their published layouts, on small folders that were made up."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from latentseg.datasets.groupings import GROUPINGS, find_grouping
from latentseg.datasets.real import check_dataset, open_dataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.images import IGNORE, Pixels
from tests.datasets.fabricate import ids, write, write_pair


def region(shape: tuple[int, int], top: int, left: int, bottom: int, right: int) -> Pixels:
    """A mask that is 1 in a box."""
    mask = np.zeros(shape, np.uint8)
    mask[top:bottom, left:right] = 1
    return mask


def write_group(folder: Path, groups: Mapping[str, object]) -> Path:
    path = folder / "group.json"
    path.write_text(json.dumps(groups))
    return path


# CelebAMask-HQ

SIDE = 16
LEFT = region((SIDE, SIDE), 0, 0, SIDE, 8)
TOP = region((SIDE, SIDE), 0, 0, 8, SIDE)


def write_face(folder: Path, number: int, parts: Mapping[str, Pixels], *, image_px: int = 32):
    image = np.full((image_px, image_px, 3), number % 256, np.uint8)
    write(folder / "CelebA-HQ-img" / f"{number}.jpg", image)
    masks = folder / "CelebAMask-HQ-mask-anno" / str(number // 2000)
    for label, mask in parts.items():
        write(masks / f"{number:05d}_{label}.png", np.dstack([255 * mask] * 3))


def test_faces_are_found_in_folders_of_2000_in_order_of_numbers(tmp_path):
    for number in (2000, 10, 9):
        write_face(tmp_path, number, {"skin": LEFT})
    dataset = open_dataset(tmp_path)
    assert dataset.name == "CelebAMask-HQ (all)"
    assert dataset.classes == (
        *("hair", "eyebrow", "eye", "lip", "nose", "skin", "ear", "neck", "clothes"),
    )
    assert [name for name, _, _ in dataset] == ["9", "10", "2000"]
    _, image, mask = dataset[0]
    assert image.shape == (SIDE, SIDE, 3)  # brought to the size of the masks
    assert mask.tolist() == (6 * LEFT).tolist()


def test_faces_where_parts_overlap_have_the_earlier_class_and_other_labels_are_background(tmp_path):
    right = 1 - LEFT
    write_face(tmp_path, 0, {"skin": TOP, "hair": LEFT, "hat": right, "l_eye": TOP * right})
    mask = open_dataset(tmp_path)[0][2]
    expected = np.zeros_like(mask)
    expected[TOP > 0] = 6
    expected[(TOP * right) > 0] = 3  # the eye lies on the skin
    expected[LEFT > 0] = 1  # hair comes before both
    assert mask.tolist() == expected.tolist()


def test_three_parts_of_faces_put_mouth_and_lips_together(tmp_path):
    write_face(tmp_path, 0, {"u_lip": TOP, "mouth": LEFT, "skin": 1 - 0 * TOP})
    dataset = open_dataset(tmp_path, grouping="celebamask-3")
    assert dataset.classes == ("eye", "lip", "nose")
    assert dataset[0][2].tolist() == (2 * (TOP | LEFT)).tolist()


def test_a_face_part_counts_from_two_fifths_on(tmp_path):
    gray = ids([[101, 102], [0, 255]])
    write(tmp_path / "CelebA-HQ-img" / "0.jpg", np.zeros((2, 2, 3), np.uint8))
    write(tmp_path / "CelebAMask-HQ-mask-anno" / "0" / "00000_nose.png", gray)
    assert open_dataset(tmp_path)[0][2].tolist() == [[0, 5], [0, 5]]


def test_faces_with_celebas_partition_are_its_test_photos(tmp_path):
    for number in range(3):
        write_face(tmp_path, number, {"skin": LEFT})
    (tmp_path / "CelebA-HQ-to-CelebA-mapping.txt").write_text(
        "idx orig_idx orig_file\n0 119 000120.jpg\n1 7 000008.jpg\n2 3 000004.jpg\n"
    )
    (tmp_path / "list_eval_partition.txt").write_text("000004.jpg 2\n000008.jpg 1\n000120.jpg 2\n")
    dataset = open_dataset(tmp_path)
    assert dataset.name == "CelebAMask-HQ (test)"
    assert [name for name, _, _ in dataset] == ["0", "2"]


def test_faces_with_problems_are_named(tmp_path):
    for number in range(3):
        write_face(tmp_path, number, {"skin": LEFT, "nose": TOP})
    write(tmp_path / "CelebA-HQ-img" / "7.jpg", np.zeros((4, 4, 3), np.uint8))
    masks = tmp_path / "CelebAMask-HQ-mask-anno" / "0"
    (masks / "00001_nose.png").write_bytes(b"broken")
    write(masks / "00002_nose.png", TOP[:8])
    problems = check_dataset(tmp_path)
    starts = (
        "CelebA-HQ-img/7.jpg: has no mask CelebAMask-HQ-mask-anno/0/00007_*.png",
        "CelebAMask-HQ-mask-anno/0/00001_nose.png: not a readable image",
        "CelebAMask-HQ-mask-anno/0/00002_nose.png: has another size",
    )
    for start in starts:
        assert any(problem.startswith(start) for problem in problems), (start, problems)
    assert len(problems) == len(starts)


# PASCAL-Part

PHOTO = (120, 160)


def thing(kind: str, mask: Pixels, parts: Mapping[str, Pixels]) -> tuple[object, ...]:
    """An object as the published .mat files have it."""
    stored = np.zeros((1, len(parts)), dtype=[("part_name", object), ("mask", object)])
    for number, (name, part) in enumerate(parts.items()):
        stored[0, number] = (name, part)
    return kind, 7, mask, stored if parts else np.zeros((0, 0))


def write_annotation(folder: Path, name: str, objects: Sequence[tuple[object, ...]]) -> None:
    fields = [("class", object), ("class_ind", object), ("mask", object), ("parts", object)]
    stored = np.zeros((1, len(objects)), dtype=fields)
    for number, one in enumerate(objects):
        stored[0, number] = one
    anno = np.zeros((1, 1), dtype=[("imname", object), ("objects", object)])
    anno[0, 0] = (name, stored)
    path = folder / "Annotations_Part" / f"{name}.mat"
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, {"anno": anno}, do_compression=True)
    y, x = np.mgrid[: PHOTO[0], : PHOTO[1]].astype(np.uint8)
    image = np.dstack([y, x, 0 * x])  # the color says the place
    write(folder / "VOCdevkit" / "VOC2010" / "JPEGImages" / f"{name}.jpg", image)


def car(top: int, left: int, height: int = 60, width: int = 50) -> tuple[object, ...]:
    def part(*box: int) -> Pixels:
        return region(PHOTO, top + box[0], left + box[1], top + box[2], left + box[3])

    parts = {
        "leftside": part(0, 0, height - 10, width),  # the lowest rows are of no part
        "window_1": part(0, 0, 10, 10),
        "window_2": part(0, 20, 10, 30),
        "wheel_10": part(40, 0, 50, 10),
        "headlight_1": part(20, 0, 25, 5),
        "bliplate": part(30, 0, 35, 5),
        "door_1": part(10, 10, 30, 30),
    }
    return thing("car", part(0, 0, height, width), parts)


def test_cars_are_cut_out_and_numbered_parts_are_put_together(tmp_path):
    write_annotation(
        tmp_path, "2008_000001", [thing("dog", region(PHOTO, 0, 0, 9, 9), {}), car(30, 80)]
    )
    write_annotation(tmp_path, "2008_000002", [thing("dog", region(PHOTO, 0, 0, 99, 99), {})])
    dataset = open_dataset(tmp_path, grouping="pascal-car")
    assert (dataset.name, len(dataset)) == ("PASCAL-Part (car)", 1)
    assert dataset.classes == ("light", "plate", "wheel", "window", "body")
    name, image, mask = dataset[0]
    assert name == "2008_000001_0"
    assert image.shape == (60, 50, 3)
    assert abs(image[..., 0].min() - 30.0) < 8  # JPEG
    assert abs(image[..., 1].min() - 80.0) < 8
    expected = np.full((60, 50), 5, np.uint8)
    expected[:10, :10] = expected[:10, 20:30] = 4
    expected[40:50, :10] = 3
    expected[20:25, :5], expected[30:35, :5] = 1, 2
    assert mask.tolist() == expected.tolist()


def test_horses_have_head_leg_tail_and_body_and_the_rest_is_background(tmp_path):
    rows = {
        name: region(PHOTO, 5 * i, 0, 5 * i + 5, 40)
        for i, name in enumerate(
            ["muzzle", "lear", "neck", "torso", "lfuleg", "rblleg", "rbho", "tail"]
        )
    }
    write_annotation(tmp_path, "a", [thing("horse", region(PHOTO, 0, 0, 45, 40), rows)])
    dataset = open_dataset(tmp_path, grouping="pascal-horse")
    assert dataset.classes == ("head", "leg", "tail", "body")
    assert dataset[0][2][::5, 0].tolist() == [1, 1, 4, 4, 2, 2, 2, 3, 0]


@pytest.mark.parametrize(
    ("objects", "kept"),
    [
        ([car(0, 0), car(60, 100)], ["a_0", "a_1"]),
        ([car(0, 0), car(0, 48)], ["a_0", "a_1"]),  # 4 %
        ([car(0, 0), car(0, 47)], []),  # 6 %
        ([car(0, 0, height=120, width=100), car(0, 97)], ["a_0"]),  # 1.5 % of one, 6 % of the other
        ([car(0, 0, width=49)], []),
        ([car(0, 0, height=49)], []),
        ([car(0, 0, height=50, width=50)], ["a_0"]),
        ([car(0, 0), thing("person", region(PHOTO, 0, 0, 99, 99), {})], ["a_0"]),
    ],
)
def test_cars_that_are_small_or_under_another_are_left_out(objects, kept, tmp_path):
    write_annotation(tmp_path, "a", objects)
    write_annotation(tmp_path, "b", [car(0, 0)])
    dataset = open_dataset(tmp_path, grouping="pascal-car")
    assert [name for name, _, _ in dataset] == [*kept, "b_0"]


def test_the_parts_of_a_neighbour_in_the_crop_count_too(tmp_path):
    write_annotation(tmp_path, "a", [car(0, 0), car(0, 48)])
    mask = open_dataset(tmp_path, grouping="pascal-car")[0][2]
    assert mask[0, 47] == 5
    assert mask[0, 48] == 4  # a window of the other car


def test_pascal_part_without_a_grouping_says_which_there_are(tmp_path):
    write_annotation(tmp_path, "a", [car(0, 0)])
    with pytest.raises(InputError, match="`grouping` pascal-car, pascal-horse"):
        open_dataset(tmp_path)


def test_pascal_part_with_a_grouping_of_ones_own(tmp_path):
    write_annotation(tmp_path, "a", [car(0, 0)])
    group = write_group(tmp_path, {"glass": ["car/window", "car/headlight"], "ignore": ["*"]})
    dataset = open_dataset(tmp_path, grouping=group)
    assert dataset.classes == ("glass",)
    assert np.unique(dataset[0][2]).tolist() == [1, IGNORE]


def test_pascal_part_when_a_label_is_forgotten_names_it(tmp_path):
    write_annotation(tmp_path, "a", [car(0, 0)])
    group = write_group(tmp_path, {"glass": ["car/window"], "background": ["car", "car/wheal"]})
    with pytest.raises(InputError, match=r"says nothing of .*car/wheel.*Put each label into"):
        open_dataset(tmp_path, grouping=group)


def test_pascal_part_when_files_are_damaged_names_them(tmp_path):
    for name in ("a", "b", "c", "d"):
        write_annotation(tmp_path, name, [car(0, 0)])
    whole = (tmp_path / "Annotations_Part" / "a.mat").read_bytes()
    (tmp_path / "Annotations_Part" / "a.mat").write_bytes(whole[: len(whole) // 2])
    savemat(tmp_path / "Annotations_Part" / "b.mat", {"other": 1})
    photos = tmp_path / "VOCdevkit" / "VOC2010" / "JPEGImages"
    (photos / "c.jpg").unlink()
    write(photos / "d.jpg", np.zeros((121, 160, 3), np.uint8))
    problems = check_dataset(tmp_path, grouping="pascal-car")
    starts = (
        "Annotations_Part/a.mat: not a readable annotation",
        "Annotations_Part/b.mat: not a readable annotation",
        "VOCdevkit/VOC2010/JPEGImages/c.jpg: there is no such file",
        "VOCdevkit/VOC2010/JPEGImages/d.jpg: 121 x 160 pixels, but its annotation has 120 x 160",
    )
    for problem, start in zip(problems, starts, strict=True):
        assert problem.startswith(start)


def test_an_annotation_that_is_cut_or_flipped_anywhere_is_refused_or_read(tmp_path):
    write_annotation(tmp_path, "a", [car(0, 0)])
    path = tmp_path / "Annotations_Part" / "a.mat"
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for trial in range(60):
        broken = bytearray(whole)
        if trial % 2:
            broken = broken[: rng.integers(len(whole))]
        else:
            broken[rng.integers(len(whole))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        for problem in check_dataset(tmp_path, grouping="pascal-car"):
            assert "a.mat" in problem or "no photo" in problem


# Label ids with labels.json: Clothing Co-Parsing


def write_labelled(folder: Path, values: Sequence[int], labels: Mapping[str, str]) -> None:
    write(folder / "images" / "0001.jpg", np.zeros((1, len(values), 3), np.uint8))
    write(folder / "labels" / "0001.png", ids([values]))
    (folder / "labels.json").write_text(json.dumps(labels))


LABELS = {"0": "null", "3": "coat", "1": "hat", "7": "dress", "9": "ring"}


def test_labels_of_a_json_file_are_classes_in_order_of_their_values(tmp_path):
    write_labelled(tmp_path / "ccp" / "part", [0, 1, 3, 7, 9, 255], LABELS)
    dataset = open_dataset(tmp_path / "ccp" / "part")
    assert (dataset.name, dataset.classes) == ("part", ("hat", "coat", "dress", "ring"))
    assert dataset[0][2].tolist() == [[0, 1, 2, 3, 4, IGNORE]]
    (tmp_path / "ccp" / "part" / "labels.json").rename(tmp_path / "ccp" / "labels.json")
    assert open_dataset(tmp_path / "ccp" / "part").name == "ccp/part"


def test_labels_are_grouped_into_classes_background_and_ignored(tmp_path):
    write_labelled(tmp_path, [0, 1, 3, 7, 9, 255], LABELS)
    groups = {"body": ["dress", "coat"], "head": ["hat"], "ignore": ["ring"]}
    dataset = open_dataset(tmp_path, grouping=write_group(tmp_path, groups))
    assert dataset.classes == ("body", "head")
    assert dataset[0][2].tolist() == [[0, 2, 1, 1, IGNORE, IGNORE]]
    groups = {"head": ["hat"], "background": ["*"]}
    dataset = open_dataset(tmp_path, grouping=write_group(tmp_path, groups))
    assert dataset[0][2].tolist() == [[0, 1, 0, 0, 0, IGNORE]]


def test_groupings_are_applied_one_after_the_other(tmp_path):
    names = dict(enumerate(sorted(GROUPINGS["ccp"].labels), start=1))
    value = {name: number for number, name in names.items()}
    labels = {"0": "null", "200": "watch"} | {str(v): name for v, name in names.items()}
    write_labelled(tmp_path, [value["dress"], value["tie"], value["hat"], 200, 0], labels)
    first = open_dataset(tmp_path, grouping="ccp")
    assert first.classes == (
        *("hair", "skin", "upper", "dress", "lower", "shoes", "bag", "accessories"),
    )
    assert first[0][2].tolist() == [[4, 3, 1, 8, 0]]
    merged = write_group(
        tmp_path,
        {
            "hair": ["hair"],
            "top": ["upper", "dress"],
            "ignore": ["accessories"],
            "background": ["*"],
        },
    )
    assert open_dataset(tmp_path, grouping=["ccp", merged])[0][2].tolist() == [[2, 2, 1, 255, 0]]


def test_a_value_without_a_label_is_named(tmp_path):
    write_labelled(tmp_path, [0, 1, 8], LABELS)
    (problem,) = check_dataset(tmp_path)
    assert problem.startswith("labels/0001.png: pixel (0, 2) has the value 8")
    assert "the values in labels.json" in problem


@pytest.mark.parametrize(
    "content",
    [
        '["hat"]',
        "{}",
        '{"0": "null"}',
        '{"1": ""}',
        '{"1": 2}',
        '{"-1": "hat"}',
        '{"255": "hat"}',
        '{"1": "hat", "2": "hat"}',
        '{"1": "hat", "1": "cap"}',
        "{",
    ],
)
def test_labels_json_when_it_is_wrong_is_refused(content, tmp_path):
    write_labelled(tmp_path, [0, 1], LABELS)
    (tmp_path / "labels.json").write_text(content)
    with pytest.raises(CorruptFileError, match=r"labels\.json"):
        open_dataset(tmp_path)


# Groupings


def test_the_classes_of_a_dataset_folder_can_be_grouped(tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, 4, 3), np.uint8), ids([[0, 1, 2, 255]]))
    group = write_group(tmp_path, {"animal": ["dog", "cat"]})
    dataset = open_dataset(tmp_path, classes=["cat", "dog"], grouping=group)
    assert dataset.classes == ("animal",)
    assert dataset[0][2].tolist() == [[0, 1, 1, IGNORE]]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ([], "expected an object of groups"),
        ({"a": "cat"}, "expected an object of groups"),
        ({"a": [1]}, "expected an object of groups"),
        ({"a": ["cat"], "b": ["cat", "dog"]}, "cat: named twice"),
        ({"background": ["*"]}, "no class besides the background"),
        ({"a": ["cat"]}, "says nothing of dog"),
        (
            {"a": ["cat", "dgo"], "ignore": ["*"]},
            "names 'dgo', but the dataset has no such label. Perhaps dog?",
        ),
    ],
)
def test_a_grouping_that_does_not_fit_is_refused(groups, message, tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, 3, 3), np.uint8), ids([[0, 1, 2]]))
    with pytest.raises(InputError) as caught:
        open_dataset(tmp_path, classes=["cat", "dog"], grouping=write_group(tmp_path, groups))
    assert message in str(caught.value)


def test_a_grouping_that_is_misspelt_names_the_nearest():
    with pytest.raises(InputError, match="Perhaps pascal-horse"):
        find_grouping("pascal-hors")


@pytest.mark.parametrize("name", sorted(GROUPINGS))
def test_the_named_groupings_name_each_label_once(name):
    grouping = GROUPINGS[name]
    assert len(set(grouping.labels)) == len(grouping.labels)
    found = grouping.ids(sorted(grouping.labels))
    named = {n for n, group in enumerate(grouping.classes, 1) if grouping.groups[group] != ("*",)}
    assert set(found.values()) - {0} == named


@pytest.mark.parametrize("classes", [["cat", "cat"], ["background", "cat"]])
def test_classes_of_one_name_or_called_background_are_refused(classes, tmp_path):
    write_pair(tmp_path, "a", np.zeros((1, 3, 3), np.uint8), ids([[0, 1, 2]]))
    with pytest.raises(InputError, match="expected each name once, without the background"):
        open_dataset(tmp_path, classes=classes)
