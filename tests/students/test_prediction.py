"""Many photos: as one by one, in little memory, whatever is among them, whoever stops it."""

import gc
import io
import json
import os
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from latentseg import images
from latentseg.errors import InputError
from latentseg.images import read_mask, write_image
from latentseg.students import prediction as module
from latentseg.students.prediction import OUTPUTS, RECORDS, SUFFIXES, predict_files
from tests.closeness import assert_same_masks
from tests.students.test_segmenter import make_image, make_segmenter


def make_photos(folder: Path, n: int, *, height: int = 20, width: int = 30) -> list[Path]:
    paths = [folder / f"{i:03d}.png" for i in range(n)]
    for i, path in enumerate(paths):
        write_image(path, make_image(height, width + i % 3, seed=i))
    return paths


def results(out: Path) -> dict[str, bytes]:
    """Everything that a user sees, without the journal, whose order may differ."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.name != RECORDS
    }


@pytest.mark.parametrize("options", [{}, {"flip": True}, {"tile": 17, "tile_overlap": 0.25}])
def test_many_photos_give_what_each_gives_alone(tmp_path: Path, options: dict) -> None:
    segmenter = make_segmenter(classes=("a", "b"), logits_up_to=8)
    paths = make_photos(tmp_path / "photos", 19)
    found, problems = predict_files(
        segmenter, [tmp_path / "photos"], tmp_path / "out", outputs=OUTPUTS, quiet=True, **options
    )
    assert found == paths
    assert problems == []
    for path in paths:
        alone = segmenter.predict(path, **options)
        read = {name: tmp_path / "out" / f"{path.stem}{end}" for name, end in SUFFIXES.items()}
        np.testing.assert_allclose(np.load(read["scores"]), alone.scores, atol=1e-5)
        mask = read_mask(read["masks"])
        assert_same_masks(mask, alone.mask)
        assert np.array_equal(np.array(Image.open(read["cutouts"]))[..., 3] > 0, mask > 0)
        expected = images.encode(images.overlay(images.read_image(path), mask), ".jpg")
        assert read["overlays"].read_bytes() == expected


def hostile_photos(folder: Path) -> tuple[list[str], list[str]]:
    """Names of good and of bad photos, written into `folder`."""
    folder.mkdir()
    image = make_image(40, 60)
    good = {
        "one_pixel.png": Image.fromarray(image[:1, :1]),
        "strip.png": Image.fromarray(make_image(1, 5000)),
        "grey16.png": Image.fromarray(image[..., 0].astype(np.uint16) * 257),
        "cmyk.jpg": Image.fromarray(image).convert("CMYK"),
        "palette.png": Image.fromarray(image).quantize(16),
        "transparent.png": Image.fromarray(image).convert("RGBA"),
    }
    for name, picture in good.items():
        picture.save(folder / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(image).save(folder / "turned.jpg", exif=exif)
    whole = io.BytesIO()
    Image.fromarray(image).save(whole, "JPEG")
    (folder / "truncated.jpg").write_bytes(whole.getvalue()[: len(whole.getvalue()) // 2])
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.png").write_bytes(b"")
    return [*good, "turned.jpg"], ["truncated.jpg", "text.jpg", "empty.png"]


def test_hostile_photos_are_segmented_or_named_and_stop_no_other(tmp_path: Path) -> None:
    segmenter = make_segmenter(logits_up_to=8)
    good, bad = hostile_photos(tmp_path / "photos")
    sources = [tmp_path / "photos", tmp_path / "missing.jpg"]
    found, problems = predict_files(segmenter, sources, tmp_path / "out", quiet=True)
    assert sorted(path.name for path in found) == sorted(good)
    assert len(problems) == 4
    for name in [*bad, "missing.jpg"]:
        assert sum(name in problem for problem in problems) == 1
        assert not (tmp_path / "out" / f"{Path(name).stem}_mask.png").exists()
    for path in found:
        mask = read_mask(tmp_path / "out" / f"{path.stem}_mask.png")
        assert_same_masks(mask, segmenter.predict(path).mask)
    assert read_mask(tmp_path / "out" / "turned_mask.png").shape == (60, 40)
    assert read_mask(tmp_path / "out" / "strip_mask.png").shape == (1, 5000)
    (tmp_path / "photos" / "text.jpg").write_bytes((tmp_path / "photos/cmyk.jpg").read_bytes())
    found, problems = predict_files(segmenter, sources, tmp_path / "out", quiet=True)
    assert len(problems) == 3
    assert tmp_path / "photos" / "text.jpg" in found


def test_results_keep_the_folders_of_their_photos(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for name in ("cat.jpg", "summer/cat.jpg", "summer/sea/cat.v2.png", ".hidden/cat.png"):
        write_image(photos / name, make_image())
    (photos / "summer" / "notes.md").write_text("not a photo, and not meant as one")
    out = photos / "out"
    for _ in range(2):  # the results of the first time are not photos
        found, _ = predict_files(make_segmenter(), [photos], out, outputs=["overlays"], quiet=True)
        names = [path.relative_to(photos).as_posix() for path in found]
        assert names == ["cat.jpg", "summer/cat.jpg", "summer/sea/cat.v2.png"]
    assert sorted(results(out)) == [
        "cat_overlay.jpg",
        "summer/cat_overlay.jpg",
        "summer/sea/cat.v2_overlay.jpg",
    ]


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
@pytest.mark.parametrize("is_piped", [False, True])
def test_lists_of_photos_come_from_a_file_or_a_pipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, is_piped: bool
) -> None:
    for name in ("a/1.png", "b/1.png", "b/2 ü.png"):
        write_image(tmp_path / "photos" / name, make_image())
    monkeypatch.chdir(tmp_path)
    lines = ["photos/a/1.png", str(tmp_path / "photos/b/1.png"), "photos/b/2 ü.png", "photos/3.png"]
    content = separator.join([*lines, ""]).encode()
    Path("list.txt").write_bytes(content)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
    found, problems = predict_files(
        make_segmenter(), ["-" if is_piped else "list.txt"], "out", outputs=["masks"], quiet=True
    )
    assert [str(path) for path in found] == lines[:3]
    assert len(problems) == 1
    assert "photos/3.png" in problems[0]
    assert sorted(results(Path("out"))) == ["a/1_mask.png", "b/1_mask.png", "b/2 ü_mask.png"]


def test_sources_that_cannot_be_meant_are_refused_before_any_work(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png", make_image())
    write_image(tmp_path / "photos" / "a_mask.png", make_image())
    write_image(tmp_path / "more" / "a.png", make_image())
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("\n \n")
    photos, out = tmp_path / "photos", tmp_path / "out"
    for sources, target, said in [
        ([photos], photos, "holds the photos"),
        ([photos / "a.png", photos / "a_mask.png"], photos, "replace the photo"),
        ([photos, tmp_path / "more"], out, "one name"),
        ([tmp_path / "empty"], out, "no images"),
        ([tmp_path / "empty.txt"], out, "empty list"),
        ([tmp_path / "none.txt"], out, "no such file"),
    ]:
        with pytest.raises(InputError, match=said):
            predict_files(make_segmenter(), sources, target, quiet=True)
    for options, said in [
        ({"outputs": ["mask"]}, "Perhaps masks"),
        ({"outputs": []}, "`outputs`: expected some of"),
        ({"tile": 8}, "at least 16"),
    ]:
        with pytest.raises(InputError, match=said):
            predict_files(make_segmenter(), [photos], out, quiet=True, **options)
    assert not out.exists()


def test_photos_of_one_name_and_two_suffixes_keep_both_results(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.jpg"):
        write_image(tmp_path / "photos" / name, make_image())
    found, problems = predict_files(
        make_segmenter(), [tmp_path / "photos"], tmp_path / "out", outputs=["masks"], quiet=True
    )
    assert (len(found), problems) == (3, [])
    assert sorted(results(tmp_path / "out")) == ["a.jpg_mask.png", "a.png_mask.png", "b_mask.png"]


def test_pages_of_a_stack_are_photos_of_their_own_unless_one_is_named(tmp_path: Path) -> None:
    pages = [Image.fromarray(np.full((16, 16, 3), 40 * k, np.uint8)) for k in range(3)]
    (tmp_path / "photos").mkdir()
    pages[0].save(tmp_path / "photos" / "s.tif", save_all=True, append_images=pages[1:])
    sources, options = [tmp_path / "photos"], {"outputs": ["masks"], "quiet": True}
    predict_files(make_segmenter(), sources, tmp_path / "all", **options)
    expected = ["s_0001_mask.png", "s_0002_mask.png", "s_0003_mask.png"]
    assert sorted(results(tmp_path / "all")) == expected
    second = images.Reading(page=2)
    predict_files(make_segmenter(), sources, tmp_path / "one", reading=second, **options)
    assert sorted(results(tmp_path / "one")) == ["s_0002_mask.png"]
    same = [(tmp_path / each / "s_0002_mask.png").read_bytes() for each in ("all", "one")]
    assert same[0] == same[1]
    tenth = images.Reading(page=10)
    _, problems = predict_files(
        make_segmenter(), sources, tmp_path / "none", reading=tenth, **options
    )
    assert len(problems) == 1
    assert "`page`: expected 1 to 3, found 10" in problems[0]


def test_pictures_that_are_not_read_are_named_at_the_end(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png", make_image())
    (tmp_path / "photos" / "b.cr2").write_bytes(b"raw")
    found, problems = predict_files(
        make_segmenter(), [tmp_path / "photos"], tmp_path / "out", quiet=True
    )
    assert len(found) == 1
    assert len(problems) == 1
    assert "b.cr2: .cr2 files are not read" in problems[0]


def test_a_photo_given_twice_is_segmented_once(tmp_path: Path) -> None:
    (photo,) = make_photos(tmp_path / "photos", 1)
    sources = [tmp_path / "photos", photo, photo]
    assert predict_files(make_segmenter(), sources, tmp_path / "out", quiet=True)[0] == [photo]


class Reading:
    """Counts photos that are read, and those in memory at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paths: list[Path] = []
        self.alive = self.most = 0
        self.read = images.read_image
        monkeypatch.setattr(module, "read_image", self)

    def __call__(self, path: Path, *options: Any) -> images.Pixels:
        image = self.read(path, *options)
        self.paths.append(path)
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._forget)
        return image

    def _forget(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize(
    ("chunk", "pixels", "most"), [(4, 10**9, 12), (16, 2 * 640, 6), (16, 1, 3)]
)
def test_never_more_than_three_chunks_of_photos_are_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int, pixels: int, most: int
) -> None:
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "CHUNK_PIXELS", pixels)
    make_photos(tmp_path / "photos", 40)
    gc.collect()
    reading = Reading(monkeypatch)
    found, _ = predict_files(
        make_segmenter(), [tmp_path / "photos"], tmp_path / "out", outputs=["overlays"], quiet=True
    )
    assert len(found) == len(reading.paths) == 40
    # A thread lets go of a photo a moment after it has said that it is done.
    assert 1 <= reading.most <= most + module.THREADS


def test_photos_are_not_kept_for_results_that_do_not_show_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_photos(tmp_path / "photos", 40)
    reading = Reading(monkeypatch)
    predict_files(
        make_segmenter(), [tmp_path / "photos"], tmp_path / "out", outputs=["masks"], quiet=True
    )
    assert reading.most <= module.THREADS


def test_finished_photos_are_skipped_until_photo_results_or_options_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    paths = make_photos(tmp_path / "photos", 5)
    out, reading = tmp_path / "out", Reading(monkeypatch)

    def segmented_again(segmenter=None, **options) -> list[Path]:
        reading.paths.clear()
        found, _ = predict_files(
            segmenter or make_segmenter(), [tmp_path / "photos"], out, quiet=True, **options
        )
        assert found == paths
        return sorted(reading.paths)

    assert segmented_again() == paths
    assert segmented_again() == []
    (out / "002_overlay.jpg").unlink()
    assert segmented_again() == [paths[2]]
    write_image(paths[3], make_image(25, 25))
    assert segmented_again() == [paths[3]]
    assert segmented_again(outputs=["masks"]) == []
    assert segmented_again(outputs=["masks", "scores"]) == paths
    assert segmented_again(outputs=["coco"]) == paths
    assert segmented_again(outputs=["coco"]) == []
    assert segmented_again(flip=True) == paths
    assert segmented_again(flip=True, tile=18) == paths
    assert segmented_again(flip=True, tile=18) == []
    assert segmented_again(make_segmenter(1)) == paths
    assert segmented_again(make_segmenter(1, threshold=0.4)) == paths


def test_interrupted_work_goes_on_and_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK", 4)
    make_photos(tmp_path / "photos", 14)
    asked = {"outputs": OUTPUTS, "quiet": True}
    predict_files(make_segmenter(), [tmp_path / "photos"], tmp_path / "whole", **asked)
    out, reading = tmp_path / "out", Reading(monkeypatch)
    write_mask, written = images.write_mask, []

    def interrupt(path: Path, mask: images.Pixels) -> None:
        written.append(path)
        if len(written) == 2 * 4 + 1:
            raise KeyboardInterrupt
        write_mask(path, mask)

    monkeypatch.setattr(module, "write_mask", interrupt)
    with pytest.raises(KeyboardInterrupt):
        predict_files(make_segmenter(), [tmp_path / "photos"], out, **asked)
    with open(out / RECORDS, "ab") as journal:
        journal.write(b'{"name": "cut o')
    reading.paths.clear()
    predict_files(make_segmenter(), [tmp_path / "photos"], out, **asked)
    assert len(reading.paths) == 4 + 2
    assert results(out) == results(tmp_path / "whole")


# Kills a job at random times, as often as said, lets it finish, and does another without a kill.
KILL = """
import os, pathlib, random, signal, sys, time
import torch
from latentseg.students.prediction import OUTPUTS, predict_files
from tests.students.test_segmenter import make_segmenter

photos, out, whole, kills = *sys.argv[1:4], int(sys.argv[4])
torch.set_num_threads(1)
segmenter, chance = make_segmenter(), random.Random(0)

def start(folder):
    child = os.fork()
    if child == 0:
        predict_files(segmenter, [photos], folder, outputs=OUTPUTS, quiet=True)
        os._exit(0)
    return child

def written():
    return sum(path.is_file() for path in pathlib.Path(out).rglob("*"))

for kill in range(kills):
    enough = written() + chance.randint(1, 25)
    child = start(out)
    while written() < enough:
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for folder in (out, whole):
    print(os.waitstatus_to_exitcode(os.waitpid(start(folder), 0)[1]))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kills_at_random_times_change_no_byte_in_the_end(tmp_path: Path) -> None:
    make_photos(tmp_path / "photos", 40)
    out, whole = tmp_path / "out", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", KILL, str(tmp_path / "photos"), str(out), str(whole), "5"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
    )
    codes = [int(code) for code in done.stdout.split()]
    assert codes[-2:] == [0, 0]
    assert codes[:-2].count(-signal.SIGKILL) >= 3  # written as fast as it is counted: may finish
    assert results(out) == results(whole)
    assert len(results(out)) == 4 * 40 + 1
    assert not list(out.rglob("*.tmp"))


def test_a_full_disk_stops_the_work_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = make_photos(tmp_path / "photos", 4)

    def full(path: Path, image: images.Pixels) -> None:
        raise InputError(f"{path}: cannot be written (No space left on device).")

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_image", full)
        with pytest.raises(InputError, match="No space"):
            predict_files(make_segmenter(), [tmp_path / "photos"], tmp_path / "out", quiet=True)
    found, problems = predict_files(
        make_segmenter(), [tmp_path / "photos"], tmp_path / "out", quiet=True
    )
    assert (found, problems) == (paths, [])


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # of pycocotools, decoding
def test_annotations_are_cocos(tmp_path: Path) -> None:
    segmenter = make_segmenter(classes=("cat", "dog"))
    make_photos(tmp_path / "photos" / "pets", 5)
    (tmp_path / "photos" / "bad.jpg").write_text("not a picture")
    out = tmp_path / "out"
    predict_files(
        segmenter, [tmp_path / "photos"], out, outputs=["coco", "masks", "scores"], quiet=True
    )
    coco = COCO(out / module.COCO)
    assert {cat["id"]: cat["name"] for cat in coco.loadCats(coco.getCatIds())} == {
        1: "cat",
        2: "dog",
    }
    assert len(coco.getImgIds()) == 5
    for image in coco.loadImgs(coco.getImgIds()):
        path = tmp_path / "photos" / image["file_name"]
        mask = read_mask(out / "pets" / f"{path.stem}_mask.png")
        scores = np.load(out / "pets" / f"{path.stem}_scores.npy")
        assert (image["height"], image["width"]) == mask.shape
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=[image["id"]]))
        assert {each["category_id"] for each in annotations} == set(np.unique(mask)) - {0}
        for each in annotations:
            region = mask == each["category_id"]
            assert np.array_equal(coco.annToMask(each).astype(bool), region)
            assert each["area"] == region.sum()
            rows, columns = np.nonzero(region)
            left, top, width, height = each["bbox"]
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width, top + height) == (columns.max() + 1, rows.max() + 1)
            mean = scores[each["category_id"]][region].mean()
            assert dict(each)["score"] == pytest.approx(mean, abs=1e-5)
    reread = coco.loadRes(json.loads((out / module.COCO).read_text())["annotations"])
    assert len(reread.getAnnIds()) == len(coco.getAnnIds())


def test_progress_counts_photos_whose_results_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_photos(tmp_path / "photos", 3)
    (tmp_path / "photos" / "bad.jpg").write_text("not a picture")
    predict_files(make_segmenter(), [tmp_path / "photos"], tmp_path / "out")
    said = capsys.readouterr().err
    assert "4 photos; masks, overlays, cutouts" in said
    assert "predict 4/4 · failed 1" in said
