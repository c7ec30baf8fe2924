"""Objects one by one: boxes in, masks and COCO out."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.generators.protocols import Latents
from latentseg.images import Pixels
from latentseg.labelers.instances import Box, read_boxes, segment_instances, to_coco, write_coco
from latentseg.labelers.mask_measures import mask_iou
from latentseg.labelers.style_mixing import StyleMixingLabeler
from latentseg.labelers.style_mixing_settings import StyleMixingConfig
from tests.labelers.test_style_mixing import FOREGROUND, mixing
from tests.world import World, seeds

COCO = {
    "images": [{"id": 7, "file_name": "a.png"}, {"id": 9, "file_name": "b.png"}],
    "annotations": [
        {"image_id": 7, "bbox": [1, 2, 10, 12], "category_id": 3},
        {"image_id": 7, "bbox": [5.5, 2, 4, 4]},
    ],
}


def box_of(mask: np.ndarray) -> Box:
    rows, columns = np.nonzero(mask)
    top, left = int(rows.min()), int(columns.min())
    return Box(left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top)


class Twins(World):
    """Two worlds side by side, with one object in each half."""

    def __init__(self) -> None:
        super().__init__((32, 64))
        self.half = World()

    def __call__(self, latents: Latents) -> torch.Tensor:
        mirrored = latents.with_values(latents.values * torch.tensor([-1.0, -1, *19 * [1]]))
        return torch.cat([self.half(latents), self.half(mirrored)], dim=3)

    def masks(self, latents: Latents) -> torch.Tensor:
        mirrored = latents.with_values(latents.values * torch.tensor([-1.0, -1, *19 * [1]]))
        return torch.cat([self.half.masks(latents), self.half.masks(mirrored)], dim=2)


def test_instances_when_there_are_two_objects_then_each_box_has_its_own():
    twins = Twins()
    config = StyleMixingConfig(first_mixed_layer=1)
    labeler = StyleMixingLabeler(twins, config=config, seed=0, names=FOREGROUND)
    latents = twins.sample(seeds(8))
    truth = twins.masks(latents).numpy() > 0
    halves = [np.where(np.arange(64) < 32, mask, False) for mask in truth]
    parts = [(left, mask & ~left) for left, mask in zip(halves, truth, strict=True)]
    boxes = [[box_of(part) for part in pair] for pair in parts]
    images, found = segment_instances(labeler, latents, boxes)
    assert images.shape == (8, 32, 64, 3)
    ious = [
        mask_iou(instance.mask[None], part[None])[0]
        for pair, instances in zip(parts, found, strict=True)
        for part, instance in zip(pair, instances, strict=True)
    ]
    assert len(ious) == 16
    assert np.mean(ious) >= 0.9
    assert all(0 <= instance.confidence <= 1 for pair in found for instance in pair)


def test_instances_when_boxes_come_from_a_function_then_it_sees_each_image():
    labeler, seen = mixing(), []
    latents = labeler.generator.sample(seeds(3))

    def detector(image: Pixels) -> list[Box]:
        seen.append(image)
        return [Box(2, 2, 28, 28)]

    images, found = segment_instances(labeler, latents, detector)
    assert np.array_equal(np.stack(seen), images)
    assert [len(instances) for instances in found] == [1, 1, 1]
    inside = np.zeros((32, 32), dtype=bool)
    inside[2:30, 2:30] = True
    assert not any((one.mask & ~inside).any() for instances in found for one in instances)


def test_instances_when_boxes_do_not_fit_then_they_are_named():
    labeler = mixing()
    latents = labeler.generator.sample(seeds(2))
    with pytest.raises(InputError, match="1 lists of boxes for 2 images"):
        segment_instances(labeler, latents, [[]])
    with pytest.raises(InputError, match=r"x=40.*32 x 32"):
        segment_instances(labeler, latents, [[], [Box(40, 40, 5, 5)]])


def test_read_boxes_when_the_file_is_coco_then_boxes_go_by_image_name(tmp_path: Path):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(COCO))
    assert read_boxes(path) == {
        "a.png": [Box(1, 2, 10, 12, 3), Box(5.5, 2, 4, 4, 1)],
        "b.png": [],
    }


@pytest.mark.parametrize(
    ("annotation", "named"),
    [
        ({"image_id": 8, "bbox": [1, 2, 3, 4]}, "annotation 0: expected image_id"),
        ({"image_id": 7, "bbox": [1, 2, 3]}, "annotation 0: expected image_id"),
        ({"image_id": 7, "bbox": "box"}, "annotation 0: expected image_id"),
        ({"image_id": 7, "bbox": [1, 2, 0, 4]}, "is no box"),
    ],
)
def test_read_boxes_when_an_annotation_is_wrong_then_it_is_named(tmp_path, annotation, named):
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({**COCO, "annotations": [annotation]}))
    with pytest.raises(CorruptFileError, match=named):
        read_boxes(path)


def test_read_boxes_when_it_is_not_coco_then_it_says_so(tmp_path: Path):
    path = tmp_path / "boxes.json"
    path.write_text("[]")
    with pytest.raises(CorruptFileError, match="not a COCO file"):
        read_boxes(path)
    path.write_text('{"images": [{"id": 1}], "annotations": []}')
    with pytest.raises(CorruptFileError, match="without id or file_name"):
        read_boxes(path)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools 2.0.11
def test_to_coco_when_written_and_read_then_masks_and_boxes_are_the_same(tmp_path: Path):
    api = pytest.importorskip("pycocotools.mask")
    labeler = mixing()
    latents = labeler.generator.sample(seeds(3))
    names = ["a.png", "b.png", "c.png"]
    _, found = segment_instances(labeler, latents, [[Box(0, 0, 32, 32)], [], [Box(4, 4, 24, 24)]])
    path = tmp_path / "instances.json"
    write_coco(path, names, found, size=(32, 32), categories={1: "pet"})
    content = read_json(path)
    assert [image["file_name"] for image in content["images"]] == names
    assert content["categories"] == [{"id": 1, "name": "pet"}]
    assert [annotation["image_id"] for annotation in content["annotations"]] == [1, 3]
    for annotation, instance in zip(
        content["annotations"], (found[0][0], found[2][0]), strict=True
    ):
        decoded = api.decode(annotation["segmentation"])
        assert np.array_equal(decoded > 0, instance.mask)
        tight = box_of(instance.mask)
        assert annotation["bbox"] == [tight.x, tight.y, tight.width, tight.height]
        assert annotation["area"] == instance.mask.sum()
    # Its boxes are boxes that can be read again.
    assert [len(boxes) for boxes in read_boxes(path).values()] == [1, 0, 1]
    with pytest.raises(InputError, match="category 1 is unknown"):
        to_coco(names, found, size=(32, 32), categories={2: "pet"})
