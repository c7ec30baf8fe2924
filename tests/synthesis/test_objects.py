"""Objects of a dataset: boxes of its images in, COCO masks out, as a user gives the command."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from latentseg.errors import InputError
from latentseg.generators import Generator
from latentseg.images import read_image, read_mask
from latentseg.labelers.instances import Box
from latentseg.labelers.mask_measures import mask_iou
from latentseg.labelers.style_mixing import StyleMixingLabeler
from latentseg.labelers.style_mixing_settings import StyleMixingConfig
from latentseg.synthesis.objects import segment_objects
from latentseg.synthesis.writers import synthesize
from tests.labelers.test_style_mixing import FOREGROUND
from tests.world import World

COUNT = 6


def labeler_of(generator: Generator) -> StyleMixingLabeler:
    config = StyleMixingConfig(first_mixed_layer=1)
    return StyleMixingLabeler(generator, config=config, seed=0, names=FOREGROUND)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("objects") / "dataset"
    world = World()
    return synthesize(world, labeler_of(world), count=COUNT, out=folder, seed=3, quiet=True)


def box_of(mask: np.ndarray) -> Box:
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    return Box(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools 2.0.11
def test_objects_when_boxes_are_given_then_coco_reads_the_masks(made: Path, tmp_path: Path) -> None:
    masks = {path.name: read_mask(path) for path in sorted((made / "masks").iterdir())}
    boxes = {name: [box_of(mask)] for name, mask in list(masks.items())[:4]}
    labeler = labeler_of(World())
    segment_objects(labeler, made, boxes, out=tmp_path / "out", quiet=True)
    coco = COCO(tmp_path / "out" / "instances.json")
    assert sorted(image["file_name"] for image in coco.dataset["images"]) == sorted(boxes)
    for image in coco.dataset["images"]:
        (annotation,) = coco.imgToAnns[image["id"]]
        found = coco.annToMask(annotation)[None] > 0
        assert mask_iou(found, masks[image["file_name"]][None] > 0)[0] > 0.9
    assert read_image(tmp_path / "out" / "contact_sheet.png").ndim == 3


def test_objects_when_a_detector_is_given_then_it_sees_every_image(
    made: Path, tmp_path: Path
) -> None:
    seen = []

    def detector(image: np.ndarray) -> list[Box]:
        seen.append(image)
        return [Box(2, 2, 28, 28, category=5)]

    segment_objects(labeler_of(World()), made, detector, out=tmp_path / "out", quiet=True)
    stored = [read_image(path) for path in sorted((made / "images").iterdir())]
    assert all(np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(seen, stored, strict=True))
    written = json.loads((tmp_path / "out" / "instances.json").read_text())
    assert written["categories"] == [{"id": 5, "name": "object"}]


def test_objects_when_boxes_name_no_image_then_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cat\.png: has boxes, but is no image of"):
        segment_objects(
            labeler_of(World()), made, {"cat.png": [Box(1, 1, 4, 4)]}, out=tmp_path, quiet=True
        )


def test_objects_when_the_generator_is_another_then_refused(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="drawn by a generator with"):
        segment_objects(labeler_of(World(n_classes=2)), made, {}, out=tmp_path, quiet=True)


def test_objects_when_there_are_no_boxes_then_says_so(made: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="none of its images has a box"):
        segment_objects(labeler_of(World()), made, {}, out=tmp_path, quiet=True)


def test_instances_as_a_command_takes_a_coco_file(made: Path, tmp_path: Path) -> None:
    def latentseg(*arguments: object) -> str:
        command = [sys.executable, "-m", "latentseg", *map(str, arguments), "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    world, labeler, out = "tests.world:World", tmp_path / "labeler", tmp_path / "out"
    labeler_of(World()).save(labeler)
    name = sorted((made / "images").iterdir())[1].name
    boxes = {
        "images": [{"id": 1, "file_name": name}],
        "annotations": [{"image_id": 1, "bbox": [4, 4, 24, 24], "category_id": 3}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    told = latentseg("instances", world, labeler, made, out, "--boxes", tmp_path / "boxes.json")
    assert f"1 objects: {out}/instances.json" in told
    written = json.loads((out / "instances.json").read_text())
    assert written["categories"] == [{"id": 3, "name": "cat"}]
    assert [image["file_name"] for image in written["images"]] == [name]
