import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.app import painting as painting_module
from latentseg.app import strokes
from latentseg.app.painting import ClassChange, Painting, PartClass, start_painting
from latentseg.app.strokes import PaintedMask, edit_between
from latentseg.datasets.real import check_dataset, open_dataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.images import read_image, read_mask, to_pixels, write_mask
from tests.app.painted import PARTS, SIZE, begin, noise
from tests.world import World


def mask_of(painting: Painting, index: int = 0) -> tuple[str, PaintedMask]:
    name = list(painting.images)[index]
    return name, painting.masks[name]


def test_painting_when_strokes_are_made_then_it_is_a_dataset_with_the_latents_of_its_images(
    tmp_path: Path,
) -> None:
    painting = begin(tmp_path / "p")
    for index in range(2):
        mask_of(painting, index)[1].paint(noise(index), "brush")
    assert check_dataset(tmp_path / "p") == []
    dataset = open_dataset(tmp_path / "p")
    assert dataset.classes == PARTS
    assert sorted(np.unique(dataset[0][2])) == [0, 1, 2, 3, 255]
    card = json.loads((tmp_path / "p/painting.json").read_text())
    assert set(card) == {"format", "generator", "seed", "classes", "images"}
    world = World(SIZE)
    assert card["generator"] == json.loads(json.dumps(world.info.to_json()))
    for entry in card["images"]:
        assert set(entry) == {"name", "seed", "label", "is_done"}
        drawn = to_pixels(world(world.sample(torch.tensor([entry["seed"]]))))[0]
        stored = read_image(tmp_path / f"p/images/{entry['name']}.png")
        np.testing.assert_array_equal(stored, drawn)


def test_strokes_when_undone_and_redone_across_reopening_then_every_mask_returns(
    tmp_path: Path,
) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    states = [mask.pixels]
    for key in range(120):
        mask.paint(noise(key), "brush")
        states.append(mask.pixels)
    for expected in states[-2:60:-1]:
        assert mask.undo()
        np.testing.assert_array_equal(mask.pixels, expected)
    again = Painting(tmp_path / "p").masks[name]
    assert (again.undo_steps, again.redo_steps) == (61, 59)
    for expected in states[60::-1]:
        assert again.undo()
        np.testing.assert_array_equal(again.pixels, expected)
    assert not again.undo()
    again = Painting(tmp_path / "p").masks[name]
    for expected in states[1:]:
        assert again.redo()
        np.testing.assert_array_equal(read_mask(again.mask_path), expected)
    assert not again.redo()


def test_stroke_when_saved_in_pieces_then_it_is_undone_as_one(tmp_path: Path) -> None:
    _, mask = mask_of(begin(tmp_path / "p", n=1))
    first, whole = noise(1), noise(2)
    mask.paint(first, "brush")
    mask.paint(noise(3), "brush")
    mask.paint(whole, "brush", joins=True)
    assert mask.undo_steps == 2
    mask.undo()
    np.testing.assert_array_equal(mask.pixels, first)
    mask.redo()
    np.testing.assert_array_equal(mask.pixels, whole)
    mask.undo()
    mask.paint(noise(4), "brush")
    assert mask.redo_steps == 0


def test_stroke_when_it_changes_nothing_then_nothing_is_recorded(tmp_path: Path) -> None:
    _, mask = mask_of(begin(tmp_path / "p", n=1))
    mask.paint(mask.pixels.copy(), "brush")
    assert (mask.undo_steps, mask.revision) == (0, 0)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_edit_when_applied_then_it_gives_the_other_mask_and_back(one: int, other: int) -> None:
    before, after = noise(one), noise(other)
    edit = edit_between(before, after, "brush")
    np.testing.assert_array_equal(edit.applied(before), after)
    np.testing.assert_array_equal(edit.reversed().applied(after), before)


@pytest.mark.parametrize("step", ["paint", "undo", "redo"])
def test_step_when_killed_between_journal_and_mask_then_reopening_completes_it(
    tmp_path: Path, step: str
) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    for key in range(3):
        mask.paint(noise(key), "brush")
    mask.paint(noise(3), "brush", joins=True)
    if step == "redo":
        mask.undo()
    stale = mask.mask_path.read_bytes()
    mask.paint(noise(4), "brush") if step == "paint" else getattr(mask, step)()
    expected = mask.pixels
    mask.mask_path.write_bytes(stale)
    again = Painting(tmp_path / "p").masks[name]
    np.testing.assert_array_equal(again.pixels, expected)
    np.testing.assert_array_equal(read_mask(again.mask_path), expected)
    assert (again.undo_steps, again.redo_steps) == (mask.undo_steps, mask.redo_steps)


def test_journal_when_torn_anywhere_then_the_mask_stays_and_painting_goes_on(
    tmp_path: Path,
) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    for key in range(3):
        mask.paint(noise(key), "brush")
    journal = mask.journal_path.read_bytes()
    for cut in [*range(1, len(journal), 997), len(journal) - 1]:
        mask.journal_path.write_bytes(journal[:cut])
        write_mask(mask.mask_path, noise(2))
        again = Painting(tmp_path / "p").masks[name]
        np.testing.assert_array_equal(again.pixels, noise(2))
        again.paint(noise(9), "brush")
        again.undo()
        np.testing.assert_array_equal(Painting(tmp_path / "p").masks[name].pixels, noise(2))


def test_journal_when_damaged_then_it_never_stops_the_painting(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    mask.paint(noise(1), "brush")
    line = mask.journal_path.read_bytes()
    hostile = [b"\x00\xff\n", b"[]\n", b"7\n", b'{"runs": [[0, 99999, 0, 1]]}\n', b"[" * 9999]
    hostile += [b'{"tool": "", "runs": [[%d, 1, 0, 1]], "mask": ""}\n' % 10**30, b'{"undo": 3}\n']
    for junk in hostile:
        mask.journal_path.write_bytes(junk + b"\n" + line)
        write_mask(mask.mask_path, noise(1))
        again = Painting(tmp_path / "p").masks[name]
        np.testing.assert_array_equal(again.pixels, noise(1))
        while again.undo():
            pass


def test_mask_when_changed_by_another_program_then_it_is_the_truth(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    mask.paint(noise(1), "brush")
    write_mask(mask.mask_path, noise(7))
    again = Painting(tmp_path / "p").masks[name]
    np.testing.assert_array_equal(again.pixels, noise(7))
    assert again.undo_steps == 0


def test_strokes_when_there_are_very_many_then_the_last_ones_can_be_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(strokes, "LIMIT", 20)
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    for key in range(41):
        mask.paint(noise(key), "brush")
    assert mask.undo_steps == 20
    again = Painting(tmp_path / "p").masks[name]
    for key in range(39, 20, -1):
        again.undo()
        np.testing.assert_array_equal(again.pixels, noise(key))


def test_disk_when_full_then_the_mask_is_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    mask.paint(noise(1), "brush")

    def full(path: Path, pixels: object) -> None:
        raise InputError(f"{path}: no space")

    with monkeypatch.context() as patch:
        patch.setattr(strokes, "write_mask", full)
        with pytest.raises(InputError, match="no space"):
            mask.paint(noise(2), "brush")
    np.testing.assert_array_equal(mask.pixels, noise(1))
    mask.paint(noise(3), "brush")
    again = Painting(tmp_path / "p").masks[name]
    np.testing.assert_array_equal(again.pixels, noise(3))
    assert again.undo_steps == 2


def changes(painting: Painting, *order: int | str) -> list[ClassChange]:
    """Old ids in a new order; a name is a new class."""
    return [
        ClassChange(painting.classes[each - 1], each)
        if isinstance(each, int)
        else ClassChange(PartClass(each, "#123456"), None)
        for each in order
    ]


def test_classes_when_reordered_and_removed_then_masks_and_journals_follow(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p")
    name, mask = mask_of(painting)
    mask.paint(noise(1), "brush")
    mask.paint(noise(2), "brush")
    mask.undo()
    wish = changes(painting, 3, "bag", 1)
    lost = int((noise(1) == 2).sum())
    assert painting.loss(wish) == [("skin", lost, 1)]
    assert painting.change_classes(wish)
    ids = np.full(256, 255, np.uint8)
    ids[[0, 1, 3]] = 0, 3, 1
    for opened in (painting, Painting(tmp_path / "p")):
        assert [part.name for part in opened.classes] == ["shoes", "bag", "hair"]
        again = opened.masks[name]
        np.testing.assert_array_equal(again.pixels, ids[noise(1)])
    again.redo()
    np.testing.assert_array_equal(again.pixels, ids[noise(2)])
    again.undo()
    again.undo()
    assert (again.pixels == 255).all()
    description = json.loads((tmp_path / "p/dataset.json").read_text())
    assert description["classes"] == ["shoes", "bag", "hair"]


def test_classes_when_renamed_then_no_mask_is_touched(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p")
    _, mask = mask_of(painting)
    mask.paint(noise(1), "brush")
    before = mask.mask_path.stat().st_mtime_ns
    wish = changes(painting, 1, 2, 3)
    wish[0] = ClassChange(PartClass("fur", "#00ff00"), 1)
    assert not painting.change_classes(wish)
    assert mask.mask_path.stat().st_mtime_ns == before
    assert Painting(tmp_path / "p").classes[0] == PartClass("fur", "#00ff00")


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "expected 1 to 254"),
        ([("", "#111111")], "1 to 40 characters"),
        ([("a\x00b", "#111111")], "1 to 40 characters"),
        ([("hair", "red")], "#rrggbb"),
        ([("hair", "#000000")], "of background"),
        ([("hair", "#111111"), ("Hair", "#222222")], "taken by"),
        ([("hair", "#111111"), ("skin", "#111111")], "colours must differ"),
        ([("Background", "#111111")], "taken by"),
    ],
)
def test_classes_when_wrong_then_refused(
    tmp_path: Path, parts: list[tuple[str, str]], message: str
) -> None:
    painting = begin(tmp_path / "p", n=0)
    with pytest.raises(InputError, match=message):
        painting.change_classes([ClassChange(PartClass(*part), None) for part in parts])
    assert [part.name for part in Painting(tmp_path / "p").classes] == list(PARTS)


class Killed(BaseException):
    pass


def test_change_of_several_files_when_killed_anywhere_then_old_or_new_and_never_between(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = tmp_path / "origin"
    painting = begin(origin)
    for index in range(2):
        mask_of(painting, index)[1].paint(noise(index), "brush")
    seen = set()
    is_finished = False
    for kill_at in range(40):
        shutil.rmtree(tmp_path / "p", ignore_errors=True)
        shutil.copytree(origin, tmp_path / "p")
        painting = Painting(tmp_path / "p")
        count = 0
        real = os.replace

        def replace(source: Path, target: Path, real=real, kill_at=kill_at) -> None:
            nonlocal count
            count += 1
            if count > kill_at:
                raise Killed
            real(source, target)

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", replace)
            try:
                painting.change_classes(changes(painting, 2, 1))
                is_finished = True
            except Killed:
                is_finished = False
        again = Painting(tmp_path / "p")
        names = tuple(part.name for part in again.classes)
        seen.add(names)
        assert names in {PARTS, ("skin", "hair")}
        assert open_dataset(tmp_path / "p").classes == names
        ids = np.full(256, 255, np.uint8)
        ids[[0, 1, 2]] = 0, 2, 1
        for index in range(2):
            expected = noise(index) if names == PARTS else ids[noise(index)]
            np.testing.assert_array_equal(mask_of(again, index)[1].pixels, expected)
            assert mask_of(again, index)[1].undo_steps == 1
        if is_finished:
            break
    assert is_finished
    assert len(seen) == 2


def test_folder_when_its_pending_change_names_files_outside_then_refused(tmp_path: Path) -> None:
    begin(tmp_path / "p")
    victim = tmp_path / "victim.png"
    victim.write_text("precious")
    (tmp_path / "p/.change").mkdir()
    for path in ("../victim.png", str(victim), "images/../../victim.png", "masks/a\n.png"):
        plan = {"replace": [], "delete": [path]}
        (tmp_path / "p/.change/plan.json").write_text(json.dumps(plan))
        with pytest.raises(CorruptFileError, match="no file of a painting"):
            Painting(tmp_path / "p")
        assert victim.exists()


def test_image_when_removed_then_all_its_files_go(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p")
    name, mask = mask_of(painting)
    mask.paint(noise(1), "brush")
    painting.remove(name)
    assert not list(tmp_path.rglob(f"{name}*"))
    assert list(Painting(tmp_path / "p").images) == list(painting.images)
    assert len(painting.images) == 1


def test_gallery_when_drawn_again_then_new_seeds_and_none_twice(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p", n=0)
    painting.draw_more(6)
    before = list(painting.gallery)
    painting.draw_again(before[1:3])
    assert [painting.gallery[0], *painting.gallery[3:]] == [before[0], *before[3:]]
    assert not set(painting.gallery[1:3]) & set(before)
    again = Painting(tmp_path / "p")
    assert again.gallery == painting.gallery
    again.draw_more(6)
    assert len(set(again.gallery)) == 12
    assert not set(again.gallery) & set(before[1:3])


def test_start_when_there_is_a_painting_then_it_goes_on_only_with_the_same_generator(
    tmp_path: Path,
) -> None:
    painting = begin(tmp_path / "p")
    painting.mark(next(iter(painting.images)), is_done=True)
    card = World(SIZE).info.to_json()
    again = start_painting(tmp_path / "p", card, seed=5, parts=("skin",))
    assert again.seed == 0
    assert [image.is_done for image in again.images.values()] == [True, False]
    with pytest.raises(InputError, match="another generator: its size"):
        start_painting(tmp_path / "p", World((24, 24)).info.to_json(), seed=0)
    with pytest.raises(InputError, match="Add classes on the page"):
        start_painting(tmp_path / "p", card, seed=0, parts=("horn",))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="not empty"):
        start_painting(tmp_path / "other", card, seed=0)
    with pytest.raises(InputError, match="not a painting"):
        Painting(tmp_path / "other")


@pytest.mark.parametrize(
    "damage",
    [
        lambda card: card.pop("seed"),
        lambda card: card["images"][0].update(name="../../etc/passwd"),
        lambda card: card["images"][0].update(seed="1"),
        lambda card: card["images"][0].pop("is_done"),
        lambda card: card["classes"].append({"name": "hat"}),
        lambda card: card["generator"].pop("size"),
        lambda card: card["classes"].pop(),
    ],
)
def test_list_when_damaged_then_refused_by_name(tmp_path: Path, damage) -> None:
    painting = begin(tmp_path / "p", n=1)
    mask_of(painting)[1].paint(noise(1), "brush")
    path = tmp_path / "p/painting.json"
    card = json.loads(path.read_text())
    damage(card)
    path.write_text(json.dumps(card))
    with pytest.raises(CorruptFileError, match=r"painting\.json|class ids"):
        Painting(tmp_path / "p")


def test_files_when_missing_or_of_another_size_then_refused_by_name(tmp_path: Path) -> None:
    painting = begin(tmp_path / "p", n=1)
    name, mask = mask_of(painting)
    content = mask.mask_path.read_bytes()
    write_mask(mask.mask_path, np.zeros((3, 3), np.uint8))
    with pytest.raises(CorruptFileError, match="3 x 3 pixels; expected 24 x 32"):
        Painting(tmp_path / "p")
    mask.mask_path.unlink()
    with pytest.raises(CorruptFileError, match=rf"{name}\.png: there is no such file"):
        Painting(tmp_path / "p")
    mask.mask_path.write_bytes(content[:50])
    with pytest.raises(CorruptFileError, match="not a readable image"):
        Painting(tmp_path / "p")
    mask.mask_path.write_bytes(content)
    (tmp_path / f"p/images/{name}.png").unlink()
    with pytest.raises(CorruptFileError, match="missing, but"):
        Painting(tmp_path / "p")


@pytest.mark.slow
def test_strokes_when_killed_at_any_time_then_at_most_the_one_in_hand_is_lost(
    tmp_path: Path,
) -> None:
    name, _ = mask_of(begin(tmp_path / "p", n=1))
    program = (
        "import sys\n"
        "from latentseg.app.painting import Painting\n"
        "from tests.app.painted import noise\n"
        f"mask = Painting({str(tmp_path / 'p')!r}).masks[{name!r}]\n"
        "key = len(mask.done)\n"
        "while True:\n"
        "    mask.paint(noise(key), 'brush')\n"
        "    print(key, flush=True)\n"
        "    key += 1\n"
    )
    root = Path(painting_module.__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert process.stdout is not None
    with process.stdout:
        said = [process.stdout.readline() for _ in range(25)]
        process.kill()
        said += process.stdout.read().split()
        process.wait()
    last = int(said[-1])
    mask = Painting(tmp_path / "p").masks[name]
    painted = mask.undo_steps - 1
    assert painted in (last, last + 1)
    for key in range(painted, -1, -1):
        np.testing.assert_array_equal(mask.pixels, noise(key))
        mask.undo()


STEPS = st.lists(
    st.sampled_from(["paint", "join", "undo", "redo", "reopen", "turn classes"]), max_size=25
)


@given(STEPS)
@settings(max_examples=25, deadline=None)
def test_strokes_when_done_in_any_order_then_they_are_those_of_a_plain_history(
    steps: list[str],
) -> None:
    """The history as lists of whole masks is the reference."""
    with tempfile.TemporaryDirectory() as folder:
        painting = begin(Path(folder) / "p", n=1)
        name, mask = mask_of(painting)
        past, now, future = [], mask.pixels, []
        for key, step in enumerate(steps):
            mask = painting.masks[name]
            if step in ("paint", "join"):
                if step == "paint" or not past:
                    past.append(now)
                now, future = noise(key), []
                mask.paint(now, "brush", joins=step == "join")
            elif step == "undo" and past:
                future.append(now)
                now = past.pop()
                assert mask.undo()
            elif step == "redo" and future:
                past.append(now)
                now = future.pop()
                assert mask.redo()
            elif step == "reopen":
                painting = Painting(painting.folder)
            elif step == "turn classes":
                painting.change_classes(changes(painting, 3, 1, 2))
                ids = np.full(256, 255, np.uint8)
                ids[[0, 1, 2, 3]] = 0, 2, 3, 1
                past, now, future = [ids[m] for m in past], ids[now], [ids[m] for m in future]
            np.testing.assert_array_equal(painting.masks[name].pixels, now)
            assert painting.masks[name].undo_steps == len(past)
            assert painting.masks[name].redo_steps == len(future)
