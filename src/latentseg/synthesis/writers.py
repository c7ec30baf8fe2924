"""Datasets on disk: a stream's first samples as a folder that is complete and verified."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, TextIO

from latentseg import __version__
from latentseg.errors import InputError
from latentseg.files import (
    MANIFEST,
    claim,
    free_bytes,
    locked,
    sha256,
    verify_manifest,
    write_json,
    write_manifest,
)
from latentseg.generators.protocols import Generator
from latentseg.images import IGNORE, encode
from latentseg.labelers.protocols import Labeler
from latentseg.progress import Progress, say
from latentseg.synthesis.stream import Block, Stream

FORMAT = 1
RECORDS = "samples.jsonl"
FIELDS = {"name", "attempts", "removed", "sha256"}  # of a line that work can be continued from
THREADS = 4
COMPRESSED = {
    "png": 0.9,
    "jpg": 0.25,
}  # share of the raw bytes, seldom exceeded by generated images
SLACK_BYTES = 2 * 4096  # two files per sample do not end at a block of the disk

Record = dict[str, Any]


def synthesize(
    generator: Generator,
    labeler: Labeler,
    *,
    count: int,
    out: Path | str,
    seed: int = 0,
    suffix: Literal["png", "jpg"] = "png",
    block: int = 64,
    quiet: bool = False,
) -> Path:
    """Writes the first `count` samples of a stream as a dataset folder.

    The same call continues interrupted work; a larger `count` extends a finished dataset. The
    folder has a MANIFEST.json only while it is complete.

    Args:
        generator: The generator that the labeler was fitted to.
        labeler: Labels and refuses.
        count: Number of samples.
        out: The folder: images/, masks/, dataset.json, samples.jsonl (where each sample comes
            from), MANIFEST.json.
        seed: Of all samples; sample i depends only on (seed, i).
        suffix: "png" is lossless; "jpg" of quality 95 is smaller. Masks are always PNG.
        block: Samples that are drawn together.
        quiet: Print no progress.

    Returns:
        `out`.

    Raises:
        InputError: `out` holds another or a larger dataset; the disk is too small; the filters
            refuse nearly everything.
        CorruptFileError: a finished dataset has changed since.
    """
    out = Path(out)
    if count < 1 or suffix not in COMPRESSED:
        raise InputError(f"count {count}, suffix {suffix!r}: expected at least 1, and png or jpg.")
    stream = Stream(generator, labeler, seed=seed, block=block)
    asked = {
        "generator": generator.info.to_json(),
        "labeler": labeler.info,
        "seed": seed,
        "suffix": suffix,
        "block": block,
    }
    with locked(out):
        claim(out, asked)
        is_finished = (out / MANIFEST).is_file()
        if is_finished:
            verify_manifest(out)
        tally = _resume(out, suffix)
        if tally.count > count:
            raise InputError(
                f"{out}: holds {tally.count} samples already, more than the {count} asked for. "
                "A part of a dataset can be used with --limit; or choose another folder."
            )
        if is_finished and tally.count == count:
            return out
        _check_space(out, stream, count - tally.count, suffix, quiet)
        (out / MANIFEST).unlink(missing_ok=True)
        with _full_disk_explained(out):
            _write_samples(out, stream, tally, count, suffix, quiet)
            write_json(out / "dataset.json", _describe(stream, tally))
            write_manifest(out)
    return out


@dataclass
class _Tally:
    """What has been written: the number of samples, and the candidates that it took."""

    count: int = 0
    candidates: int = 0
    removed: list[int] = field(default_factory=list)

    def add(self, record: Record) -> None:
        """Counts one more sample."""
        self.count += 1
        self.candidates += record["attempts"]
        self.removed = [a + b for a, b in zip_longest(self.removed, record["removed"], fillvalue=0)]


def _resume(out: Path, suffix: str) -> _Tally:
    """Counts what was entered and is intact; forgets the rest, like a line that a kill cut off."""
    tally, end = _Tally(), 0
    path = out / RECORDS
    if path.is_file():
        with open(path, "rb") as journal:
            for line in journal:
                record = _parse(line)
                if record.get("name") != _name(tally.count) or not _is_intact(out, record, suffix):
                    break
                tally.add(record)
                end += len(line)
        os.truncate(path, end)
    return tally


def _parse(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    is_whole = isinstance(record, dict) and record.keys() >= FIELDS and line.endswith(b"\n")
    return record if is_whole else {}


def _name(index: int) -> str:
    return f"{index:08d}"


def _is_intact(out: Path, record: Record, suffix: str) -> bool:
    """Whether both files of a sample are there and as they were when it was entered."""
    name = record["name"]
    paths = [out / "images" / f"{name}.{suffix}", out / "masks" / f"{name}.png"]
    return all(path.is_file() for path in paths) and record["sha256"] == [*map(sha256, paths)]


def _write_samples(
    out: Path, stream: Stream, tally: _Tally, count: int, suffix: str, quiet: bool
) -> None:
    """Appends samples until there are `count`; one block is encoded while the next is drawn."""
    for folder in (out / "images", out / "masks"):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.stem >= _name(tally.count):
                path.unlink()  # written just before a kill, and never entered
    blocks = range(tally.count // stream.block_size, (count - 1) // stream.block_size + 1)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress("synth", total=count, start=tally.count, quiet=quiet) as progress,
        open(out / RECORDS, "a", encoding="utf-8") as journal,
    ):
        writing: list[Future[Record]] = []
        for k in blocks if tally.count < count else []:
            block = stream.block(k)
            _enter(writing, tally, journal)
            rows = range(max(tally.count - block.start, 0), min(count - block.start, len(block)))
            writing = [pool.submit(_write_sample, out, block, row, suffix) for row in rows]
            progress.update(block.start + rows.stop, kept=len(block) / int(block.attempts.sum()))
        _enter(writing, tally, journal)


def _enter(writing: list[Future[Record]], tally: _Tally, journal: TextIO) -> None:
    """Waits for samples to be written and enters them; only what is entered counts as written."""
    records = [future.result() for future in writing]
    journal.writelines(json.dumps(record) + "\n" for record in records)
    journal.flush()
    os.fsync(journal.fileno())
    for record in records:
        tally.add(record)


def _write_sample(out: Path, block: Block, row: int, suffix: str) -> Record:
    """Writes one image and one mask. A part of a file does no harm: it was never entered."""
    name = _name(block.start + row)
    image, mask = encode(block.images[row], f".{suffix}"), encode(block.masks[row])
    (out / "images" / f"{name}.{suffix}").write_bytes(image)
    (out / "masks" / f"{name}.png").write_bytes(mask)
    return {
        "name": name,
        "seed": int(block.seeds[row]),
        "label": int(block.labels[row]),
        "confidence": round(float(block.confidence[row]), 4),
        "attempts": int(block.attempts[row]),
        "removed": block.removed[row].tolist(),
        "sha256": [hashlib.sha256(image).hexdigest(), hashlib.sha256(mask).hexdigest()],
    }


def _check_space(out: Path, stream: Stream, count: int, suffix: str, quiet: bool) -> None:
    """Says what the samples will take, and refuses if the disk has less."""
    height, width = stream.size
    needed = int(count * (height * width * (3 * COMPRESSED[suffix] + 0.2) + SLACK_BYTES))
    say(
        f"synth: {count} pairs of {height} x {width} px to {out}, at most {needed / 1e6:.0f} MB",
        quiet=quiet,
    )
    if needed > free_bytes(out):
        raise InputError(
            f"{out}: {count} pairs take up to {needed / 1e6:.0f} MB, but only "
            f"{free_bytes(out) / 1e6:.0f} MB are free. Make room, or ask for fewer."
        )


@contextlib.contextmanager
def _full_disk_explained(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise InputError(
            f"{out}: the disk is full. What was written stays; make room and give the same "
            "command again."
        ) from error


def _describe(stream: Stream, tally: _Tally) -> dict[str, Any]:
    """dataset.json: what a reader of the folder must know, and where it comes from."""
    info = stream.generator.info
    return {
        "format": FORMAT,
        "latentseg": __version__,
        "classes": list(stream.classes),
        "ignore": IGNORE,
        "foreground": None,
        "size": list(stream.size),
        "count": tally.count,
        "seed": stream.seed,
        "candidates": tally.candidates,
        "removed": dict(zip(stream.labeler.filters, tally.removed, strict=True)),
        "licence": info.licence,
        "generator": info.to_json(),
        "labeler": stream.labeler.info,
    }
