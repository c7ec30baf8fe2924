"""Data sets as endless supplies of batches."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.datasets import pairs
from latentseg.datasets.pairs import Batch, FolderPairs, from_levels, to_levels
from latentseg.datasets.real import open_dataset
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import write_json, write_manifest
from latentseg.images import cover, to_pixels, write_image


class Numbered:
    """Pair i is gray of value i, all over; its mask is i % 2."""

    classes = ("odd",)

    def __init__(self, n: int, size: tuple[int, int] = (4, 4)) -> None:
        self.n, self.size = n, size
        self.reads: list[int] = []

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int):
        self.reads.append(index)
        image = np.full((*self.size, 3), index, np.uint8)
        return str(index), image, np.full(self.size, index % 2, np.uint8)


def shown(batch: Batch) -> list[int]:
    """Which pairs a batch of `Numbered` holds."""
    indices = to_pixels(batch.images)[:, 0, 0, 0].tolist()
    assert batch.masks[:, 0, 0].tolist() == [index % 2 for index in indices]
    return indices


def numbered(n: int, **options) -> FolderPairs:
    return FolderPairs(Numbered(n), size=(4, 4), **options)


def test_batch_when_an_epoch_ends_then_every_pair_was_seen_once():
    source = numbered(10)
    epochs = np.array([shown(source.batch(step, 4)) for step in range(5)]).reshape(2, 10)
    assert [sorted(epoch) for epoch in epochs.tolist()] == [list(range(10))] * 2
    assert epochs[0].tolist() != epochs[1].tolist()


def test_batch_when_asked_in_any_order_then_it_depends_only_on_seed_and_step():
    first, second = numbered(10), numbered(10)
    backwards = [shown(second.batch(step, 3)) for step in reversed(range(9))]
    assert [shown(first.batch(step, 3)) for step in range(9)] == backwards[::-1]
    assert shown(numbered(10, seed=1).batch(0, 10)) != shown(first.batch(0, 10))


def test_batch_when_larger_than_the_data_set_then_it_wraps():
    indices = shown(numbered(3).batch(0, 7))
    assert sorted(indices[:3]) == sorted(indices[3:6]) == [0, 1, 2]


def test_pairs_when_limited_then_only_the_first_are_used():
    assert set(shown(numbered(10, limit=4).batch(0, 40))) == {0, 1, 2, 3}


def test_pairs_when_they_fit_into_memory_then_each_is_read_once():
    data = Numbered(6)
    source = FolderPairs(data, size=(4, 4))
    for step in range(5):
        source.batch(step, 6)
    assert sorted(data.reads) == list(range(6))


def test_pairs_when_they_do_not_fit_then_they_are_read_again(monkeypatch: pytest.MonkeyPatch):
    expected = [shown(numbered(6).batch(step, 6)) for step in range(3)]
    monkeypatch.setattr(pairs, "MAX_CACHE_BYTES", 0)
    source = numbered(6)
    assert [shown(source.batch(step, 6)) for step in range(3)] == expected
    assert not source.cache


def test_pairs_when_the_data_set_is_empty_then_it_is_refused():
    with pytest.raises(InputError, match="at least one pair"):
        numbered(0)


def test_pairs_when_a_mask_has_another_size_then_the_pair_is_named():
    class Uneven(Numbered):
        def __getitem__(self, index: int):
            name, image, mask = super().__getitem__(index)
            return name, image, mask[1:]

    with pytest.raises(InputError, match="0: the image has 4 x 4 pixels, its mask 3 x 4"):
        FolderPairs(Uneven(1), size=(4, 4)).batch(0, 1)


@pytest.mark.parametrize("size", [(4, 4), (3, 8), (10, 5), (40, 41)])
def test_cover_when_scaled_then_the_size_is_met_and_masks_keep_their_values(size):
    image, mask = np.zeros((9, 12, 3), np.uint8), np.zeros((9, 12), np.uint8)
    mask[3:, 5:] = 7
    mask[:2] = 255
    assert cover(image, size).shape == (*size, 3)
    assert cover(mask, size).shape == size
    assert set(np.unique(cover(mask, size))) <= {0, 7, 255}


def test_cover_when_the_size_fits_then_nothing_changes():
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4)
    np.testing.assert_array_equal(cover(mask, (3, 4)), mask)


def test_cover_when_wider_then_the_middle_is_kept():
    mask = np.arange(6, dtype=np.uint8)[None].repeat(2, axis=0)
    np.testing.assert_array_equal(cover(mask, (2, 2)), mask[:, 2:4])


def dataset_folder(folder: Path, foreground: int | None) -> Path:
    for i in range(3):
        mask = np.zeros((4, 4), np.uint8)
        mask[i] = 1 if foreground is None else foreground
        write_image(folder / "images" / f"{i}.png", np.full((4, 4, 3), i, np.uint8))
        write_image(folder / "masks" / f"{i}.png", mask)
    write_json(folder / "dataset.json", {"classes": ["cat"], "foreground": foreground})
    write_manifest(folder)
    return folder


@pytest.mark.parametrize("foreground", [None, 255])
def test_dataset_folder_when_read_then_masks_hold_class_ids(tmp_path: Path, foreground):
    source = FolderPairs(dataset_folder(tmp_path, foreground), size=(4, 4))
    batch = source.batch(0, 3)
    assert source.classes == ("cat",)
    assert batch.masks.unique().tolist() == [0, 1]
    rows = to_pixels(batch.images)[:, 0, 0, 0]
    assert (batch.masks[torch.arange(3), torch.from_numpy(rows).long()] == 1).all()


def test_dataset_folder_when_never_finished_then_it_is_refused(tmp_path: Path):
    (dataset_folder(tmp_path, None) / "MANIFEST.json").unlink()
    assert len(open_dataset(tmp_path)) == 3  # made by hand
    (tmp_path / "samples.jsonl").touch()
    with pytest.raises(InputError, match="never finished"):
        open_dataset(tmp_path)


def test_dataset_folder_when_a_mask_is_missing_then_it_is_named(tmp_path: Path):
    folder = dataset_folder(tmp_path, None)
    (folder / "masks" / "1.png").unlink()
    write_manifest(folder)
    with pytest.raises(InputError, match=r"masks/1\.png"):
        open_dataset(folder)


@pytest.mark.parametrize("n_classes", [2, 3, 7, 40])
@pytest.mark.parametrize("sharpness", [0.0, 1.0, 30.0])
def test_levels_when_read_back_then_probabilities_are_near_and_sum_to_1(n_classes, sharpness):
    logits = sharpness * torch.randn(2, n_classes, 9, 5, generator=torch.manual_seed(0))
    probabilities = logits.softmax(1)
    levels = to_levels(probabilities)
    assert levels.dtype == torch.uint8
    assert levels.shape == (2, n_classes - 1, 9, 5)
    assert int(levels.long().sum(1).max()) <= 255
    again = from_levels(levels)
    assert (again - probabilities).abs().max() < 1 / 255 + 1e-6
    torch.testing.assert_close(again.sum(1), torch.ones(2, 9, 5))
    assert torch.equal(to_levels(again), levels)


SOFT = np.array([[[200, 10], [0, 85]], [[55, 20], [0, 85]]], np.uint8)  # of two classes, 2 x 2


def soft_folder(folder: Path, levels: np.ndarray = SOFT) -> Path:
    for i in range(3):
        write_image(folder / "images" / f"{i}.png", np.full((2, 2, 3), i, np.uint8))
        write_image(folder / "masks" / f"{i}.png", np.eye(2, dtype=np.uint8))
        write_image(folder / "soft" / f"{i}.png", np.concatenate(levels))
    write_json(folder / "dataset.json", {"classes": ["cat", "dog"], "soft": True})
    write_manifest(folder)
    return folder


def test_soft_folder_when_read_then_batches_hold_probabilities_unless_masks_are_wanted(tmp_path):
    soft = FolderPairs(soft_folder(tmp_path)).batch(0, 3).masks
    expected = torch.tensor(np.concatenate([255 - SOFT.sum(0, keepdims=True), SOFT])) / 255
    torch.testing.assert_close(soft, expected[None].float().expand(3, -1, -1, -1))
    hard = FolderPairs(tmp_path, soft=False).batch(0, 3).masks
    assert torch.equal(hard, torch.eye(2, dtype=torch.uint8).expand(3, -1, -1))


@pytest.mark.parametrize("size", [(4, 4), (3, 2), (5, 9)])
def test_soft_folder_when_scaled_then_probabilities_still_sum_to_1(tmp_path: Path, size):
    batch = FolderPairs(soft_folder(tmp_path), size=size).batch(0, 3)
    assert batch.masks.shape == (3, 3, *size)
    torch.testing.assert_close(batch.masks.sum(1), torch.ones(3, *size))


@pytest.mark.parametrize(("soft", "bytes_per_pixel"), [(True, 5), (False, 4)])
def test_soft_folder_when_cached_then_its_planes_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, soft: bool, bytes_per_pixel: int
):
    soft_folder(tmp_path)
    for limit, n_cached in ((3 * 4 * bytes_per_pixel, 3), (3 * 4 * bytes_per_pixel - 1, 0)):
        monkeypatch.setattr(pairs, "MAX_CACHE_BYTES", limit)
        source = FolderPairs(tmp_path, soft=soft)
        source.batch(0, 3)
        assert len(source.cache) == n_cached


def test_soft_folder_when_a_file_is_missing_then_it_is_named(tmp_path: Path):
    (soft_folder(tmp_path) / "soft" / "1.png").unlink()
    write_manifest(tmp_path)
    with pytest.raises(InputError, match=r"soft/1\.png"):
        FolderPairs(tmp_path)


@pytest.mark.parametrize(
    "levels", [np.full((2, 2, 2), 128, np.uint8), np.zeros((3, 1, 2), np.uint8)]
)
def test_soft_folder_when_a_file_holds_no_probabilities_then_it_is_named(tmp_path: Path, levels):
    soft_folder(tmp_path, levels)
    with pytest.raises(CorruptFileError, match=r"\.png: does not hold the probabilities of 2"):
        FolderPairs(tmp_path, size=(2, 2)).batch(0, 1)


def test_batch_when_moved_then_weights_go_along():
    batch = Batch(torch.zeros(1, 3, 2, 2), torch.zeros(1, 2, 2), torch.ones(1, 2, 2)).to("cpu")
    assert batch.weights is not None
    assert Batch(batch.images, batch.masks).to("cpu").weights is None
