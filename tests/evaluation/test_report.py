import re
import shutil

import pytest

from latentseg.errors import InputError
from latentseg.evaluation.report import render_report
from latentseg.files import read_json, write_json
from tests.datasets.fabricate import write_run


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("made") / "run")


@pytest.fixture
def run(finished_run, tmp_path):
    return shutil.copytree(finished_run, tmp_path / "run")


def page_of(run):
    return render_report(run).read_text()


def test_report_has_every_section(run):
    page = page_of(run)
    titles = re.findall(r"<h2><span>(\d)</span>(.*?)</h2>", page)
    assert [title for _, title in titles] == [
        "From a latent to a mask to a photo",
        "The two directions",
        "The student",
        "Rounds with unlabelled photos",
        "Results on real photos",
        "Photo by photo",
        "How it was made, and how to use it",
    ]
    assert [int(number) for number, _ in titles] == list(range(1, 8))
    assert not named_as_missing(page)


def test_report_shows_the_number_beside_floor_and_ceiling(run):
    page = page_of(run)
    entry = read_json(run / "results.json")[0]
    assert f'<div class="big">{entry["iou"]:.2f}</div>' in page
    for number in (entry["iou"], entry["floors"]["ellipse"]["iou"], 0.987):
        assert f'<span class="amount">{number:.3f}</span>' in page
    share = 100 * entry["iou"] / 0.987
    assert f"It reaches {share:.0f} % of what the same student learns" in page
    assert "searched with their true masks" in page
    assert "with photos" in page


def test_report_is_one_file_that_loads_nothing(run):
    page = page_of(run)
    assert len(page) < 5e6
    sources = re.findall(r'(?:src|href|xlink:href)="([^"]*)"', page)
    assert sources
    assert all(source.startswith(("data:image/", "#")) for source in sources)
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", page))
    assert "<script" not in page
    assert "@import" not in page
    assert "<link" not in page
    assert "default-src 'none'" in page


def test_report_has_light_and_dark_colours_and_none_fixed_in_its_plots(run):
    page = page_of(run)
    assert "prefers-color-scheme: dark" in page
    plots = re.findall(r'<figure class="chart"><svg.*?</svg>', page, flags=re.DOTALL)
    assert len(plots) == 5
    for plot in plots:
        assert not re.search(r"#[0-9a-f]{6}\b(?![^<]*\)\")", re.sub(r'"#\w+"', "", plot))
        assert "var(--series-1)" in plot


def test_report_is_the_same_text_each_time(run):
    assert page_of(run) == page_of(run)


def test_report_of_hostile_names_is_harmless(run):
    evil = "<script>alert(1)</script>\"'&"
    config = {"command": evil, "generator": {"name": evil}, evil: [evil, {evil: evil}]}
    write_json(run / "config.json", config)
    entries = read_json(run / "results.json")
    write_json(run / "results.json", [{**entries[0], "setting": evil, "dataset": evil}])
    examples = read_json(run / "examples" / "examples.json")
    examples["groups"]["best"][0]["name"] = evil
    write_json(run / "examples" / "examples.json", {**examples, "dataset": evil})
    metrics = run / evil.replace("/", "") / "metrics.jsonl"
    metrics.parent.mkdir()
    metrics.write_text('{"step": 1, "loss": 1.0}\n{"step": 2, "loss": 0.5}\n')
    page = page_of(run)
    assert "<script" not in page
    assert "alert(1)" in page


NUMBERS = {
    "results.json": "Results on real photos",
    "examples/examples.json": "Photo by photo",
    "labeler/quality.json": "The two directions",
    "photos/rounds.json": "Rounds with unlabelled photos",
}
PICTURES = {
    "labeler/contact_sheet.png": "",
    "samples/mask.png": "",
    "samples/pairs.png": "",
    "examples/worst-00.jpg": "",
}


def named_as_missing(page):
    listed = re.search(r"so not on this page: (.*?)\.</p>", page)
    return set(listed[1].split(", ")) if listed else set()


@pytest.mark.parametrize("parts", [NUMBERS, PICTURES], ids=["numbers", "pictures"])
@pytest.mark.parametrize("damage", ["missing", "damaged"])
def test_report_without_some_parts_names_them(parts, damage, run):
    for name in parts:
        if damage == "missing":
            (run / name).unlink()
        else:
            (run / name).write_bytes(b"\x00")
    page = page_of(run)
    assert named_as_missing(page) == set(parts)
    for title in filter(None, parts.values()):
        assert f"</span>{title}</h2>" not in page


def test_report_of_a_run_without_photos_does_not_miss_rounds(run):
    shutil.rmtree(run / "photos")
    page = page_of(run)
    assert "Rounds with unlabelled photos" not in page
    assert not named_as_missing(page)


def test_report_of_an_empty_folder_is_a_page(tmp_path):
    page = page_of(tmp_path)
    assert "A segmenter made from a generator" in page
    assert {"config.json", "metrics.jsonl", "results.json"} <= named_as_missing(page)


def test_report_of_a_labeler_of_another_kind_leaves_directions_out(run):
    write_json(run / "labeler" / "quality.json", {"samples": 10, "kept": 9, "removed": {"area": 1}})
    page = page_of(run)
    assert "</span>The labeler</h2>" in page
    assert "No mask was painted for it." in page
    config = read_json(run / "config.json")
    write_json(run / "config.json", {**config, "method": "few-shot"})
    assert "No mask was painted" not in page_of(run)


def test_report_beside_the_papers_when_the_data_set_is_theirs(run):
    entries = read_json(run / "results.json")
    write_json(run / "results.json", [{**entries[0], "dataset": "CUB (train_val_test_split)"}])
    page = page_of(run)
    assert "Compare within a column only" in page
    assert f"<td>this segmenter</td><td>{entries[0]['iou']:.3f}</td>" in page


def test_report_when_the_segmenter_is_below_the_ellipse_says_so(run):
    entries = read_json(run / "results.json")
    worse = entries[0]["floors"]["ellipse"]["iou"] - 0.1
    write_json(run / "results.json", [{**entries[0], "iou": worse}])
    assert "the segmenter is 0.100 below it" in page_of(run)


def test_report_without_a_folder_is_refused(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        render_report(tmp_path / "nowhere")
