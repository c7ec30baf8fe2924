"""Dataset folders: complete and verified, or refused; interrupted work goes on bit-exactly."""

import errno
from pathlib import Path

import numpy as np
import pytest

from latentseg.datasets.real import open_dataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST, read_json, verify_manifest
from latentseg.images import list_images, read_image, read_mask
from latentseg.synthesis import writers
from latentseg.synthesis.stream import Stream
from latentseg.synthesis.writers import synthesize
from tests.synthesis.test_stream import Knowing
from tests.world import World, fitted


def write(out: Path, count: int = 10, **options) -> Path:
    return synthesize(World(), fitted(), count=count, out=out, block=4, quiet=True, **options)


def write_soft(out: Path, count: int = 10, *, soft: bool = True) -> Path:
    labeler = Knowing()
    options = {"count": count, "out": out, "block": 4, "quiet": True, "soft": soft}
    return synthesize(labeler.generator, labeler, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_synthesize_when_read_back_then_images_and_masks_are_those_of_the_stream(tmp_path: Path):
    folder = write(tmp_path)
    blocks = [Stream(World(), fitted(), block=4).block(k) for k in range(3)]
    for field, read in (("images", read_image), ("masks", read_mask)):
        found = np.stack([read(path) for path in list_images(folder / field)])
        expected = np.concatenate([getattr(block, field) for block in blocks])[:10]
        np.testing.assert_array_equal(found, expected)


def test_synthesize_when_finished_then_the_description_says_what_it_is(tmp_path: Path):
    description = read_json(write(tmp_path) / "dataset.json")
    assert description["classes"] == ["foreground"]
    assert description["ignore"] == 255
    assert description["foreground"] is None
    assert description["count"] == 10
    assert description["candidates"] == 10 + sum(description["removed"].values())
    assert description["licence"] == "Apache-2.0"
    assert description["labeler"]["method"] == "directions"
    verify_manifest(tmp_path)


def test_synthesize_when_jpg_then_only_the_masks_are_png(tmp_path: Path):
    folder = write(tmp_path, 3, suffix="jpg")
    assert {path.suffix for path in list_images(folder / "images")} == {".jpg"}
    assert {path.suffix for path in list_images(folder / "masks")} == {".png"}
    assert len(open_dataset(folder)) == 3


def test_synthesize_when_finished_already_then_nothing_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    write(tmp_path)
    monkeypatch.setattr(Stream, "block", None)
    write(tmp_path)


@pytest.mark.parametrize("survivors", [0, 1, 5, 9])
def test_synthesize_when_killed_then_the_same_call_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivors: int
):
    whole = contents(write(tmp_path / "whole"))
    calls = []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) > survivors:
            raise KeyboardInterrupt
        return write_sample(*arguments)

    write_sample = writers._write_sample
    monkeypatch.setattr(writers, "_write_sample", dying)
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed")
    assert not (tmp_path / "killed" / MANIFEST).exists()
    monkeypatch.undo()
    with open(tmp_path / "killed" / "samples.jsonl", "a") as journal:
        journal.write('{"name": "0000')  # a line that the kill cut off
    assert contents(write(tmp_path / "killed")) == whole


def test_synthesize_when_unfinished_files_are_damaged_then_they_are_made_again(tmp_path: Path):
    whole = contents(write(tmp_path / "whole"))
    folder = write(tmp_path / "damaged")
    (folder / MANIFEST).unlink()
    (folder / "images" / "00000006.png").write_bytes(b"")
    (folder / "masks" / "99999999.png").write_bytes(b"left over")
    assert contents(write(folder)) == whole


def test_synthesize_when_the_count_is_raised_then_it_equals_a_larger_dataset(tmp_path: Path):
    write(tmp_path / "grown", 5)
    assert contents(write(tmp_path / "grown", 11)) == contents(write(tmp_path / "whole", 11))


def test_synthesize_when_the_count_is_lowered_then_it_is_refused(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(InputError, match="holds 10 samples already"):
        write(tmp_path, 5)
    verify_manifest(tmp_path)


def test_synthesize_when_the_seed_differs_then_the_field_is_named(tmp_path: Path):
    write(tmp_path)
    with pytest.raises(InputError, match="seed: 0 there, 1 now"):
        write(tmp_path, seed=1)


def test_synthesize_when_a_finished_dataset_changed_then_it_is_refused_by_name(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "masks" / "00000003.png").write_bytes(b"other")
    with pytest.raises(CorruptFileError, match=r"masks/00000003\.png \(changed\)"):
        write(tmp_path, 12)


def test_synthesize_when_the_disk_fills_then_the_message_says_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(writers, "_write_sample", full)
        with pytest.raises(InputError, match=r"disk is full.*same command again"):
            write(tmp_path)
    assert len(open_dataset(write(tmp_path))) == 10


def test_synthesize_when_the_disk_is_too_small_then_it_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(writers, "free_bytes", lambda folder: 1000)
    with pytest.raises(InputError, match="0 MB are free"):
        write(tmp_path)
    assert not (tmp_path / "images").exists()


@pytest.mark.parametrize("options", [{"count": 0}, {"suffix": "gif"}])
def test_synthesize_when_an_option_is_impossible_then_it_is_refused(tmp_path: Path, options: dict):
    with pytest.raises(InputError, match=r"count|suffix"):
        write(tmp_path, **options)


def test_soft_folder_when_read_back_then_levels_are_those_of_the_stream(tmp_path: Path):
    folder = write_soft(tmp_path)
    labeler = Knowing()
    source = Stream(labeler.generator, labeler, block=4, soft=True)
    drawn = [levels for k in range(3) if (levels := source.block(k).soft) is not None]
    expected = np.concatenate(drawn)[:10]
    dataset = open_dataset(folder, soft=True)
    np.testing.assert_array_equal(np.stack([mask for _, _, mask in dataset]), expected)


def test_soft_folder_when_compared_with_a_hard_one_then_images_and_masks_are_the_same(
    tmp_path: Path,
):
    soft, hard = write_soft(tmp_path / "soft"), write_soft(tmp_path / "hard", soft=False)
    for part in ("images", "masks"):
        assert contents(soft / part) == contents(hard / part)
    assert read_json(soft / "dataset.json") == read_json(hard / "dataset.json") | {"soft": True}
    assert open_dataset(hard, soft=True)[0][2].ndim == 2
    assert not (hard / "soft").exists()


@pytest.mark.parametrize("survivors", [0, 5, 9])
def test_soft_folder_when_killed_then_the_same_call_ends_with_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survivors: int
):
    whole = contents(write_soft(tmp_path / "whole"))
    encode, calls = writers.encode, []

    def dying(*arguments):
        calls.append(arguments)
        if len(calls) > 3 * survivors + 2:  # image and mask are encoded, the levels are not
            raise KeyboardInterrupt
        return encode(*arguments)

    monkeypatch.setattr(writers, "encode", dying)
    with pytest.raises(KeyboardInterrupt):
        write_soft(tmp_path / "killed")
    monkeypatch.undo()
    assert contents(write_soft(tmp_path / "killed")) == whole


def test_soft_folder_when_unfinished_files_are_damaged_then_they_are_made_again(tmp_path: Path):
    whole = contents(write_soft(tmp_path / "whole"))
    folder = write_soft(tmp_path / "damaged")
    (folder / MANIFEST).unlink()
    (folder / "soft" / "00000006.png").write_bytes(b"")
    (folder / "soft" / "99999999.png").write_bytes(b"left over")
    assert contents(write_soft(folder)) == whole


def test_soft_folder_when_the_count_is_raised_then_it_equals_a_larger_dataset(tmp_path: Path):
    write_soft(tmp_path / "grown", 5)
    assert contents(write_soft(tmp_path / "grown")) == contents(write_soft(tmp_path / "whole"))


def test_soft_folder_when_changed_then_it_is_refused_by_name(tmp_path: Path):
    (write_soft(tmp_path) / "soft" / "00000003.png").write_bytes(b"other")
    with pytest.raises(CorruptFileError, match=r"soft/00000003\.png \(changed\)"):
        open_dataset(tmp_path)


def test_soft_folder_when_continued_without_probabilities_then_the_field_is_named(tmp_path: Path):
    write_soft(tmp_path)
    with pytest.raises(InputError, match="soft: True there, None now"):
        write_soft(tmp_path, soft=False)
