"""A dataset in shards of ours as pairs that are found by name, like any other layout."""

from pathlib import Path

from latentseg.datasets.folder import called
from latentseg.datasets.listings import Listing, Pair, plain_layout
from latentseg.datasets.mask_values import class_ids
from latentseg.datasets.shard_files import ShardFolder, is_sharded
from latentseg.files import read_json
from latentseg.images import Pixels


def _find(folder: Path) -> Listing | None:
    """Shards that `latentseg synth` wrote; None if `folder` holds none.

    Raises:
        InputError, CorruptFileError: as `ShardFolder`.
    """
    if not folder.is_dir() or not is_sharded(folder):
        return None
    shards = ShardFolder(folder)

    def image(pair: Pair) -> Pixels:
        return shards.decode_image(shards.sample(int(pair.name)))

    def mask(pair: Pair) -> Pixels:
        return shards.decode_mask(shards.sample(int(pair.name)))

    return Listing(
        called(folder),
        folder,
        tuple(
            Pair(f"{index:08d}", folder / shard.name, folder / shard.name)
            for shard in shards.shards
            for index in range(shard.first, shard.first + shard.count)
        ),
        meaning=class_ids(shards.classes),
        facts=read_json(folder / "dataset.json"),
        read_image=image,
        read_mask=mask,
        copies_photos=False,
    )


SHARDS = plain_layout(
    "shards", "shard-000000.tar and dataset.json, as `latentseg synth` writes", _find
)
