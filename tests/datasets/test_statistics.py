"""What is in a data set: numbers with known answers, and look-alikes that people would call so."""

import io
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from latentseg.datasets.statistics import look_alikes, perceptual_hash, statistics
from latentseg.errors import CorruptFileError, InputError
from latentseg.images import Pixels, encode, read_image
from latentseg.synthesis.writers import synthesize
from tests.shard_world import Truth, make
from tests.world import World


def scene(seed: int, size: int = 96) -> Pixels:
    """A smooth random picture, as different from others as photos are."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), np.uint8)
    return np.array(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def through_jpeg(image: Pixels) -> Pixels:
    return np.array(Image.open(io.BytesIO(encode(image, ".jpg"))))


class Painted:
    """Known masks: sample i has i + 1 rows of class 1, a row of class 2 and a row ignored."""

    classes = ("cat", "dog")

    def __init__(self, images: list[Pixels]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        mask = np.zeros((10, 10), np.uint8)
        mask[: index + 1], mask[8], mask[9] = 1, 2, 255
        return f"s{index}", self.images[index], mask


def bits_apart(a: np.uint64, b: np.uint64) -> int:
    return int(a ^ b).bit_count()


def test_statistics_when_masks_are_known_then_so_are_the_areas():
    result = statistics(Painted([scene(i) for i in range(4)]))
    assert result["count"] == 4
    assert result["ignored"] == 0.1
    cat, dog, both = (result["areas"][name] for name in ("cat", "dog", "foreground"))
    assert cat["mean"] == round(np.mean([1, 2, 3, 4]) / 9, 4)
    assert dog["quantiles"]["50%"] == round(1 / 9, 4)
    assert both["mean"] == round(np.mean([2, 3, 4, 5]) / 9, 4)
    assert sum(both["histogram"]) == 4
    assert both["histogram"][int(20 * 3 / 9)] == 1
    assert (cat["missing"], result["yield"]) == (0, None)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_statistics_when_everything_is_ignored_then_nothing_is_divided_by_zero():
    class Ignored(Painted):
        def __getitem__(self, index: int):
            name, image, mask = super().__getitem__(index)
            return name, image, np.full_like(mask, 255)

    result = statistics(Ignored([scene(0)]))
    assert (result["ignored"], result["areas"]["cat"]["missing"]) == (1, 1)


def test_statistics_of_folder_and_shards_then_both_say_the_same(tmp_path: Path):
    shards = make(tmp_path / "shards")
    folder = synthesize(World(), Truth(), count=22, out=tmp_path / "folder", block=4, quiet=True)
    result = statistics(shards, picture=tmp_path / "statistics.png")
    assert result == statistics(folder)
    assert result["candidates"] == 22 + sum(result["removed"].values())
    assert result["yield"] == round(22 / result["candidates"], 4)
    assert read_image(tmp_path / "statistics.png").std() > 10
    assert statistics(shards, limit=5)["count"] == 5


def test_statistics_when_images_repeat_then_they_are_named(tmp_path: Path):
    images = [scene(i) for i in range(9)]
    images[5] = through_jpeg(images[2])
    images[7] = images[2] // 2 + 60
    images[8] = np.array(Image.fromarray(images[0]).resize((48, 48)))
    result = statistics(Painted(images), picture=tmp_path / "statistics.png")
    assert result["look_alikes"] == {
        "groups": 2,
        "distinct": 6,
        "share": round(5 / 9, 4),
        "largest": [["s2", "s5", "s7"], ["s0", "s8"]],
    }


def test_statistics_when_the_data_set_is_empty_or_damaged_then_it_is_refused(tmp_path: Path):
    with pytest.raises(InputError, match="no images"):
        statistics(Painted([]))
    folder = make(tmp_path, 4)
    (folder / "shard-000000.tar").write_bytes(b"")
    with pytest.raises(CorruptFileError, match=r"shard-000000\.tar"):
        statistics(folder)


def test_hash_when_the_picture_is_the_same_to_the_eye_then_few_bits_change():
    for seed in range(20):
        image = scene(seed)
        larger = np.array(Image.fromarray(image).resize((200, 200)))
        changed = [through_jpeg(image), image // 2 + 20, larger]
        found = [bits_apart(perceptual_hash(image), perceptual_hash(other)) for other in changed]
        assert max(found) <= 4


def test_hash_when_pictures_differ_then_about_half_the_bits_do():
    hashes = [perceptual_hash(scene(seed)) for seed in range(40)]
    apart = [bits_apart(a, b) for a, b in itertools.combinations(hashes, 2)]
    assert 24 < np.mean(apart) < 40
    assert min(apart) > 8


@pytest.mark.parametrize("near_bits", [0, 1, 4, 9])
def test_look_alikes_when_compared_with_all_pairs_then_the_groups_are_equal(near_bits: int):
    rng = np.random.default_rng(near_bits)
    hashes = rng.integers(0, 2**64, 300, np.uint64)
    for i in range(0, 200, 2):  # the next differs in a few bits, anywhere
        bits = rng.choice(64, rng.integers(0, 12), replace=False)
        hashes[i + 1] = hashes[i] ^ np.bitwise_or.reduce(
            np.uint64(1) << bits.astype(np.uint64), initial=np.uint64(0)
        )
    groups = [{i} for i in range(300)]
    for a, b in itertools.combinations(range(300), 2):
        if bits_apart(hashes[a], hashes[b]) <= near_bits:
            joined = groups[a] | groups[b]
            for i in joined:
                groups[i] = joined
    expected = {tuple(sorted(group)) for group in groups if len(group) > 1}
    found = look_alikes(hashes, near_bits)
    assert {tuple(group) for group in found} == expected
    assert [len(group) for group in found] == sorted(map(len, found), reverse=True)


def test_look_alikes_when_all_are_equal_then_they_are_one_group():
    assert look_alikes(np.zeros(3000, np.uint64)) == [list(range(3000))]
    assert look_alikes(np.zeros(1, np.uint64)) == []
