"""What comes with the package works the minute after installation, and is worth having."""

import json
from pathlib import Path

import pytest

from latentseg.datasets.real import open_dataset
from latentseg.evaluation.baselines import floors
from latentseg.evaluation.measuring import measure
from latentseg.run import PRESETS, run
from latentseg.students.segmenter import ASSETS, Segmenter, list_segmenters

PETS = Path(__file__).parent / "data" / "pets"


def test_bundled_segmenters_are_small_and_say_whose_they_are() -> None:
    assert "pets64" in list_segmenters()
    for name in list_segmenters():
        assert (ASSETS / name / "model.safetensors").stat().st_size <= 8_000_000
        segmenter = Segmenter.from_pretrained(name, device="cpu")
        assert segmenter.card["licence"]
        assert segmenter.card["results"]


def test_bundled_segmenter_sees_the_pet_better_than_any_fixed_ellipse() -> None:
    dataset = open_dataset(PETS).thinned(40)
    segmenter = Segmenter.from_pretrained("pets64", device="cpu")
    measured = measure(segmenter, dataset, quiet=True)
    assert measured.iou > floors(dataset)["ellipse"].iou


@pytest.mark.slow
def test_demo_ends_above_the_best_fixed_ellipse(tmp_path: Path) -> None:
    run("pets64", tmp_path / "demo", config=PRESETS["quick"], eval_data=[PETS], quiet=True)
    (result,) = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert result["iou"] > result["floors"]["ellipse"]["iou"]
