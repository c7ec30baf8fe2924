import re
from pathlib import Path

import pytest

from latentseg.evaluation.baselines import floors
from latentseg.evaluation.measuring import measure
from latentseg.evaluation.real_photos import evaluate
from tests.datasets.fabricate import Bright, blob, make_dataset


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_dataset(tmp_path, [blob(i) for i in range(8)])
    return tmp_path


def test_evaluate_gives_the_numbers_beside_their_floors(folder):
    dataset = make_dataset(folder, [blob(i) for i in range(8)])
    result = evaluate(Bright(), folder, limit=5, quiet=True)
    assert result.per_image == measure(Bright(), dataset, limit=5, quiet=True).per_image
    assert result.floors == floors(dataset, limit=5)
    assert result.to_json()["floors"]["ellipse"]["iou"] == result.floors["ellipse"].iou


def test_evaluate_opens_a_bundled_segmenter_by_name(folder):
    result = evaluate("pets64", folder, limit=2, device="cpu", quiet=True)
    assert result.n_images == 2
    flipped = evaluate("pets64", folder, limit=2, flip=True, device="cpu", quiet=True)
    assert flipped.acc != result.acc


def test_result_prints_as_a_table_and_is_short_in_a_repr(folder):
    result = evaluate(Bright(), folder, quiet=True)
    title, heading, *rows = str(result).splitlines()
    assert title == f"{folder.name}, melas2021, 8 images"
    assert heading.split() == ["acc", "IoU", "pooled", "IoU", "F", "max", "F"]
    names = [re.split(r"\s{2,}", row)[0] for row in rows]
    assert names[0] == "everything is foreground"
    assert names[-1] == "this segmenter"
    assert f"{result.iou:.3f}" in rows[-1]
    assert len({len(line) for line in rows}) == 1
    assert repr(result).startswith(f"Result({folder.name}, melas2021, 8 images: acc ")
    assert len(repr(result)) < 200


def test_result_in_a_notebook_is_a_table_in_which_names_are_harmless(tmp_path):
    evil = "<script>"
    dataset = make_dataset(tmp_path / evil, [blob(i) for i in range(3)])
    page = evaluate(Bright(), dataset, quiet=True)._repr_html_()
    assert page.count("<tr>") == 5
    assert "&lt;script&gt;" in page
    assert "<script" not in page
