"""Labelled photos in the formats of other tools: exact, or with a stated loss, or refused."""

import contextlib
import importlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from scipy.ndimage import gaussian_filter, label

from latentseg.datasets import conversion
from latentseg.datasets.conversion import convert_dataset
from latentseg.datasets.formats.polygons import polygons
from latentseg.datasets.formats.regions import decode
from latentseg.datasets.layouts import LAYOUTS
from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST, read_json, verify_manifest, write_manifest
from latentseg.images import Pixels, encode, read_image, read_mask
from latentseg.synthesis.stream import Stream
from latentseg.synthesis.streamed_images import StreamedImages
from tests.labelers.test_style_mixing import mixing

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools 2.0.11

COUNT = 200
CLASSES = tuple(f"class {k}" for k in range(1, 13))
FACTS = {
    "licence": "CC BY 4.0",
    "generator": {"name": "pets64", "licence": "CC BY 4.0"},
    "labeler": {"method": "directions", "seed": 3},
}
EXACT = ["coco", "folder", "voc", "hf"]
NAMES = {
    "coco": "COCO",
    "folder": "dataset folder",
    "voc": "PASCAL VOC and CVAT masks",
    "hf": "Hugging Face folder",
}


def open_labeled(path: Path) -> RealDataset:
    """Opened without looking into the pictures, so that each complains when it is read."""
    return open_dataset(path, examine=False)


def find_format(path: Path) -> str | None:
    return next((each.name for each in LAYOUTS if each.find(path, ())), None)


def names_of(dataset: RealDataset) -> tuple[str, ...]:
    return tuple(pair.name for pair in dataset.pairs)


def random_mask(i: int, *, ignored: bool = True) -> Pixels:
    """Regions of many classes, rings, single pixels, ignored pixels; every tenth is empty."""
    rng = np.random.default_rng(i)
    size = tuple(rng.integers(8, 48, 2))
    if i % 10 == 0:
        return np.zeros(size, np.uint8)
    height = gaussian_filter(rng.standard_normal(size), rng.uniform(0.5, 3))
    bands = np.digitize(height, np.quantile(height, np.linspace(0, 1, 6)[1:-1]))
    mask = np.array([0, *rng.choice(np.arange(1, 13), 4)], np.uint8)[bands]
    mask[rng.random(size) < 0.02] = rng.integers(1, 13)  # single pixels, and holes of one pixel
    y, x = np.mgrid[: size[0], : size[1]]
    radius = np.hypot(y - size[0] / 2, x - size[1] / 2)
    mask[(radius > 2) & (radius < 4)] = rng.integers(1, 13)
    if ignored and i % 3 == 0:
        mask[rng.random(size) < 0.1] = 255
        mask[-1] = 255
    return mask


def photo(i: int, size: tuple[int, ...]) -> Pixels:
    return np.random.default_rng([i, 1]).integers(0, 256, (*size[:2], 3), dtype=np.uint8)


def put(path: Path, content: bytes | str | Pixels | Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, np.ndarray):
        content = encode(content, path.suffix)
    elif not isinstance(content, str | bytes):
        content = json.dumps(content)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def make_source(
    folder: Path, masks: list[Pixels], *, classes: tuple[str, ...] = CLASSES, suffix: str = ".png"
) -> Path:
    for i, mask in enumerate(masks):
        put(folder / "images" / f"{i:04d}{suffix}", photo(i, mask.shape))
        put(folder / "masks" / f"{i:04d}.png", mask)
    put(folder / "dataset.json", {"classes": classes, "ignore": 255, **FACTS})
    return folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source(tmp_path_factory.mktemp("source"), [random_mask(i) for i in range(COUNT)])


def small(folder: Path, *masks: Pixels, **options: Any) -> Path:
    """A source of a few masks; by default a square, and one with a hole."""
    square = np.zeros((9, 12), np.uint8)
    square[2:7, 3:9] = 1
    ring = square.copy()
    ring[4, 5] = 0
    return make_source(folder, [*masks] or [square, ring], classes=("cat", "dog"), **options)


def convert(source: Any, out: Path, format: str, **options: Any) -> Path:
    return convert_dataset(source, out, format=format, quiet=True, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != "config.json"
    }


def assert_equal(folder: Path, expected: Path) -> None:
    """Names, photos, masks, classes and origin are the same."""
    found, truth = open_labeled(folder), open_labeled(expected)
    assert names_of(found) == names_of(truth)
    assert found.classes == truth.classes
    assert {key: found.facts[key] for key in FACTS} == FACTS
    for i in range(len(truth)):
        (name, image, mask), (true_name, true_image, true_mask) = found[i], truth[i]
        assert name == true_name
        np.testing.assert_array_equal(image, true_image)
        np.testing.assert_array_equal(mask, true_mask)


# Round trips


@pytest.mark.parametrize("format", ["coco", "folder"])
def test_convert_when_exact_then_200_masks_come_back_pixel_for_pixel(
    tmp_path: Path, source: Path, format: str
):
    folder = convert(source, tmp_path, format)
    assert find_format(folder) == NAMES[format]
    verify_manifest(folder)
    assert_equal(folder, source)


@pytest.mark.parametrize("format", EXACT)
def test_convert_when_there_and_back_then_it_is_the_same_dataset_folder(
    tmp_path: Path, format: str
):
    start = make_source(tmp_path / "start", [random_mask(i) for i in range(24)])
    folder = convert(start, tmp_path / "there", format)
    assert find_format(folder) == NAMES[format]
    back = convert(folder, tmp_path / "back", "folder")
    assert_equal(back, start)
    assert len(open_dataset(back)) == 24


def test_coco_when_read_by_pycocotools_then_masks_boxes_and_areas_are_those_of_the_classes(
    tmp_path: Path, source: Path
):
    coco = importlib.import_module("pycocotools.coco")
    folder = convert(source, tmp_path, "coco")
    with contextlib.redirect_stdout(None):
        index = coco.COCO(str(folder / "annotations.json"))
    assert [c["name"] for c in index.loadCats(index.getCatIds())] == [*CLASSES]
    assert index.dataset["licenses"][0]["name"] == "CC BY 4.0"
    assert index.dataset["info"]["labeler"] == FACTS["labeler"]
    n_crowds = 0
    for number, image in enumerate(index.loadImgs(index.getImgIds())):
        mask = read_mask(source / "masks" / f"{number:04d}.png")
        assert (folder / "images" / image["file_name"]).is_file()
        found = index.loadAnns(index.getAnnIds(imgIds=image["id"]))
        plain = {each["category_id"]: each for each in found if not each["iscrowd"]}
        assert sorted(plain) == [k for k in np.unique(mask) if 0 < k < 255]
        for k, each in plain.items():
            region = mask == k
            np.testing.assert_array_equal(index.annToMask(each) > 0, region)
            assert each["area"] == region.sum()
            rows, columns = np.nonzero(region)
            x, y, width, height = each["bbox"]
            assert [x, y] == [columns.min(), rows.min()]
            assert [x + width, y + height] == [columns.max() + 1, rows.max() + 1]
        crowds = [each for each in found if each["iscrowd"]]
        n_crowds += len(crowds)
        assert sorted(each["category_id"] for each in crowds) == (
            list(range(1, 13)) if (mask == 255).any() else []
        )
    assert n_crowds > 0


def test_coco_when_by_instances_then_each_component_is_one_annotation(tmp_path: Path):
    mask = random_mask(7)
    folder = convert(make_source(tmp_path / "s", [mask]), tmp_path / "o", "coco", instances=True)
    found = [a for a in read_json(folder / "annotations.json")["annotations"] if not a["iscrowd"]]
    n_components: Any = [label(mask == k, np.ones((3, 3))) for k in range(1, 13)]
    assert len(found) == sum(count for _, count in n_components) > len(np.unique(mask))
    np.testing.assert_array_equal(open_labeled(folder)[0][2], mask)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs datasets")
def test_hf_when_opened_by_datasets_then_pictures_and_class_names_are_there(
    tmp_path: Path, source: Path
):
    folder = convert(source, tmp_path / "set", "hf")
    program = (
        "import sys, json, numpy, datasets\n"
        "rows = datasets.load_dataset(sys.argv[1])['train']\n"
        "masks = {r['name']: numpy.array(r['label']).tolist() for r in rows}\n"
        "print(json.dumps([len(rows), rows.features['classes'].feature.names, rows[1]['classes'],\n"
        "    numpy.array(rows[1]['image']).tolist(), masks]))\n"
    )
    # A process of its own: offline, with its own cache.
    environment = {**os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program, str(folder)]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    count, names, present, image, masks = json.loads(answer.stdout)
    assert (count, names) == (COUNT, [*CLASSES])
    for i in range(COUNT):
        assert masks[f"{i:04d}"] == read_mask(source / "masks" / f"{i:04d}.png").tolist()
    assert image == read_image(source / "images" / "0001.png").tolist()
    assert present == [k - 1 for k in np.unique(masks["0001"]) if 0 < k < 255]


def test_hf_when_written_then_the_card_has_licence_and_origin(tmp_path: Path):
    card = (convert(small(tmp_path / "s"), tmp_path / "o", "hf") / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["license"] == "cc-by-4.0"
    assert '"method": "directions"' in card
    facts = {"licence": "NVIDIA non-commercial"}
    folder = convert(tmp_path / "s", tmp_path / "p", "hf", facts=facts)
    header = yaml.safe_load((folder / "README.md").read_text().split("---")[1])
    assert (header["license"], header["license_name"]) == ("other", "nvidia-non-commercial")


def test_voc_when_written_then_masks_are_palettes_in_the_colors_of_the_label_map(tmp_path: Path):
    folder = convert(small(tmp_path / "s"), tmp_path / "o", "voc")
    rows = (folder / "labelmap.txt").read_text().splitlines()[1:]
    colors = [tuple(map(int, row.split(":")[1].split(","))) for row in rows]
    with Image.open(folder / "SegmentationClass" / "0001.png") as picture:
        shown, ids = np.array(picture.convert("RGB")), np.array(picture)
    np.testing.assert_array_equal(shown, np.array(colors, np.uint8)[ids])
    assert (folder / "ImageSets/Segmentation/train.txt").read_text() == "0000\n0001\n"


def test_convert_when_a_stream_is_given_then_it_equals_what_the_stream_draws(tmp_path: Path):
    labeler = mixing()
    stream = Stream(labeler.generator, labeler, block=4)
    folder = convert(StreamedImages(stream, 6), tmp_path, "coco")
    dataset = open_labeled(folder)
    blocks = [stream.block(0), stream.block(1)]
    for field, position in (("images", 1), ("masks", 2)):
        expected = np.concatenate([getattr(block, field) for block in blocks])[:6]
        found = np.stack([dataset[i][position] for i in range(6)])
        np.testing.assert_array_equal(found, expected)
    assert dataset.facts["licence"] == "Apache-2.0"
    assert dataset.facts["labeler"]["method"] == "style-mixing"


# YOLO


@pytest.fixture(scope="module")
def without_ignored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    masks = [random_mask(i, ignored=False) for i in range(COUNT)]
    return make_source(tmp_path_factory.mktemp("whole"), masks)


def test_yolo_when_nothing_is_ignored_then_polygons_with_holes_and_single_pixels_are_kept(
    tmp_path: Path, without_ignored: Path
):
    folder = convert(without_ignored, tmp_path, "yolo")
    loss = read_json(folder / "dataset.json")["loss"]
    assert loss["iou_worst"] >= 0.99
    assert_equal(folder, without_ignored)


def test_polygons_when_points_are_added_and_rounded_down_then_all_are_pixels_of_the_region():
    """What YOLO's own loader makes of them: more points, whole pixels, OpenCV's fillPoly."""
    for i in range(1, 30):
        mask = random_mask(i, ignored=False)
        for k in np.unique(mask)[1:]:
            for corners in polygons(mask == k):
                steps = np.roll(corners, -1, axis=0) - corners
                between = corners + np.linspace(0, 1, 7)[:, None, None] * steps
                x, y = between.reshape(-1, 2).astype(int).T
                assert (mask[y, x] == k).all()


def test_polygons_when_their_shoelace_area_is_taken_then_holes_are_left_out():
    region = np.zeros((40, 40), bool)
    region[5:35, 5:35] = True
    region[10:20, 10:20] = region[24:30, 12:30] = False
    (polygon,) = polygons(region)
    x, y = polygon.T
    area = abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1))) / 2
    assert area == pytest.approx(region.sum(), rel=0.02)


def test_yolo_when_pixels_are_ignored_then_the_loss_is_named_and_refused(tmp_path: Path):
    source = make_source(tmp_path / "s", [random_mask(i) for i in range(12)])
    out = tmp_path / "o"
    with pytest.raises(InputError, match="`lossy`") as error:
        convert(source, out, "yolo")
    assert "0003: " in str(error.value)
    assert "ignored pixels would become background" in str(error.value)
    assert "mean 1.0000, worst" in str(error.value)
    assert not (out / "data.yaml").exists()
    assert not (out / MANIFEST).exists()
    convert(source, out, "yolo", lossy=True)
    loss = read_json(out / "dataset.json")["loss"]
    assert loss["masks_with_ignored_pixels"] == sum(
        255 in read_mask(path) for path in (source / "masks").iterdir()
    )
    found, truth = open_labeled(out), open_labeled(source)
    for i in range(12):
        mask = truth[i][2]
        np.testing.assert_array_equal(found[i][2], np.where(mask == 255, 0, mask))


def test_yolo_when_polygons_lose_then_the_worst_masks_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    outer_only = "latentseg.datasets.formats.polygons._joined"
    monkeypatch.setattr(outer_only, lambda rings: rings[0])  # as polygons without holes would
    with pytest.raises(InputError, match=r"0001: IoU 0\.9667 of cat") as error:
        convert(small(tmp_path / "s"), tmp_path / "o", "yolo")
    assert "mean 0.9833, worst 0.9667" in str(error.value)
    assert "0000" not in str(error.value)
    convert(small(tmp_path / "s"), tmp_path / "o", "yolo", lossy=True)
    assert read_json(tmp_path / "o" / "dataset.json")["loss"]["iou_worst"] == pytest.approx(29 / 30)


def test_yolo_when_written_then_data_yaml_has_names_and_origin(tmp_path: Path):
    folder = convert(small(tmp_path / "s"), tmp_path / "o", "yolo")
    text = (folder / "data.yaml").read_text()
    data = yaml.safe_load(text)
    assert data == {"train": "images", "val": "images", "names": {0: "cat", 1: "dog"}}
    assert '# licence: "CC BY 4.0"' in text
    lines = (folder / "labels" / "0000.txt").read_text().splitlines()
    values = np.array(lines[0].split(), float)
    assert values[0] == 0
    assert values[1:].min() >= 0
    assert values[1:].max() <= 1


# What others write


def test_yolo_when_laid_out_by_roboflow_then_all_parts_are_read(tmp_path: Path):
    for part, x in (("train", 0.0), ("valid", 0.5)):
        put(tmp_path / part / "images" / "a.jpg", photo(0, (10, 20)))
        text = f"1 {x} 0 {x + 0.5} 0 {x + 0.5} 1 {x} 1\n\n"
        put(tmp_path / part / "labels" / "a.txt", text)
    put(tmp_path / "train" / "images" / "nothing.jpg", photo(1, (10, 20)))
    data = {"train": "../train/images", "val": "../valid/images", "test": "../test/images"}
    put(tmp_path / "data.yaml", {**data, "nc": 2, "names": ["cat", "dog"]})
    dataset = open_labeled(tmp_path)
    assert names_of(dataset) == ("train/images/a", "train/images/nothing", "valid/images/a")
    assert [int((dataset[i][2] == 2).sum()) for i in range(3)] == [100, 0, 100]


def coco_of(folder: Path, **changes: Any) -> Path:
    """A COCO folder as others write it: polygons, uncompressed runs, ids with gaps."""
    put(folder / "val2017" / "b.jpg", photo(0, (8, 10)))
    content = {
        "images": [{"id": 42, "file_name": "b.jpg", "height": 8, "width": 10}],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "cat"}],
        "annotations": [
            polygon_annotation(18, [0, 0, 5, 0, 5, 8, 0, 8]),
            {
                **polygon_annotation(3, []),
                "id": 2,
                "segmentation": {"size": [8, 10], "counts": [32, 16, 32]},
            },
            {
                **polygon_annotation(3, [0, 0, 10, 0, 10, 2, 0, 2]),
                "iscrowd": 1,
                "id": 3,
            },
        ],
    }
    return put(folder / "annotations" / "instances_val2017.json", {**content, **changes})


def polygon_annotation(category: int, corners: list[float]) -> dict[str, Any]:
    return {"id": 1, "image_id": 42, "category_id": category, "segmentation": [corners]}


def test_coco_when_others_wrote_it_then_ids_are_in_order_and_later_annotations_lie_on_top(
    tmp_path: Path,
):
    file = coco_of(tmp_path)
    for place in (tmp_path, file):
        dataset = open_labeled(place)
        assert dataset.classes == ("cat", "dog")
        expected = np.zeros((8, 10), np.uint8)
        expected[:2] = 255  # crowds are ignored where nothing else is
        expected[:, :5] = 2
        expected[:, 4:6] = 1
        np.testing.assert_array_equal(dataset[0][2], expected)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"images": [{"id": 42, "file_name": "../c.jpg", "height": 8, "width": 10}]}, "missing"),
        ({"images": [{"id": 42, "file_name": "/etc/passwd", "height": 8, "width": 10}]}, "missing"),
        ({"images": [{"id": 42, "file_name": "C:\\c.jpg", "height": 8, "width": 10}]}, "missing"),
        ({"images": [{"id": 42, "file_name": "a\nb", "height": 8, "width": 1}]}, "no name of a"),
        ({"images": [{"id": 42, "file_name": "c.jpg", "height": 8, "width": 10}]}, "missing"),
        ({"images": [{"id": 42, "file_name": "b.jpg", "height": -8, "width": 10}]}, "height -8"),
        ({"images": [{"id": 42, "file_name": "b.jpg"}]}, "image 42: expected id"),
        ({"images": [{"id": [], "file_name": "b", "height": 1, "width": 1}]}, "expected id"),
        ({"images": [{"id": 1, "file_name": "b.jpg", "height": 8, "width": 10}] * 2}, "same id"),
        ({"annotations": [{**polygon_annotation(3, []), "image_id": 7}]}, "no image 7"),
        ({"annotations": [polygon_annotation(4, [])]}, "annotation 1: there is no category 4"),
        ({"annotations": [{"id": 9}]}, "annotation 9: expected image_id"),
        ({"annotations": ["x"]}, "annotation 0: expected image_id"),
        ({"categories": [{"id": 3}]}, "category without id or name"),
        ({"categories": [{"id": 3, "name": "a"}, {"id": 3, "name": "b"}]}, "same id"),
        ({"categories": []}, "expected 1 to 254"),
        ({"annotations": None}, "not a COCO file"),
    ],
)
def test_coco_when_it_does_not_fit_together_then_the_entry_is_named(tmp_path, changes, named):
    file = coco_of(tmp_path, **changes)
    with pytest.raises((InputError, CorruptFileError), match=named) as error:
        open_labeled(tmp_path)
    assert file.name in str(error.value)


@pytest.mark.parametrize(
    ("segmentation", "named"),
    [
        ({"size": [10, 8], "counts": [80]}, r"size \[10, 8\], not \[8, 10\]"),
        ({"size": [8, 10], "counts": [79]}, "runs do not make 8 x 10"),
        ({"size": [8, 10], "counts": [100, -20]}, "runs do not make"),
        ({"size": [8, 10], "counts": [True] * 80}, "runs do not make"),
        ({"size": [8, 10], "counts": "o" * 100_000}, "runs do not make"),
        ({"size": [8, 10], "counts": "\x00zz"}, "runs do not make"),
        ({"size": [8, 10], "counts": "`"}, "runs do not make"),
        ({"size": [10**9, 10**9], "counts": [10**18]}, "size"),
        ([[0, 0, 5, 5, 3]], "expected x1, y1"),
        ([[0, 0, 5, 5, "a", 3]], "expected x1, y1"),
        ([[0, 0, 1e12, 0, 1e12, 1e12]], "lies outside"),
        ("abc", "expected run lengths"),
    ],
)
def test_coco_when_a_mask_is_hostile_then_file_and_annotation_are_named(
    tmp_path: Path, segmentation: Any, named: str
):
    wrong = {**polygon_annotation(3, []), "id": 77, "segmentation": segmentation}
    file = coco_of(tmp_path, annotations=[wrong])
    with pytest.raises(CorruptFileError, match=named) as error:
        open_labeled(file)[0]
    assert f"{file}: annotation 77: " in str(error.value)


def test_decode_when_given_text_then_it_is_what_pycocotools_decodes():
    api = importlib.import_module("pycocotools.mask")
    for i in range(40):
        region = random_mask(i) > 3
        encoded = api.encode(np.asfortranarray(region.astype(np.uint8)))
        text = {"size": [*region.shape], "counts": encoded["counts"].decode()}
        np.testing.assert_array_equal(decode(text, region.shape), api.decode(encoded) > 0)


def test_coco_when_the_photo_has_another_size_then_both_are_named(tmp_path: Path):
    image = {"id": 42, "file_name": "b.jpg", "height": 10, "width": 8}
    coco_of(tmp_path, images=[image], annotations=[])
    with pytest.raises(InputError, match=r"10 x 8 pixels, but its image val2017/b\.jpg has 8 x 10"):
        open_labeled(tmp_path)[0]


def test_coco_when_there_are_several_files_then_one_has_to_be_named(tmp_path: Path):
    file = coco_of(tmp_path)
    put(file.with_name("instances_train2017.json"), "{}")
    with pytest.raises(InputError, match=r"instances_train2017\.json, .*Name one of them"):
        open_labeled(tmp_path)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("5 0 0 1 0 1 1", "class 5; data.yaml names 2"),
        ("0 0 0 1 0 1", "5 numbers"),
        ("0 0 0 nan 0 1 1", "outside of the image"),
        ("0 0 0 1e9 0 1 1", "outside of the image"),
        ("cat 0 0 1 0 1 1", "expected CLASS X1 Y1"),
        ("\ud800".encode("utf-8", "surrogatepass"), "not a text in UTF-8"),
    ],
)
def test_yolo_when_a_line_is_wrong_then_file_and_line_are_named(tmp_path: Path, line, named: str):
    folder = convert(small(tmp_path / "s"), tmp_path / "o", "yolo")
    (folder / MANIFEST).unlink()
    path = folder / "labels" / "0001.txt"
    put(path, line if isinstance(line, bytes) else f"0 0 0 1 0 1 1\n{line}\n")
    with pytest.raises(CorruptFileError, match=named) as error:
        open_labeled(folder)[1]
    assert str(path) in str(error.value)


@pytest.mark.parametrize("place", ["../../other", "/etc", 7, "missing"])
def test_yolo_when_data_yaml_leaves_the_folder_then_it_is_refused(tmp_path: Path, place: Any):
    put(tmp_path / "data.yaml", {"train": place, "names": ["cat"]})
    with pytest.raises(InputError, match=r"data\.yaml: train"):
        open_labeled(tmp_path)


@pytest.mark.parametrize("text", ["[", "- 1", "names: [1", "!!python/object/apply:os.getcwd []"])
def test_yolo_when_data_yaml_is_not_plain_then_it_is_refused(tmp_path: Path, text: str):
    put(tmp_path / "data.yaml", text)
    with pytest.raises(CorruptFileError, match=r"data\.yaml"):
        open_labeled(tmp_path)


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({"file_name": "../x.png", "label_file_name": "m.png"}, "line 1: expected file_name"),
        ({"file_name": "x.png"}, "line 1: expected file_name"),
        ({"file_name": "x.png", "mask_file_name": "m.png"}, r"x\.png: is listed, but missing"),
        ([], "not one JSON object in each line"),
    ],
)
def test_hf_when_a_row_is_wrong_then_file_and_line_are_named(tmp_path: Path, row: Any, named: str):
    put(tmp_path / "train" / "metadata.jsonl", row)
    put(tmp_path / "dataset.json", {"classes": ["cat"]})
    with pytest.raises((InputError, CorruptFileError), match=named) as error:
        open_labeled(tmp_path)
    assert "metadata.jsonl" in str(error.value) or "train" in str(error.value)


@pytest.mark.parametrize(
    ("description", "named"),
    [
        ({"classes": ["a", "a"]}, "each name once"),
        ({"classes": ["a\nb"]}, "a list of names"),
        ({"classes": ["a"] * 300}, "1 to 254"),
        ({"classes": ["a", "b"], "foreground": 255}, "means one class"),
        ({"classes": ["a"], "ignore": "x"}, "ignore is 'x'"),
        ([], "expected an object"),
    ],
)
def test_folder_when_its_description_is_wrong_then_it_is_refused(tmp_path, description, named):
    put(small(tmp_path) / "dataset.json", description)
    with pytest.raises(InputError, match=named):
        open_labeled(tmp_path)


def test_folder_when_255_is_the_foreground_then_the_masks_hold_class_ids(tmp_path: Path):
    mask = np.zeros((4, 4), np.uint8)
    mask[1] = 255
    make_source(tmp_path, [mask])
    put(tmp_path / "dataset.json", {"classes": ["cat"], "foreground": 255})
    np.testing.assert_array_equal(open_labeled(tmp_path)[0][2], mask // 255)


# Conversion as a whole


def test_convert_when_files_are_wrong_then_all_are_listed_and_the_rest_is_kept(tmp_path: Path):
    source = small(tmp_path / "s", *[random_mask(i) % 3 for i in range(1, 7)])
    put(source / "masks" / "0000.png", np.full((3, 3), 1, np.uint8))
    put(source / "masks" / "0002.png", np.full((8, 8), 9, np.uint8))
    put(source / "images" / "0002.png", photo(2, (8, 8)))
    put(source / "images" / "0004.png", b"no picture")
    with pytest.raises(InputError, match="3 problems") as error:
        convert(source, tmp_path / "o", "coco")
    for named in (r"masks/0000.png: 3 x 3 pixels", "pixel (0, 0) has the value 9", "0004.png: not"):
        assert named in str(error.value)
    assert not (tmp_path / "o" / MANIFEST).exists()
    small(source, *[random_mask(i) % 3 for i in range(1, 7)])
    convert(source, tmp_path / "o", "coco")
    assert_equal(tmp_path / "o", source)
    assert contents(tmp_path / "o") == contents(convert(source, tmp_path / "whole", "coco"))


def test_convert_when_masks_or_photos_are_alone_then_all_are_listed(tmp_path: Path):
    source = small(tmp_path)
    put(source / "images" / "alone.png", photo(0, (3, 3)))
    put(source / "masks" / "lonely.png", np.zeros((3, 3), np.uint8))
    put(source / "images" / "0000.jpg", photo(0, (3, 3)))
    with pytest.raises(InputError, match="3 problems") as error:
        open_labeled(source)
    for named in ("alone.png: has no mask", "lonely.png: has no image", "0000.png: has the same"):
        assert named in str(error.value)


@pytest.mark.parametrize("format", [*EXACT, "yolo"])
@pytest.mark.parametrize("survivors", [0, 3, 9])
def test_convert_when_killed_then_the_same_call_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str, survivors: int
):
    source = small(tmp_path / "s", *[random_mask(i, ignored=False) % 3 for i in range(10)])
    whole = contents(convert(source, tmp_path / "whole" / "set", format))
    out = tmp_path / "killed" / "set"
    monkeypatch.setattr(conversion, "CHUNK", 2)
    calls = []

    def dying(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > survivors:
            raise KeyboardInterrupt
        return write_sample(*arguments)

    write_sample = conversion._write_sample
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "_write_sample", dying)
        with pytest.raises(KeyboardInterrupt):
            convert(source, out, format)
    assert not (out / MANIFEST).exists()
    with open(out / conversion.JOURNAL, "a") as journal:
        journal.write('{"index": 3')  # a line that the kill cut off
    assert contents(convert(source, out, format)) == whole
    assert not (out / conversion.JOURNAL).exists()


def test_convert_when_it_goes_on_then_what_was_written_is_not_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = small(tmp_path / "s", *[random_mask(i, ignored=False) % 3 for i in range(10)])
    with monkeypatch.context() as patch:
        patch.setattr(conversion, "write_json", interrupted)
        with pytest.raises(KeyboardInterrupt):
            convert(source, tmp_path / "o", "yolo")
    monkeypatch.setattr(conversion, "_write_sample", None)
    convert(source, tmp_path / "o", "yolo")
    assert_equal(tmp_path / "o", source)


def interrupted(*arguments: Any) -> None:
    raise KeyboardInterrupt


def test_convert_when_finished_then_nothing_is_done_and_changes_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    source = small(tmp_path / "s")
    folder = convert(source, tmp_path / "o", "coco")
    monkeypatch.setattr(conversion, "_write_samples", None)
    convert(source, folder, "coco")
    put(folder / "annotations.json", "{}")
    with pytest.raises(CorruptFileError, match=r"annotations\.json \(changed\)"):
        convert(source, folder, "coco")
    with pytest.raises(CorruptFileError, match=r"annotations\.json \(changed\)"):
        open_labeled(folder)


def test_convert_when_the_folder_holds_another_set_then_the_difference_is_named(tmp_path: Path):
    convert(small(tmp_path / "s"), tmp_path / "o", "coco")
    with pytest.raises(InputError, match="format: 'coco' there, 'hf' now"):
        convert(tmp_path / "s", tmp_path / "o", "hf")
    with pytest.raises(InputError, match="not empty"):
        convert(tmp_path / "s", tmp_path / "s", "hf")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"format": "csv"}, "expected one of coco, yolo, folder, voc, hf"),
        ({"format": "hf", "lossy": True}, "`lossy`: of the format yolo only, found hf"),
        ({"format": "yolo", "instances": True}, "`instances`: of the format coco only, found yolo"),
    ],
)
def test_convert_when_an_option_does_not_fit_then_it_is_refused(tmp_path: Path, options, named):
    with pytest.raises(InputError, match=named):
        convert_dataset(small(tmp_path / "s"), tmp_path / "o", **options)


def test_convert_when_the_source_is_nothing_known_then_it_says_what_is(tmp_path: Path):
    with pytest.raises(InputError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "o", "coco")
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match=r"In it: notes\.txt") as error:
        convert(tmp_path, tmp_path / "o", "coco")
    for layout in LAYOUTS:
        assert f"{layout.name}: {layout.looks_for}" in str(error.value)


def test_convert_when_the_disk_is_too_small_then_it_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(conversion, "free_bytes", lambda folder: 10)
    with pytest.raises(InputError, match="0 MB are free"):
        convert(small(tmp_path / "s"), tmp_path / "o", "coco")
    assert not (tmp_path / "o" / "images").exists()


def oriented_jpeg(image: Pixels) -> bytes:
    """A JPEG with the EXIF orientation 6: turned by a quarter when it is shown."""
    jpeg = encode(image, ".jpg")
    entry = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 1) + entry + b"\0\0\0\0"
    return jpeg[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + jpeg[2:]


def test_convert_when_photos_are_ordinary_then_they_are_copied_else_written_upright(tmp_path: Path):
    source = small(tmp_path / "s", suffix=".jpg")
    turned = put(source / "images" / "turned.jpg", oriented_jpeg(photo(5, (12, 9))))
    put(source / "masks" / "turned.png", np.ones((9, 12), np.uint8))
    clear = np.dstack([photo(6, (9, 12)), np.full((9, 12), 100, np.uint8)])
    put(source / "images" / "clear.png", clear)
    put(source / "masks" / "clear.png", np.ones((9, 12), np.uint8))
    folder = convert(source, tmp_path / "o", "coco")
    copied = (folder / "images" / "0001.jpg").read_bytes()
    assert copied == (source / "images" / "0001.jpg").read_bytes()
    assert_equal(folder, source)
    with Image.open(folder / "images" / "turned.png") as picture:
        np.testing.assert_array_equal(np.array(picture), read_image(turned))
    with Image.open(folder / "images" / "clear.png") as picture:
        assert picture.mode == "RGB"


def test_convert_when_photos_lie_in_folders_then_each_keeps_a_name_of_its_own(tmp_path: Path):
    source = small(tmp_path / "s")
    for name in ("a/x", "b/x"):
        put(source / "images" / f"{name}.png", photo(1, (5, 5)))
        put(source / "masks" / f"{name}.png", np.eye(5, dtype=np.uint8))
    assert names_of(open_labeled(convert(source, tmp_path / "o", "folder"))) == (
        "0000",
        "0001",
        "a_x",
        "b_x",
    )
    put(source / "images" / "A_X.png", photo(1, (5, 5)))
    put(source / "masks" / "A_X.png", np.eye(5, dtype=np.uint8))
    with pytest.raises(InputError, match="another photo is called a_x, too"):
        convert(source, tmp_path / "p", "folder")


def test_open_when_a_manifest_does_not_match_then_the_file_is_named(tmp_path: Path):
    source = small(tmp_path)
    write_manifest(source)
    put(source / "masks" / "0001.png", np.zeros((9, 12), np.uint8))
    with pytest.raises(CorruptFileError, match=r"masks/0001\.png \(changed\)"):
        open_labeled(source)


def test_convert_when_an_array_holds_no_class_then_the_sample_is_named(tmp_path: Path):
    class InMemory:
        classes = ("cat",)

        def __len__(self) -> int:
            return 2

        def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
            return f"s{index}", photo(0, (4, 4)), np.full((4, 4), 1 + index, np.uint8)

    with pytest.raises(InputError, match="s1: a pixel has the value 2"):
        convert(InMemory(), tmp_path, "coco")
