"""Shards as files: a data set cut into tar files of the WebDataset layout, verified on reading.

`tarfile` writes and reads them, not the webdataset library, which opens the same files: that one's
reader ends early without an error in one of eight truncated shards, unpickles members whose names
ask for it, and its writer puts half-written shards under their final names.
"""

import contextlib
import io
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256 as digest_of
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from latentseg.datasets.folder import SOFT
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import MANIFEST, read_json, sha256
from latentseg.images import IGNORE, Pixels

DESCRIPTION = "dataset.json"


@dataclass(frozen=True)
class Shard:
    """Consecutive samples of a data set, in one file.

    Attributes:
        index: Its number.
        first: Index of its first sample.
        count: Number of its samples.
    """

    index: int
    first: int
    count: int

    @property
    def name(self) -> str:
        """The file's name; that of its record ends with .json instead."""
        return f"shard-{self.index:06d}.tar"

    @property
    def record(self) -> str:
        """Name of the file that says what is in the shard."""
        return f"shard-{self.index:06d}.json"


def cut(count: int, shard_size: int) -> tuple[Shard, ...]:
    """The shards of `count` samples: number k holds k * shard_size to (k + 1) * shard_size - 1."""
    return tuple(
        Shard(k, first, min(shard_size, count - first))
        for k, first in enumerate(range(0, count, shard_size))
    )


def pack(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Writes a tar file whose bytes depend only on names and contents: no times, no owners."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members:
            member = tarfile.TarInfo(name)  # mode 0o644, owner 0, time 0
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def unpack(content: bytes, names: Iterable[str], where: Path | str) -> Iterator[bytes]:
    """The members of a tar file in memory, which must be exactly those named, in their order.

    Nothing is extracted to disk, and no member is opened for what its name says.

    Raises:
        CorruptFileError: it is not such a file; the first wrong member is named.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
            for name in names:
                member = archive.next()
                if member is None or not member.isreg() or member.name != name:
                    found = "its end" if member is None else repr(member.name)
                    raise CorruptFileError(f"{where}: expected the file {name!r}, found {found}.")
                data = content[member.offset_data : member.offset_data + member.size]
                if len(data) != member.size:
                    raise CorruptFileError(f"{where}: ends within {name!r}.")
                yield data
            if (member := archive.next()) is not None:
                raise CorruptFileError(f"{where}: holds {member.name!r}, which does not belong.")
    except (tarfile.TarError, ValueError, OverflowError, EOFError, OSError) as error:
        raise CorruptFileError(f"{where}: not a readable tar file ({error}).") from error


@dataclass(frozen=True)
class Sample:
    """One sample as it lies in a shard: encoded pictures.

    Attributes:
        name: Its index, eight digits.
        image: PNG or JPEG.
        mask: PNG; what `ShardFolder.labels` asked for: class ids or levels.
    """

    name: str
    image: bytes
    mask: bytes


class ShardFolder:
    """A finished data set in shards: `folder[i]` is (name, image, mask) as in `LabelledImages`.

    Reading in order is fast, since the shard in hand is kept; `ShardPairs` shuffles. The sha256 of
    a shard is compared whenever it is read, so a damaged one is never used.

    Args:
        folder: Written by `synthesize_shards`.
        soft: Give class probabilities, (K, H, W) uint8 levels, in place of masks, if there are any.

    Raises:
        InputError: the folder is not finished, or is no data set in shards.
        CorruptFileError: shards are missing or cut off, or what describes them has changed; all
            are named.
    """

    def __init__(self, folder: Path | str, *, soft: bool = False) -> None:
        self.folder = Path(folder)
        self.digests = _read_digests(self.folder)
        if problems := _problems(self.folder, self.digests, is_deep=False):
            raise CorruptFileError(_explain(self.folder, problems))
        description = read_json(self.folder / DESCRIPTION)
        try:
            self.classes = tuple(str(name) for name in description["classes"])
            height, width = map(int, description["size"])
            self.suffix = str(description["suffix"])
            count, shard_size = int(description["count"]), int(description["shard_size"])
            if not 0 < count <= shard_size * len(self.digests):
                raise ValueError(f"count {count}")
            self.shards = cut(count, shard_size)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"{self.folder / DESCRIPTION}: does not describe shards ({error!r}). "
                "Make them with: latentseg synth GENERATOR LABELER OUT --format shards"
            ) from error
        if missing := [shard.name for shard in self.shards if shard.name not in self.digests]:
            raise CorruptFileError(f"{self.folder / MANIFEST}: does not name {', '.join(missing)}.")
        self.size = height, width
        self.has_soft = description.get(SOFT) is True
        self.is_soft = soft and self.has_soft
        self._recent = lru_cache(maxsize=1)(self.read)

    def __len__(self) -> int:
        return sum(shard.count for shard in self.shards)

    def __getitem__(self, index: int) -> tuple[str, Pixels, Pixels]:
        sample = self.sample(index)
        return sample.name, *self.decode(sample)

    def sample(self, index: int) -> Sample:
        """Sample `index`, still encoded; the last shard that was asked for is kept."""
        shard = self.shards[index // self.shards[0].count]
        return self._recent(shard)[index - shard.first]

    def __iter__(self) -> Iterator[tuple[str, Pixels, Pixels]]:
        for shard in self.shards:
            for sample in self.read(shard):
                yield sample.name, *self.decode(sample)

    def members(self, shard: Shard) -> list[str]:
        """The names in a shard, in their order."""
        return [
            f"{index:08d}.{kind}"
            for index in range(shard.first, shard.first + shard.count)
            for kind in kinds(self.suffix, self.has_soft)
        ]

    def read(self, shard: Shard) -> list[Sample]:
        """All samples of a shard, still encoded.

        Raises:
            CorruptFileError: the file is missing, has changed, or holds something else.
        """
        path = self.folder / shard.name
        try:
            content = path.read_bytes()
        except OSError as error:
            raise CorruptFileError(_explain(self.folder, [f"{shard.name} (missing)"])) from error
        if digest_of(content).hexdigest() != self.digests[shard.name]:
            raise CorruptFileError(_explain(self.folder, [f"{shard.name} (changed)"]))
        files = dict(zip(names := self.members(shard), unpack(content, names, path), strict=True))
        label = f"{SOFT}.png" if self.is_soft else "mask.png"
        return [
            Sample(name, files[f"{name}.{self.suffix}"], files[f"{name}.{label}"])
            for name in (f"{shard.first + row:08d}" for row in range(shard.count))
        ]

    def decode(self, sample: Sample) -> tuple[Pixels, Pixels]:
        """Image (H, W, 3) and mask of a sample: (H, W) class ids, or (K, H, W) levels.

        Raises:
            CorruptFileError: a picture cannot be decoded, or is not of the data set's size.
        """
        return self.decode_image(sample), self.decode_mask(sample)

    def decode_image(self, sample: Sample) -> Pixels:
        """The image of a sample; raises as `decode`."""
        return _decode(sample.image, "RGB", self.size, f"{self.folder}: {sample.name}")

    def decode_mask(self, sample: Sample) -> Pixels:
        """The mask of a sample; raises as `decode`."""
        (height, width), where = self.size, f"{self.folder}: {sample.name}"
        if not self.is_soft:
            return _decode(sample.mask, "L", (height, width), where)
        n_classes = len(self.classes)
        levels = _decode(sample.mask, "L", (n_classes * height, width), where)
        return levels.reshape(n_classes, height, width)


def kinds(suffix: str, soft: bool) -> list[str]:
    """How the names of a sample's files end: image, mask, levels if there are any, record."""
    return [suffix, "mask.png", *([f"{SOFT}.png"] if soft else []), "json"]


def is_sharded(folder: Path | str) -> bool:
    """Whether `folder` holds shards, finished or not."""
    return any(Path(folder).glob("shard-*.tar"))


def check_shards(folder: Path | str) -> list[str]:
    """Every problem of a data set in shards, each with its file; empty if there is none.

    Every file is compared with its recorded sha256, and every picture is decoded.

    Raises:
        InputError: the folder is not finished.
    """
    folder = Path(folder)
    if problems := _problems(folder, _read_digests(folder), is_deep=True):
        return [f"{problem}. The command that made it makes it again." for problem in problems]
    data = ShardFolder(folder)
    for shard in data.shards:
        try:
            for sample in data.read(shard):
                mask = data.decode(sample)[1]
                wrong = mask[(mask > len(data.classes)) & (mask != IGNORE)]
                if len(wrong):
                    problems.append(
                        f"{shard.name}: {sample.name}.mask.png: holds the value {wrong[0]}, but "
                        f"there are {len(data.classes)} classes."
                    )
        except CorruptFileError as error:
            problems.append(str(error))
    return problems


def _read_digests(folder: Path) -> dict[str, str]:
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"{folder}: no {MANIFEST}; the shards were never finished. Give the command that makes "
            "them again: it makes what is missing."
        )
    manifest = read_json(folder / MANIFEST)
    digests = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(digests, dict):
        raise CorruptFileError(f"{folder / MANIFEST}: not a manifest: 'sha256' is missing.")
    return digests


def _problems(folder: Path, digests: dict[str, str], *, is_deep: bool) -> list[str]:
    """Files that are missing or changed; of shards only by size unless `is_deep`."""
    problems = []
    for name, digest in digests.items():
        path = folder / Path(name).name  # all files lie in the folder itself
        is_shard = path.suffix == ".tar"
        if not path.is_file():
            problems.append(f"{name} (missing)")
        elif is_deep or not is_shard:
            if sha256(path) != digest:
                problems.append(f"{name} (changed)")
        elif path.stat().st_size != _recorded_size(path):
            problems.append(f"{name} (cut off, or from elsewhere)")
    return problems


def _recorded_size(path: Path) -> Any:
    with contextlib.suppress(InputError, CorruptFileError):
        record = read_json(path.with_suffix(".json"))
        return record.get("bytes") if isinstance(record, dict) else None
    return None


def _explain(folder: Path, problems: list[str]) -> str:
    return (
        f"{folder}: does not match its {MANIFEST}: {', '.join(problems)}. The command that made "
        "the shards makes these again."
    )


def _decode(content: bytes, mode: str, size: tuple[int, int], where: str) -> Pixels:
    try:
        picture = Image.open(io.BytesIO(content), formats=("PNG", "JPEG"))
        # Before anything is decoded: a small file may hold a huge picture.
        if (picture.mode, picture.height, picture.width) == (mode, *size):
            return np.array(picture)
        found = f"a picture of {picture.height} x {picture.width} {picture.mode}"
    except MemoryError:
        raise
    except Exception as error:  # Pillow has a dozen kinds
        raise CorruptFileError(f"{where}: not a readable picture ({error}).") from error
    raise CorruptFileError(f"{where}: {found}, expected {size[0]} x {size[1]} {mode}.")
