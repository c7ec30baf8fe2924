"""Training from shards: shuffled, a function of the step alone, in bounded memory."""

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.datasets.pairs import Batch, FolderPairs, from_levels
from latentseg.datasets.shard_files import ShardFolder
from latentseg.datasets.shard_pairs import ShardPairs
from latentseg.errors import CorruptFileError, InputError
from latentseg.images import cover, to_pixels
from latentseg.students.training import TrainConfig, train
from tests.shard_world import SoftTruth, make

ONE_SHARD = 1  # bytes: less than any window, so that each is a single shard


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """22 pairs in shards of 8, 8 and 6."""
    return make(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def order(folder: Path) -> dict[bytes, int]:
    """Which pair an image is."""
    return {image.tobytes(): i for i, (_, image, _) in enumerate(ShardFolder(folder))}


def shown(batch: Batch, order: dict[bytes, int]) -> list[int]:
    """Which pairs a batch holds."""
    return [order[image.tobytes()] for image in to_pixels(batch.images)]


@pytest.mark.parametrize("memory", [ONE_SHARD, 2**30])
def test_batch_when_an_epoch_ends_then_every_pair_was_seen_once(folder, order, memory):
    source = ShardPairs(folder, memory=memory)
    seen = [i for step in range(11) for i in shown(source.batch(step, 6), order)]
    epochs = np.array(seen).reshape(3, 22).tolist()
    assert [sorted(epoch) for epoch in epochs] == [list(range(22))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("memory", [ONE_SHARD, 2**30])
@pytest.mark.parametrize("size", [1, 5, 30])
def test_batch_when_asked_in_any_order_then_it_depends_only_on_seed_and_step(
    folder: Path, memory: int, size: int
):
    first = ShardPairs(folder, seed=3, memory=memory)
    expected = [first.batch(step, size) for step in range(9)]
    steps = random.Random(0).sample(range(9), 9)
    again = ShardPairs(folder, seed=3, memory=memory)
    for step in [*steps, *steps[:3]]:
        batch = again.batch(step, size)
        assert torch.equal(batch.images, expected[step].images)
        assert torch.equal(batch.masks, expected[step].masks)
    other = ShardPairs(folder, seed=4, memory=memory).batch(0, 22)
    assert not torch.equal(other.images, first.batch(0, 22).images)


def test_batch_when_cut_among_ranks_then_the_parts_are_the_whole(folder: Path):
    source = ShardPairs(folder)
    for step in range(5):
        parts = torch.cat([source.batch(2 * step + rank, 3).images for rank in range(2)])
        assert torch.equal(parts, source.batch(step, 6).images)


def test_batch_when_windows_are_small_then_shards_stay_together_and_few_are_held(folder, order):
    source = ShardPairs(folder, memory=ONE_SHARD)
    seen = []
    for step in range(22):
        seen += [i // 8 for i in shown(source.batch(step, 1), order)]
        assert len(source._held) <= 2
    changes = sum(a != b for a, b in pairwise(seen))
    assert changes == 2
    mixed = [i // 8 for i in shown(ShardPairs(folder).batch(0, 22), order)]
    assert sum(a != b for a, b in pairwise(mixed)) > 6


def test_batch_when_a_shard_is_in_use_then_it_is_read_once(folder: Path, monkeypatch):
    reads = []
    read = ShardFolder.read
    monkeypatch.setattr(
        ShardFolder, "read", lambda self, shard: reads.append(shard.index) or read(self, shard)
    )
    source = ShardPairs(folder)
    for step in range(30):
        source.batch(step, 4)
    assert sorted(reads) == [0, 1, 2]


def test_pairs_when_limited_then_only_the_first_are_used(folder: Path, order):
    source = ShardPairs(folder, limit=11)
    assert len(source) == 11
    assert sorted(shown(source.batch(0, 11), order)) == list(range(11))
    assert len(ShardPairs(folder, limit=100)) == 22


def test_pairs_when_read_as_a_finite_data_set_then_other_readers_serve(folder: Path, order):
    source = FolderPairs(ShardFolder(folder))
    assert sorted(shown(source.batch(0, 22), order)) == list(range(22))


def test_batch_when_another_size_is_asked_then_pictures_are_covered(folder: Path):
    source = ShardPairs(folder, size=(16, 24))
    batch = source.batch(0, 22)
    assert (source.size, batch.images.shape) == ((16, 24), (22, 3, 16, 24))
    whole = ShardPairs(folder).batch(0, 22)
    expected = [cover(mask, (16, 24)) for mask in whole.masks.numpy()]
    np.testing.assert_array_equal(batch.masks.numpy(), np.stack(expected))


def test_batch_when_the_shards_are_soft_then_probabilities_come_unless_refused(tmp_path: Path):
    folder = make(tmp_path, labeler=SoftTruth(), soft=True)
    soft = ShardPairs(folder, size=(16, 16)).batch(0, 4).masks
    hard = ShardPairs(folder, size=(16, 16), soft=False).batch(0, 4).masks
    assert (soft.shape, soft.dtype) == ((4, 2, 16, 16), torch.float32)
    levels = torch.where(hard > 0, 204, 51)[:, None].to(torch.uint8)
    assert torch.equal(soft, from_levels(levels))


def test_batch_when_a_shard_has_changed_then_it_is_named(tmp_path: Path):
    folder = make(tmp_path)
    content = bytearray((folder / "shard-000001.tar").read_bytes())
    content[5000] ^= 1
    (folder / "shard-000001.tar").write_bytes(content)
    source = ShardPairs(folder)
    with pytest.raises(CorruptFileError, match=r"shard-000001\.tar \(changed\)"):
        source.batch(0, 22)


def test_pairs_when_shards_are_missing_then_all_are_named_before_any_step(tmp_path: Path):
    folder = make(tmp_path)
    (folder / "shard-000000.tar").unlink()
    (folder / "shard-000002.tar").unlink()
    with pytest.raises(CorruptFileError, match=r"shard-000000\.tar.*shard-000002\.tar"):
        ShardPairs(folder)
    with pytest.raises(InputError, match="never finished"):
        ShardPairs(tmp_path / "nothing")


def test_training_when_killed_and_resumed_then_the_weights_are_those_without_a_stop(
    folder: Path, tmp_path: Path
):
    class Stopping(ShardPairs):
        def batch(self, step: int, size: int) -> Batch:
            if step == 5:
                raise RuntimeError("killed")
            return super().batch(step, size)

    def trained(kind: type[ShardPairs], out: Path) -> dict[str, torch.Tensor]:
        config = TrainConfig(width=0.125, batch=4, steps=8, checkpoint_every=3)
        pairs = kind(folder, size=(16, 16), memory=ONE_SHARD)
        segmenter = train(pairs, config=config, out=out, device="cpu", quiet=True)
        return segmenter.members[0].state_dict()

    expected = trained(ShardPairs, tmp_path / "whole")
    with pytest.raises(RuntimeError, match="killed"):
        trained(Stopping, tmp_path / "cut")
    found = trained(ShardPairs, tmp_path / "cut")
    assert all(torch.equal(found[name], value) for name, value in expected.items())
