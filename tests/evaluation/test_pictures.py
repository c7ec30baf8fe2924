import numpy as np
import pytest

from latentseg.evaluation.measuring import measure
from latentseg.evaluation.pictures import write_examples, write_pairs, write_story
from latentseg.files import read_json
from latentseg.images import IGNORE, read_image
from tests.datasets.fabricate import Bright, ToyLabeler, blob, make_dataset, photo


def test_examples_are_the_worst_the_best_and_some_between(tmp_path):
    masks = [blob(i) for i in range(9)]
    for i, mask in enumerate(masks):
        mask[:i] = 0  # the fewer true pixels are called so, the worse
    dataset = make_dataset(tmp_path / "data", masks)
    result = measure(Bright(), dataset, quiet=True)
    write_examples(Bright(), dataset, result, tmp_path / "out", n=3)
    written = read_json(tmp_path / "out" / "examples.json")
    ious = sorted(score.iou for score in result.per_image)
    assert [one["iou"] for one in written["groups"]["worst"]] == ious[:3]
    assert [one["iou"] for one in written["groups"]["best"]] == ious[::-1][:3]
    assert [one["iou"] for one in written["groups"]["typical"]] == [ious[i] for i in (1, 4, 7)]
    assert written["ious"] == [score.iou for score in result.per_image]
    for group in written["groups"].values():
        for one in group:
            assert read_image(tmp_path / "out" / one["file"]).shape == (16, 3 * 16, 3)


def test_examples_of_large_photos_are_reduced_and_show_ignored_pixels_grey(tmp_path):
    mask = blob(0, height=300, width=600)
    mask[:40] = IGNORE
    dataset = make_dataset(tmp_path / "data", [mask])
    result = measure(Bright(), dataset, quiet=True)
    write_examples(Bright(), dataset, result, tmp_path / "out", n=1)
    strip = read_image(tmp_path / "out" / "worst-00.jpg")
    assert strip.shape == (128, 3 * 256, 3)
    image, truth = strip[:10, :256].astype(int), strip[:10, 256:512].astype(int)
    assert np.abs(truth - (image // 2 + 64)).mean() < 12  # but for JPEG


def test_story_names_its_pictures(tmp_path):
    dataset = make_dataset(tmp_path / "data", [blob(i) for i in range(5)])
    result = measure(Bright(), dataset, quiet=True)
    write_story(ToyLabeler(), Bright(), dataset, result, tmp_path / "out")
    story = read_json(tmp_path / "out" / "story.json")
    expected = ["image", "light", "dark", "mask", "pair", "photo", "prediction"]
    assert story["pictures"] == expected
    written = {path.stem for path in (tmp_path / "out").glob("*.png")}
    assert written == {*expected, "story"}
    assert story["iou"] == sorted(score.iou for score in result.per_image)[2]
    assert len(story["latent"]) == 12
    assert set(np.unique(read_image(tmp_path / "out" / "mask.png"))) <= {0, 255}


def test_story_without_photos_ends_with_the_pair(tmp_path):
    write_story(ToyLabeler(), Bright(), None, None, tmp_path)
    story = read_json(tmp_path / "story.json")
    assert story["pictures"] == ["image", "light", "dark", "mask", "pair"]
    assert "photo" not in story


@pytest.mark.parametrize(
    ("n", "rows", "columns"), [(3, 1, 3), (10, 1, 10), (15, 2, 10), (40, 2, 10)]
)
def test_pairs_fill_at_most_two_rows(n, rows, columns, tmp_path):
    masks = np.stack([blob(i) for i in range(n)])
    images = np.stack([photo(i, mask) for i, mask in enumerate(masks)])
    write_pairs(images, masks, tmp_path / "pairs.png")
    sheet = read_image(tmp_path / "pairs.png")
    assert sheet.shape == (rows * 2 * 16, columns * 16, 3)
    assert sheet[:16, :16].tolist() == images[0].tolist()
