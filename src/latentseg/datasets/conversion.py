"""From one format to another, photo by photo: what was done is kept, what is wrong is listed."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentseg.datasets.descriptions import DESCRIPTION
from latentseg.datasets.formats import coco, hf_datasets, own_folder, voc, yolo
from latentseg.datasets.formats.writing import Format, Record, Sample, Target, check_size
from latentseg.datasets.listings import problems_in
from latentseg.datasets.pairs import DescribedImages, LabelledImages
from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.errors import InputError, LatentsegError
from latentseg.files import (
    MANIFEST,
    claim,
    free_bytes,
    locked,
    open_in_place,
    read_bytes,
    sha256,
    verify_manifest,
    write_bytes,
    write_json,
    write_manifest,
)
from latentseg.images import IGNORE, encode, is_plain
from latentseg.progress import Progress, say
from latentseg.version import __version__

FORMATS: dict[str, Format] = {
    each.name: each
    for each in (coco.FORMAT, yolo.FORMAT, own_folder.FORMAT, voc.FORMAT, hf_datasets.FORMAT)
}
JOURNAL = ".samples.jsonl"  # hidden: it is deleted at the end
THREADS = 4
CHUNK = 64


def convert_dataset(
    source: Path | str | LabelledImages,
    out: Path | str,
    *,
    format: str,
    facts: Mapping[str, Any] | None = None,
    lossy: bool = False,
    instances: bool = False,
    quiet: bool = False,
) -> Path:
    """Writes labeled photos in another format. The same call continues interrupted work.

    Masks stay exact in all formats but YOLO. Photos that every program reads alike are copied byte
    for byte; turned, transparent and unusual ones are written upright as PNG. Photos in folders
    below others get one name, with "_" for "/".

    Args:
        source: What `open_dataset` opens, or a dataset that can be indexed.
        out: The folder to write, with dataset.json and MANIFEST.json beside the format's own files.
        format: "coco", "yolo", "folder", "voc" or "hf".
        facts: Licence, generator and the like; by default those of the source.
        lossy: YOLO: accept polygons that lose more than 1 % of a mask, and ignored pixels.
        instances: COCO: an annotation for each connected component instead of each class.
        quiet: Print no progress.

    Returns:
        `out`.

    Raises:
        InputError: photos or masks that cannot be read, all of them listed; a loss that was not
            accepted; `out` holds something else; an option that the format does not have.
        CorruptFileError: the source is damaged, or a finished `out` has changed.
    """
    out = Path(out)
    if format not in FORMATS:
        raise InputError(f"`format`: expected one of {', '.join(FORMATS)}, found {format}.")
    if lossy and format != "yolo":
        raise InputError(f"`lossy`: of the format yolo only, found {format}.")
    if instances and format != "coco":
        raise InputError(f"`instances`: of the format coco only, found {format}.")
    is_path = isinstance(source, Path | str)
    dataset = open_dataset(source, examine=False) if is_path else source
    place = str(dataset.folder.absolute()) if isinstance(dataset, RealDataset) else None
    for note in dataset.notes if isinstance(dataset, RealDataset) else ():
        say(f"convert-dataset: {note}", quiet=quiet)
    if facts is None:
        facts = dataset.facts if isinstance(dataset, DescribedImages) else {}
    asked = {
        "source": place,
        "content": _content(dataset),
        "format": format,
        "classes": [*dataset.classes],
        "facts": dict(facts),
        "count": len(dataset),
        **(dataset.asked if isinstance(dataset, RealDataset) else {}),
        "instances": instances,
        "lossy": lossy,
    }
    target = Target(out, dataset.classes, facts, lossy, instances)
    with locked(out):
        claim(out, asked, free=("lossy",))
        if (out / MANIFEST).is_file():
            verify_manifest(out)
            return out
        _check_space(out, dataset, quiet)
        with _Journal(out / JOURNAL) as journal:
            _write_samples(FORMATS[format], target, dataset, journal, quiet)
            told = FORMATS[format].finish(target, journal)
        description = {"latentseg": __version__, **facts, "count": len(dataset), **told}
        meaning = {"classes": [*dataset.classes], "ignore": IGNORE, "foreground": None}
        write_json(out / DESCRIPTION, {**description, **meaning})
        write_manifest(out)
        (out / JOURNAL).unlink()
    for name, value in told.items():
        say(f"convert-dataset: {name} {json.dumps(value)}", quiet=quiet)
    return out


def _content(dataset: LabelledImages) -> str | None:
    """What tells one state of a source from another, as far as it can be had without reading it."""
    if not isinstance(dataset, RealDataset):
        return None
    if (dataset.folder / MANIFEST).is_file():
        return sha256(dataset.folder / MANIFEST)
    names = "\n".join(pair.name for pair in dataset.pairs)
    return hashlib.sha256(names.encode()).hexdigest()


def _check_space(out: Path, dataset: LabelledImages, quiet: bool) -> None:
    """Says what the photos take, and refuses if the disk has less."""
    if not isinstance(dataset, RealDataset):
        return
    needed = sum(path.stat().st_size for path in {pair.image for pair in dataset.pairs})
    say(
        f"convert-dataset: {len(dataset)} photos, {needed / 1e6:.0f} MB, from {dataset.folder} "
        f"to {out}",
        quiet=quiet,
    )
    if needed > free_bytes(out):
        raise InputError(
            f"{out}: the photos take {needed / 1e6:.0f} MB, but only "
            f"{free_bytes(out) / 1e6:.0f} MB are free. Make room, or choose another disk."
        )


class _Journal:
    """What is written already: one record for each sample, found by its index, read in order.

    A sample is entered when its files are complete. A line that a kill cut off is forgotten.
    """

    def __init__(self, path: Path) -> None:
        open_in_place(path, "ab").close()
        self.stream = open_in_place(path, "r+b")
        self.offsets: dict[int, int] = {}
        self.names: dict[str, int] = {}
        end = 0
        for line in self.stream:
            try:
                row = json.loads(line)
                index, key = row["index"], row["key"]
            except (ValueError, KeyError, TypeError):
                break
            if not line.endswith(b"\n"):
                break
            self.offsets[index], self.names[key] = end, index
            end += len(line)
        self.stream.truncate(end)

    def __enter__(self) -> "_Journal":
        return self

    def __exit__(self, *exception: object) -> None:
        self.stream.close()

    def __len__(self) -> int:
        return len(self.offsets)

    def __contains__(self, index: object) -> bool:
        return index in self.offsets

    def __iter__(self) -> Iterator[Record]:
        for index in sorted(self.offsets):
            self.stream.seek(self.offsets[index])
            yield json.loads(self.stream.readline())["record"]

    def enter(self, rows: list[tuple[int, str, Record]]) -> None:
        """Enters samples: index, what no other may be called, record."""
        end = self.stream.seek(0, os.SEEK_END)
        for index, key, record in rows:
            row = {"index": index, "key": key, "record": record}
            line = (json.dumps(row, allow_nan=False) + "\n").encode()
            self.stream.write(line)
            self.offsets[index], self.names[key] = end, index
            end += len(line)
        self.stream.flush()
        os.fsync(self.stream.fileno())


def _write_samples(
    format: Format, target: Target, dataset: LabelledImages, journal: _Journal, quiet: bool
) -> None:
    """Writes what is not written yet; photos that cannot be are listed when all others are.

    Raises:
        InputError: photos or masks that cannot be read, or two photos of one name.
    """
    problems: list[str] = []
    missing = [index for index in range(len(dataset)) if index not in journal]
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress(
            "convert-dataset", total=len(dataset), start=len(journal), quiet=quiet
        ) as progress,
    ):
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            sound: list[_Read] = []
            for read in pool.map(lambda index: _read_sample(dataset, index), chunk):
                if isinstance(read, str):
                    problems.append(read)
                elif journal.names.setdefault(read.key, read.index) != read.index:
                    problems.append(f"{read.place}: another photo is called {read.key}, too.")
                else:
                    sound.append(read)
            records = pool.map(lambda read: _write_sample(format, target, read), sound)
            rows = zip(sound, records, strict=True)
            journal.enter([(read.index, read.key, record) for read, record in rows])
            progress.update(len(journal))
    if problems:
        raise problems_in(target.folder, problems)


@dataclass(frozen=True)
class _Read:
    """A photo as it will be written."""

    index: int
    place: str  # where it comes from, for messages
    content: bytes
    sample: Sample

    @property
    def key(self) -> str:
        """What no other photo may be called: some file systems do not tell A from a."""
        return self.sample.name.lower()


def _read_sample(dataset: LabelledImages, index: int) -> _Read | str:
    """A photo and its mask, or what is wrong with them."""
    try:
        name, image, mask = dataset[index]
        check_size(mask, image.shape[:2], Path(name))
        if (wrong := mask[(mask > len(dataset.classes)) & (mask != IGNORE)]).size:
            raise InputError(f"{name}: a pixel has the value {wrong[0]}, which is no class.")
    except LatentsegError as error:
        return str(error)
    path = dataset.pairs[index].image if isinstance(dataset, RealDataset) else None
    if path is not None and _is_copied(dataset, index):
        suffix, content = path.suffix.lower(), read_bytes(path)
    else:
        suffix, content = ".png", encode(image)
    # A name that starts with a dot would be hidden, and left out of what is read and verified.
    written = name.replace("/", "_").replace("\\", "_").lstrip(".") or "_"
    return _Read(index, str(path or name), content, Sample(written, suffix, mask))


def _is_copied(dataset: LabelledImages, index: int) -> bool:
    """Whether a photo is a file that every program reads alike, so that it is copied as it is."""
    if not isinstance(dataset, RealDataset) or not dataset.copies_photos:
        return False
    pair = dataset.pairs[index]
    return pair.box is None and pair.page is None and is_plain(pair.image)


def _write_sample(format: Format, target: Target, read: _Read) -> Record:
    write_bytes(
        target.folder / format.images / f"{read.sample.name}{read.sample.suffix}", read.content
    )
    return format.write(target, read.sample)
