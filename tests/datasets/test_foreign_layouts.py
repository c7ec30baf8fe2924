"""Supervisely, SA-1B, tables of the Hub and tar files of others, by hand or by their own tools."""

import base64
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_masks

from latentseg.datasets.real import check_dataset, open_dataset
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.images import Pixels, encode

pytestmark = pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # pycocotools 2.0.11

SIZE = (48, 64)


def photo(value: int = 90) -> Pixels:
    return np.full((*SIZE, 3), value, np.uint8)


def mask_of(top: int, left: int, bottom: int, right: int, value: int = 1) -> Pixels:
    mask = np.zeros(SIZE, np.uint8)
    mask[top:bottom, left:right] = value
    return mask


def save(path: Path, picture: Pixels) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture).save(path)


def png(picture: Pixels | Image.Image, **options: Any) -> bytes:
    content = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(
        content, "PNG", **options
    )
    return content.getvalue()


# Supervisely


def supervisely(folder: Path, *objects: dict[str, Any], place: str = "ds") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    classes = [{"title": t, "shape": "any", "color": "#FF0000"} for t in ("bg", "cat", "dog")]
    (folder / "meta.json").write_text(json.dumps({"classes": classes, "tags": []}))
    save(folder / place / "img" / "a.jpg", photo())
    (folder / place / "ann").mkdir(exist_ok=True)
    content = {"size": {"height": 48, "width": 64}, "tags": [], "objects": objects}
    (folder / place / "ann" / "a.jpg.json").write_text(json.dumps(content))
    return folder


def polygon(title: str, exterior: list[Any], *interior: list[Any], kind: str = "polygon") -> Any:
    points = {"exterior": exterior, "interior": [*interior]}
    return {"classTitle": title, "geometryType": kind, "points": points}


def bitmap(title: str, picture: Pixels | Image.Image, origin: list[Any]) -> dict[str, Any]:
    data = base64.b64encode(zlib.compress(png(picture))).decode()
    return {
        "classTitle": title,
        "geometryType": "bitmap",
        "bitmap": {"data": data, "origin": origin},
    }


def box(top: int, left: int, bottom: int, right: int) -> list[list[int]]:
    return [[left, top], [right, top], [right, bottom], [left, bottom]]


def test_figures_of_supervisely_are_masks_with_holes_and_the_later_one_holds(tmp_path):
    cut_out = np.zeros((3, 4, 4), np.uint8)[0:3]
    cut_out[..., 3] = np.array([[0, 255, 255, 0], [255] * 4, [0, 0, 255, 255]])
    supervisely(
        tmp_path,
        polygon("cat", box(8, 10, 30, 40), box(12, 20, 20, 30)),
        polygon("dog", [[50, 2], [55, 6]], kind="rectangle"),
        bitmap("dog", cut_out, [5, 40]),
        polygon("bg", box(8, 36, 30, 40)),
        polygon("dog", [[1, 1]], kind="point"),
    )
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("cat", "dog")
    assert dataset.notes == ("1 figures without an area were left out: point.",)
    expected = mask_of(8, 10, 30, 36)
    expected[12:20, 20:30] = 0
    expected[2:7, 50:56] = 2
    expected[40:43, 5:9][cut_out[..., 3] > 0] = 2
    assert np.array_equal(dataset[0][2], expected)
    assert check_dataset(tmp_path) == []


def test_a_bitmap_of_supervisely_may_be_black_and_white(tmp_path):
    part = np.eye(4, dtype=bool)
    supervisely(tmp_path, bitmap("cat", Image.fromarray(part), [0, 0]))
    assert np.array_equal(open_dataset(tmp_path)[0][2][:4, :4], part)


def test_a_project_of_supervisely_has_datasets_and_one_of_them_opens_alone(tmp_path):
    square = polygon("cat", box(8, 10, 30, 40))
    supervisely(tmp_path, square, place="one")
    supervisely(tmp_path, square, place="one/datasets/two")
    names = [pair.name for pair in open_dataset(tmp_path).pairs]
    assert names == ["one/a", "one/datasets/two/a"]
    assert open_dataset(tmp_path / "one").pairs[0].name == "a"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"classTitle": "cow"}, "'cow' is no class of meta.json"),
        ({"geometryType": "sphere"}, "'sphere' of 4 points is not read"),
        ({"points": 3}, "expected points, or a bitmap"),
        ({"points": {"exterior": [[1, 2], [3]]}}, "expected x and y of each"),
        ({"points": {"exterior": [[0, 0], [9e9, 0], [9, 9]]}}, "lies outside the image"),
        ({"geometryType": "bitmap"}, "bitmap: expected data and an origin"),
        (bitmap("cat", mask_of(0, 0, 1, 1), [9, 9]), "bitmap: lies outside of the image"),
        ({"geometryType": "bitmap", "bitmap": {"data": "%", "origin": [0, 0]}}, "no compressed"),
        ({"geometryType": "bitmap", "bitmap": {"data": "eJw=", "origin": [0, 0]}}, "end early"),
    ],
)
def test_a_wrong_figure_of_supervisely_is_named(tmp_path, wrong, said):
    supervisely(tmp_path, polygon("cat", box(8, 10, 30, 40)) | wrong)
    with pytest.raises(LatentsegError, match=rf"ann/a\.jpg\.json: object 0: .*{said}"):
        open_dataset(tmp_path)


def test_a_photo_of_supervisely_without_annotation_is_named(tmp_path):
    supervisely(tmp_path, polygon("cat", box(8, 10, 30, 40)))
    save(tmp_path / "ds" / "img" / "b.jpg", photo())
    assert check_dataset(tmp_path) == ["ds/img/b.jpg: has no ds/ann/b.jpg.json."]


# SA-1B


def sa1b(folder: Path, *masks: Pixels, name: str = "sa_1") -> Path:
    save(folder / f"{name}.jpg", photo())
    annotations = []
    for number, mask in enumerate(masks):
        encoded: Any = coco_masks.encode(np.asfortranarray(mask))
        counts = {"size": [48, 64], "counts": encoded["counts"].decode()}
        annotations.append({"id": number, "segmentation": counts, "area": int(mask.sum())})
    image = {"image_id": 1, "width": 64, "height": 48, "file_name": f"{name}.jpg"}
    content = {"image": image, "annotations": annotations}
    (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def test_masks_of_sa1b_are_one_class(tmp_path):
    first, second = mask_of(3, 4, 20, 30), mask_of(10, 20, 40, 50)
    sa1b(tmp_path, first, second)
    sa1b(tmp_path, second, name="sa_2")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("object",)
    assert "masks without classes" in dataset.notes[0]
    assert [pair.name for pair in dataset.pairs] == ["sa_1", "sa_2"]
    assert np.array_equal(dataset[0][2], first | second)
    assert np.array_equal(dataset[1][2], second)


def test_a_wrong_mask_of_sa1b_is_named(tmp_path):
    file = sa1b(tmp_path, mask_of(3, 4, 20, 30)) / "sa_1.json"
    content = json.loads(file.read_text())
    content["annotations"].append({"segmentation": {"size": [1, 1], "counts": "0"}})
    file.write_text(json.dumps(content))
    assert check_dataset(tmp_path) == [
        "sa_1.json: annotation 1: segmentation: size [1, 1], not [48, 64]."
    ]


# Parquet


def parquet(path: Path, n: int = 5, *, mask: str = "label", group: int = 2) -> Path:
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [Image.fromarray(photo(10 * k)) for k in range(n)],
        mask: [Image.fromarray(mask_of(4, 4, 10 + k, 20)) for k in range(n)],
        "text": ["a"] * n,
    }
    kinds = {"image": datasets.Image(), mask: datasets.Image(), "text": datasets.Value("string")}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = datasets.Dataset.from_dict(rows, features=datasets.Features(kinds))
    table.to_parquet(str(path), batch_size=group)
    return path


@pytest.mark.parametrize("mask", ["label", "mask", "annotation"])
def test_tables_that_the_hub_stores_open(tmp_path, mask):
    file = parquet(tmp_path / "data" / "train-00000-of-00001.parquet", mask=mask)
    for path in (tmp_path, file):
        dataset = open_dataset(path)
        assert len(dataset) == 5
        for k, (name, image, found) in enumerate(dataset):
            assert name.endswith(f"train-00000-of-00001_{k:06d}")
            assert np.array_equal(image, photo(10 * k))
            assert np.array_equal(found, mask_of(4, 4, 10 + k, 20))
    assert check_dataset(tmp_path) == []


def test_a_table_without_masks_or_cut_off_is_refused_by_name(tmp_path):
    file = parquet(tmp_path / "a.parquet", mask="depth")
    with pytest.raises(InputError, match=r"one of masks \(label.*pictures are: image, depth"):
        open_dataset(tmp_path)
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(CorruptFileError, match=r"a\.parquet: not a readable table"):
        open_dataset(tmp_path)


# Tar files


def tar(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("image", "mask"), [("jpg", "png"), ("jpg", "mask.png"), ("png", "seg.png"), ("JPG", "PNG")]
)
def test_shards_of_others_open(tmp_path, image, mask):
    members = {}
    for k in range(3):
        members[f"train/{k:04d}.{image}"] = encode(photo(10 * k), f".{image}")
        members[f"train/{k:04d}.{mask}"] = png(mask_of(4, 4, 10 + k, 20))
        members[f"train/{k:04d}.json"] = b"{}"
    file = tar(tmp_path / "pets-000.tar", members)
    for path in (tmp_path, file):
        dataset = open_dataset(path)
        assert [pair.name for pair in dataset.pairs] == [f"train/{k:04d}" for k in range(3)]
        for k, (_, found, truth) in enumerate(dataset):
            assert np.abs(found.astype(int) - 10 * k).max() <= 1
            assert np.array_equal(truth, mask_of(4, 4, 10 + k, 20))
    assert check_dataset(tmp_path) == []


def test_samples_of_several_shards_keep_apart(tmp_path):
    members = {"0.jpg": encode(photo(), ".jpg"), "0.png": png(mask_of(4, 4, 10, 20))}
    for name in ("a", "b"):
        tar(tmp_path / f"{name}.tar", members)
    assert [pair.name for pair in open_dataset(tmp_path).pairs] == ["a/0", "b/0"]


def test_a_photo_without_mask_and_a_shard_that_is_cut_off_are_named(tmp_path):
    members = {"0.jpg": encode(photo(), ".jpg"), "0.png": png(mask_of(4, 4, 10, 20))}
    file = tar(tmp_path / "a.tar", members | {"1.jpg": encode(photo(), ".jpg")})
    assert check_dataset(tmp_path) == ["a.tar: 1: no photo with mask in jpg."]
    file.write_bytes(file.read_bytes()[:700])
    with pytest.raises(LatentsegError, match=r"a\.tar|0: "):
        open_dataset(tmp_path)
