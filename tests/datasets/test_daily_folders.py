"""Folders as other tools leave them: exports of CVAT and Label Studio, soft and inverted masks."""

import base64
import io
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFilter

from latentseg.datasets.conversion import convert_dataset
from latentseg.datasets.real import check_dataset, open_dataset
from latentseg.errors import InputError, LatentsegError
from latentseg.images import Pixels, Reading, read_mask
from tests.commands import run_command

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools 2.0.11

CASES = Path(__file__).parents[1] / "data" / "cases"
CENTERS = {"p0": (34, 29), "p1": (32, 24), "p2": (28, 28), "p3": (25, 28), "p4": (40, 27)}  # x, y
RADIUS = 14
Y, X = np.mgrid[:48, :64]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return partial(run_command, monkeypatch, capsys)


def disc(name: str, shift: float = 0.5) -> Any:
    """What was drawn on photo `name`; corners of polygons lie between pixels, hence the shift."""
    x, y = CENTERS[name]
    return np.hypot(X + shift - x, Y + shift - y) <= RADIUS


def iou(a: Any, b: Any) -> float:
    return float((a & b).sum() / (a | b).sum())


def save(path: Path, picture: Any, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path, **options)


def folder_of(folder: Path, masks: list[Pixels], suffix: str = ".png") -> Path:
    for k, mask in enumerate(masks):
        save(folder / "images" / f"{k}.png", np.dstack([mask] * 3))
        save(folder / "masks" / f"{k}{suffix}", mask)
    return folder


def squares(n: int = 3, value: int = 255) -> list[Pixels]:
    masks = np.zeros((n, 20, 24), np.uint8)
    for k, mask in enumerate(masks):
        mask[5 + k : 12 + k, 6:15] = value
    return [*masks]


# Exports whose polygons are discs

DISCS = {
    "cvat-yolo/export": ("p0", "p1", "p2"),
    "labelstudio-116/export": ("p0", "p1", "p2"),
    "labelstudio-backslash/export": ("p0", "p1", "p2"),
    "yolo-yaml-name/data": ("p0", "p1", "p2", "p3", "p4"),
}


@pytest.mark.parametrize("case", DISCS)
def test_an_export_of_discs_opens_with_its_discs(case):
    dataset = open_dataset(CASES / case)
    assert dataset.classes == ("disc",)
    assert [name for name, _, _ in dataset] == [*DISCS[case]]
    for name, image, mask in dataset:
        assert image.shape == (48, 64, 3)
        assert mask.sum() == 616
        assert iou(mask == 1, disc(name)) > 0.97
    assert check_dataset(CASES / case) == []


@pytest.mark.parametrize("case", DISCS)
def test_what_was_converted_from_an_export_is_sound_and_the_same(case, tmp_path, command):
    code, _, said = command("convert-dataset", CASES / case, tmp_path / "out", "--format", "folder")
    assert (code, said.count("error")) == (0, 0)
    assert command("check", tmp_path / "out")[0] == 0
    for one, other in zip(open_dataset(CASES / case), open_dataset(tmp_path / "out"), strict=True):
        assert np.array_equal(one[1], other[1])
        assert np.array_equal(one[2], other[2])


def test_a_list_of_photos_may_have_the_folder_of_another_machine_before_its_paths(tmp_path):
    shutil.copytree(CASES / "cvat-yolo" / "export", tmp_path / "e")
    (tmp_path / "e" / "train.txt").write_text("data/images/train/p0.png\n./images/train/p1.png\n")
    assert [name for name, _, _ in open_dataset(tmp_path / "e")] == ["p0", "p1"]
    (tmp_path / "e" / "train.txt").write_text("images/train/p9.png\n")
    with pytest.raises(
        InputError, match=r"train\.txt: images/train/p9\.png is listed, but missing"
    ):
        open_dataset(tmp_path / "e")
    (tmp_path / "e" / "train.txt").write_text("../../../etc/passwd.png\n")
    with pytest.raises(InputError, match="is listed, but missing"):
        open_dataset(tmp_path / "e")


@pytest.mark.parametrize("name", ["coco8-seg.yaml", "my set.yml"])
def test_a_yolo_file_may_have_any_name_but_there_must_be_one(tmp_path, name):
    shutil.copytree(CASES / "yolo-yaml-name" / "data", tmp_path / "d")
    (tmp_path / "d" / "discs.yaml").rename(tmp_path / "d" / name)
    (tmp_path / "d" / "hyp.yaml").write_text("lr0: 0.01\n")  # of another program
    assert len(open_dataset(tmp_path / "d")) == 5
    (tmp_path / "d" / "second.yaml").write_text("train: images\nnames: [disc]\n")
    with pytest.raises(InputError, match=r"several YOLO files.*Call the right one data\.yaml"):
        open_dataset(tmp_path / "d")


def relist(folder: Path, rename: Any) -> Path:
    """The Label Studio export with other paths of its photos."""
    shutil.copytree(CASES / "labelstudio-116" / "export", folder)
    content = json.loads((folder / "result.json").read_text())
    for image in content["images"]:
        image["file_name"] = rename(Path(image["file_name"].replace("\\", "/")).name)
    (folder / "result.json").write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    "place",
    [
        "/label-studio/data/media/upload/4/{}",
        "C:\\Users\\me\\{}",
        "\\\\server\\share\\{}",
        "images/{}",
        "../images/{}",
    ],
)
def test_photos_of_label_studio_are_found_by_name_below_the_export(tmp_path, place):
    dataset = open_dataset(relist(tmp_path / "e", place.format))
    assert [name for name, _, _ in dataset] == ["p0", "p1", "p2"]
    assert all(tmp_path / "e" in pair.image.parents for pair in dataset.pairs)


def test_photos_outside_of_the_export_are_not_read(tmp_path):
    export = relist(tmp_path / "e", "../secret/{}".format)
    shutil.move(export / "images", tmp_path / "secret")
    with pytest.raises(InputError, match=r"\.\./secret/p0\.png: is listed, but missing"):
        open_dataset(export)


# Colors of CVAT


@pytest.mark.parametrize("k", range(3))
def test_masks_in_the_colors_of_labelmap_have_its_classes(k):
    dataset = open_dataset(CASES / "cvat-rgb" / "export")
    assert dataset.classes == ("Leaf", "Stem")
    colors = Image.open(CASES / "cvat-rgb" / "export" / "SegmentationClass" / f"a{k}.png")
    rgb = np.array(colors.convert("RGB")).astype(int)
    leaf, stem = ((rgb == color).all(axis=-1) for color in ([10, 200, 60], [220, 30, 120]))
    _, _, mask = dataset[k]
    assert np.array_equal(mask, leaf + 2 * stem)
    assert (leaf.sum(), stem.sum()) == (292, 321)


@pytest.mark.parametrize("k", range(3))
def test_masks_of_line_numbers_have_the_classes_of_these_lines(k):
    dataset = open_dataset(CASES / "cvat-order" / "export")
    assert dataset.classes == ("Leaf", "Stem")
    path = CASES / "cvat-order" / "export" / "SegmentationClass" / f"a{k}.png"
    stored = np.array(Image.open(path))
    expected = np.select([stored == 0, stored == 2], [1, 2])
    _, _, mask = dataset[k]
    assert np.array_equal(mask, expected)
    assert np.bincount(mask.ravel()).tolist() == [2459, 292, 321]


def test_both_exports_of_cvat_show_the_same_masks():
    colors, numbers = (open_dataset(CASES / c / "export") for c in ("cvat-rgb", "cvat-order"))
    for one, other in zip(colors, numbers, strict=True):
        assert np.array_equal(one[2], other[2])


def test_colors_are_told_in_any_order_of_lines_and_unknown_ones_refused(tmp_path):
    export = tmp_path / "e"
    shutil.copytree(CASES / "cvat-rgb" / "export", export)
    lines = (export / "labelmap.txt").read_text().splitlines()
    (export / "labelmap.txt").write_text("\n".join(reversed(lines)) + "\n")
    dataset = open_dataset(export)
    assert dataset.classes == ("Stem", "Leaf")
    assert np.bincount(dataset[0][2].ravel()).tolist() == [2459, 321, 292]
    without = [line for line in lines if not line.startswith("Stem")]
    (export / "labelmap.txt").write_text("\n".join(without) + "\n")
    with pytest.raises(
        InputError, match=r"a0\.png: pixel \(\d+, \d+\) has the color \[220, 30, 120"
    ):
        open_dataset(export)


# Soft edges


@pytest.mark.parametrize("case", ["soft-edges/data", "mask-jpeg/data"])
def test_masks_with_soft_edges_are_refused_with_the_flag_that_helps_and_cut_at_half(case, command):
    code, _, said = command("check", CASES / case)
    assert code == 1
    assert "black and white with soft edges, or saved as JPEG" in said
    assert "binarize" in said
    assert command("check", CASES / case, "--binarize")[0] == 0
    dataset = open_dataset(CASES / case, binarize=True)
    assert dataset.classes == ("foreground",)
    for pair, (name, _, mask) in zip(dataset.pairs, dataset, strict=True):
        stored = np.array(Image.open(pair.mask).convert("L"))
        assert np.array_equal(mask, stored > 127)
        assert iou(mask == 1, disc(name, 0)) > 0.97


def test_convert_dataset_makes_clean_masks_of_soft_ones(tmp_path, command):
    case = CASES / "soft-edges" / "data"
    convert = ("convert-dataset", case, tmp_path / "out", "--format", "folder")
    assert command(*convert, "--binarize", "--classes", "disc")[0] == 0
    assert {int(v) for v in np.unique(read_mask(tmp_path / "out" / "masks" / "p0.png"))} == {0, 1}
    assert open_dataset(tmp_path / "out").classes == ("disc",)
    code, _, said = command(*convert, "--classes", "disc")
    assert code == 1  # other work in that folder
    assert "binarize" in said


@pytest.mark.parametrize("soften", ["blur", "resize"])
def test_edges_softened_in_other_ways_are_cut_at_half(tmp_path, soften):
    masks = []
    for mask in squares():
        picture = Image.fromarray(mask)
        if soften == "blur":
            picture = picture.filter(ImageFilter.GaussianBlur(1.5))
        else:
            picture = picture.resize((120, 100), Image.Resampling.BICUBIC)
        masks.append(np.array(picture))
    folder_of(tmp_path, masks)
    with pytest.raises(InputError, match="soft edges"):
        open_dataset(tmp_path)
    for mask, (_, _, found) in zip(masks, open_dataset(tmp_path, binarize=True), strict=True):
        assert np.array_equal(found, mask > 127)


def test_a_few_soft_masks_among_sharp_ones_are_named_with_the_flag_that_helps(tmp_path):
    blurred = np.array(Image.fromarray(squares()[0]).filter(ImageFilter.GaussianBlur(2)))
    folder_of(tmp_path, [*squares(), blurred])
    with pytest.raises(InputError, match=r"masks/3\.png: pixel .*`binarize` cuts them at half"):
        open_dataset(tmp_path)


def test_binarize_is_refused_where_masks_are_no_black_and_white_pictures(tmp_path):
    with pytest.raises(InputError, match="`binarize` is for masks that are black and white"):
        open_dataset(CASES / "cvat-yolo" / "export", binarize=True)
    folder_of(tmp_path, squares())
    (tmp_path / "dataset.json").write_text('{"classes": ["a", "b"]}')
    with pytest.raises(InputError, match="`binarize` makes masks of one class; there are 2: a, b"):
        open_dataset(tmp_path, binarize=True)


# Inverted masks


@pytest.mark.parametrize("value", [1, 255])
def test_inverted_masks_are_told_by_their_borders_and_inverted_when_asked(tmp_path, command, value):
    masks = squares(value=value)
    folder_of(tmp_path, [value - mask for mask in masks])
    code, out, _ = command("check", tmp_path)
    assert code == 0
    assert "in 3 of 3 the foreground covers the borders" in out
    code, out, _ = command("check", tmp_path, "--invert")
    assert (code, "borders" in out) == (0, False)
    dataset = open_dataset(tmp_path, invert=True)
    for mask, (_, _, found) in zip(masks, dataset, strict=True):
        assert np.array_equal(found, mask > 0)
    convert_dataset(dataset, tmp_path / "out", format="folder", quiet=True)
    assert np.array_equal(open_dataset(tmp_path / "out")[0][2], masks[0] > 0)


def test_soft_inverted_masks_are_cut_and_inverted(tmp_path):
    soft = [np.array(Image.fromarray(255 - m).filter(ImageFilter.BoxBlur(1))) for m in squares()]
    folder_of(tmp_path, soft)
    for mask, (_, _, found) in zip(
        soft, open_dataset(tmp_path, binarize=True, invert=True), strict=True
    ):
        assert np.array_equal(found, mask <= 127)


def test_masks_whose_objects_keep_away_from_borders_give_no_hint(tmp_path):
    folder_of(tmp_path, squares())
    assert open_dataset(tmp_path).notes == ()


def test_invert_is_refused_where_there_are_several_classes():
    with pytest.raises(InputError, match="`invert`: is for masks of one class; there are 2: Leaf"):
        open_dataset(CASES / "cvat-rgb" / "export", invert=True)


# Stacks and deep photos beside masks


def test_stacks_are_paired_page_by_page(tmp_path):
    pages = np.random.default_rng(0).integers(0, 4096, (3, 20, 24), dtype=np.uint16)
    for name, content in (("images", pages), ("masks", np.stack(squares()))):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "s.tif", content, photometric="minisblack")
    dataset = open_dataset(tmp_path)
    assert [pair.name for pair in dataset.pairs] == ["s_0001", "s_0002", "s_0003"]
    assert "values from 0 to 4095 become black to white" in dataset.notes[0]
    for k, (_, image, mask) in enumerate(dataset):
        assert np.abs(image[..., 0] - np.round(255.0 * pages[k] / 4095)).max() == 0
        assert np.array_equal(mask, squares()[k] > 0)
    assert len(open_dataset(tmp_path, reading=Reading(page=2))) == 1
    tifffile.imwrite(tmp_path / "masks" / "s.tif", squares()[0], photometric="minisblack")
    with pytest.raises(InputError, match=r"masks/s\.tif: 1 page, but its image has 3 pages"):
        open_dataset(tmp_path)


def test_a_photo_of_a_format_that_is_not_read_is_a_problem_of_the_dataset(tmp_path):
    folder_of(tmp_path, squares())
    (tmp_path / "images" / "raw.cr2").write_bytes(b"raw")
    assert check_dataset(tmp_path) == [
        "images/raw.cr2: .cr2 files are not read. Save it as TIFF, PNG or JPEG."
    ]


# Names with a mark


@pytest.mark.parametrize("mark", ["_mask", "_seg", "_segmentation"])
def test_masks_may_have_a_mark_in_their_names(tmp_path, mark):
    folder_of(tmp_path, squares())
    for path in (tmp_path / "masks").glob("*.png"):
        path.rename(path.with_stem(path.stem + mark))
    assert check_dataset(tmp_path) == []
    for mask, (_, _, found) in zip(squares(), open_dataset(tmp_path), strict=True):
        assert np.array_equal(found, mask > 0)


def test_two_masks_of_one_photo_are_not_taken_for_one(tmp_path):
    folder_of(tmp_path, squares())
    shutil.copy(tmp_path / "masks" / "0.png", tmp_path / "masks" / "0_mask.png")
    assert check_dataset(tmp_path) == ["masks/0_mask.png: has no image of that name in images."]


# labelme


def labelme(folder: Path, *shapes: dict[str, Any], name: str = "a", **more: Any) -> Path:
    save(folder / f"{name}.jpg", np.zeros((48, 64, 3), np.uint8))
    content = {"version": "5.5.0", "flags": {}, "shapes": shapes, "imagePath": f"{name}.jpg"}
    content |= {"imageData": None, "imageHeight": 48, "imageWidth": 64, **more}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def shape(label: str, kind: str, *points: tuple[float, float], **more: Any) -> dict[str, Any]:
    return {"label": label, "shape_type": kind, "points": [list(p) for p in points], **more}


def test_shapes_of_labelme_are_masks_and_the_later_one_holds(tmp_path):
    drawn = io.BytesIO()
    Image.fromarray(np.eye(4, dtype=bool)).save(drawn, "PNG")
    labelme(
        tmp_path,
        shape("cat", "rectangle", (10, 8), (30, 20)),
        shape("dog", "polygon", (20, 8), (40, 8), (40, 20), (20, 20)),
        shape("_background_", "rectangle", (38, 8), (40, 20)),
        shape("__ignore__", "rectangle", (0, 46), (64, 48)),
        shape("cat", "mask", (50, 2), (53, 5), mask=base64.b64encode(drawn.getvalue()).decode()),
        shape("cat", "point", (3, 3)),
    )
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.notes == ("1 shapes without an area were left out: point.",)
    expected = np.zeros((48, 64), np.uint8)
    expected[8:20, 10:20], expected[8:20, 20:38], expected[46:] = 1, 2, 255
    expected[range(2, 6), range(50, 54)] = 1
    assert np.array_equal(dataset[0][2], expected)
    assert check_dataset(tmp_path) == []


def test_a_circle_of_labelme_is_round(tmp_path):
    x, y = CENTERS["p0"]
    dataset = open_dataset(labelme(tmp_path, shape("disc", "circle", (x, y), (x, y + RADIUS))))
    assert iou(dataset[0][2] == 1, disc("p0")) > 0.97


def test_photos_of_labelme_lie_in_folders_and_on_windows(tmp_path):
    square = shape("cat", "rectangle", (10, 8), (30, 20))
    labelme(tmp_path / "one", square, name="a", imagePath="..\\one\\a.jpg")
    labelme(tmp_path / "two", square, name="a", imagePath="C:\\photos\\two\\a.jpg")
    dataset = open_dataset(tmp_path)
    assert [pair.name for pair in dataset.pairs] == ["one/a", "two/a"]
    assert [pair.image.parent.name for pair in dataset.pairs] == ["one", "two"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"label": 3}, r"a\.json: shape 0: expected a label"),
        ({"points": [[1, 2], [3, "4"]]}, r"a\.json: shape 0: point .*two numbers"),
        ({"points": [[1, 2], [3]]}, r"a\.json: shape 0: point .*expected x and y"),
        ({"points": [[1, 2], [3, 9e9]]}, r"a\.json: shape 0: polygon .*outside the image"),
        ({"shape_type": "sphere"}, r"a\.json: shape 0: 'sphere' of 2 points is no shape"),
        ({"shape_type": "mask", "mask": "%"}, r"a\.json: shape 0: mask: not a picture in base64"),
        ({"shape_type": "mask", "mask": "QUJD"}, "mask: not a readable image"),
    ],
)
def test_a_wrong_shape_of_labelme_is_named(tmp_path, wrong, said):
    labelme(tmp_path, shape("cat", "rectangle", (10, 8), (30, 20)) | wrong)
    with pytest.raises(LatentsegError, match=said):
        open_dataset(tmp_path)


def test_a_folder_of_no_known_layout_is_answered_with_all_that_are_known(tmp_path, command):
    (tmp_path / "settings.json").write_text("{}")
    for arguments in (
        ("check", tmp_path),
        ("train", tmp_path, tmp_path / "run"),
        ("convert-dataset", tmp_path, tmp_path / "out", "--format", "coco"),
    ):
        code, _, said = command(*arguments)
        assert code == 1
        assert "not a dataset of a known layout. In it: settings.json" in said
        for known in (
            "COCO: ",
            "YOLO-seg: ",
            "PASCAL VOC and CVAT",
            "labelme: ",
            "CUB",
            "shards: ",
        ):
            assert known in said


# Hostile folders


@pytest.mark.parametrize(
    ("case", "said"),
    [
        (
            "labels01",
            'labels.json: expected the name of each mask value from 0 to 254.*{"1": "hair"}',
        ),
        ("coco_huge", "annotations.json: not valid JSON .*too large for an integer"),
        ("yolo_laughs", "data.yaml: cannot be read .deeper than 64 levels, or more than 100000"),
    ],
)
@pytest.mark.parametrize("read", [check_dataset, open_dataset])
def test_a_hostile_folder_is_an_error_of_ours(case, said, read):
    with pytest.raises(LatentsegError, match=said):
        read(CASES / case)


@pytest.mark.parametrize(
    "labels", ['{"+1": "a"}', '{"1 ": "a"}', '{"1": "a", "١": "b"}', '{"1e0": "a"}']
)
def test_mask_values_are_plain_numbers(tmp_path, labels):
    shutil.copytree(CASES / "labels01", tmp_path / "d")
    (tmp_path / "d" / "labels.json").write_text(labels)
    with pytest.raises(LatentsegError, match="expected the name of each mask value"):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    "corner", ["1e400", "-1e308", "9" * 18, "NaN", "true", '"1"', "[1]", "null"]
)
def test_corners_that_are_no_places_are_errors_of_ours(tmp_path, corner):
    shutil.copytree(CASES / "coco_huge", tmp_path / "d")
    content = {
        "images": [{"id": 1, "file_name": "00.png", "height": 32, "width": 32}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [["CORNER", 1, 2, 2, 3, 1]]}
        ],
    }
    text = json.dumps(content).replace('"CORNER"', corner)
    (tmp_path / "d" / "annotations.json").write_text(text)
    with pytest.raises(LatentsegError):
        open_dataset(tmp_path / "d")


@pytest.mark.parametrize(
    "names",
    [
        "[" * 5000 + "]" * 5000,
        "&a [*a]",
        "{<<: &b {<<: *b}}",
        "!!python/object/apply:os.system ['true']",
        "2001-01-01",
    ],
)
def test_names_that_are_no_names_are_errors_of_ours(tmp_path, names):
    shutil.copytree(CASES / "yolo_laughs", tmp_path / "d")
    (tmp_path / "d" / "data.yaml").write_text(f"train: images\nval: images\nnames: {names}\n")
    with pytest.raises(LatentsegError):
        open_dataset(tmp_path / "d")
