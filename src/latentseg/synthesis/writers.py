"""Datasets on disk: a stream's first samples as a folder that is complete and verified."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from latentseg.configs import check_choice
from latentseg.datasets.folder import SOFT
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import (
    MANIFEST,
    claim,
    free_bytes,
    locked,
    open_in_place,
    open_regular,
    refuse_links,
    sha256,
    truncate,
    verify_manifest,
    write_json,
    write_manifest,
)
from latentseg.generators.protocols import Generator
from latentseg.images import IGNORE, encode
from latentseg.labelers.protocols import Labeler
from latentseg.plain_data import parse_json
from latentseg.progress import Progress, say
from latentseg.synthesis.stream import Block, Stream
from latentseg.version import __version__

FORMAT = 1
RECORDS = "samples.jsonl"
FIELDS = {"name": str, "seed": int, "attempts": int, "removed": list, "sha256": list}  # of a line
THREADS = 4
COMPRESSED = {
    "png": 0.9,
    "jpg": 0.25,
}  # share of the raw bytes, seldom exceeded by generated images
MASK_COMPRESSED, SOFT_COMPRESSED = 0.2, 0.5  # the same of a mask, and of a class's probabilities
SLACK_BYTES = 4096  # a file does not end at a block of the disk

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
    soft: bool = False,
    quiet: bool = False,
) -> Path:
    """Writes the first `count` samples of a stream as a dataset folder.

    The same call continues interrupted work; a larger `count` extends a finished dataset. The
    folder has a MANIFEST.json only while it is complete.

    Args:
        generator: The generator that the labeler was fitted to.
        labeler: Labels and refuses.
        count: Number of samples.
        out: The folder: images/, masks/, soft/ if asked for, dataset.json, samples.jsonl (where
            each sample comes from), MANIFEST.json.
        seed: Of all samples; sample i depends only on (seed, i).
        suffix: "png" is lossless; "jpg" of quality 95 is smaller. Masks are always PNG.
        block: Samples that are drawn together.
        soft: Keep class probabilities, too, for a student that learns from them (Tritrong 2021).
            soft/NAME.png has the levels of all classes but the background (see `to_levels`), one
            (H, W) picture below the other.
        quiet: Print no progress.

    Returns:
        `out`.

    Raises:
        InputError: `out` holds another or a larger dataset; the disk is too small; the filters
            refuse nearly everything; or the labeler knows no probabilities.
        CorruptFileError: a finished dataset has changed since.
    """
    out = Path(out)
    check_choice("suffix", suffix, tuple(COMPRESSED))
    if count < 1:
        raise InputError(f"`count`: expected at least 1, found {count}.")
    stream = Stream(generator, labeler, seed=seed, block=block, soft=soft)
    asked: dict[str, Any] = {
        "generator": generator.info.to_json(),
        "labeler": labeler.info,
        "seed": seed,
        "suffix": suffix,
        "block": block,
    }
    if soft:
        asked[SOFT] = True
    with locked(out):
        claim(out, asked)
        is_finished = (out / MANIFEST).is_file()
        if is_finished:
            verify_manifest(out)
        tally = _resume(out, suffix, soft, n_filters=len(labeler.filters))
        if tally.count > count:
            raise InputError(
                f"{out}: holds {tally.count} samples already, more than the {count} asked for. "
                "A part of a dataset can be used with `limit`; or choose another folder."
            )
        if is_finished and tally.count == count:
            return out
        _check_space(out, stream, count - tally.count, suffix, quiet)
        (out / MANIFEST).unlink(missing_ok=True)
        with _full_disk_explained(out):
            _write_samples(out, stream, tally, count, suffix, quiet)
            removed = dict(zip(labeler.filters, tally.removed, strict=True))
            write_json(
                out / "dataset.json",
                describe(stream, count=count, candidates=tally.candidates, removed=removed),
            )
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


def _resume(out: Path, suffix: str, soft: bool, *, n_filters: int) -> _Tally:
    """Counts what was entered and is intact; forgets the rest, like a line that a kill cut off."""
    tally, end = _Tally(), 0
    path = out / RECORDS
    if path.is_file():
        with open_regular(path) as journal:
            for line in journal:
                record = _parse(line)
                if record.get("name") != _name(tally.count):
                    break
                if len(record["removed"]) != n_filters:
                    break
                if not _is_intact(_paths(out, record["name"], suffix, soft), record):
                    break
                tally.add(record)
                end += len(line)
        truncate(path, end)
    return tally


def _parse(line: bytes) -> Record:
    try:
        record = parse_json(line)
    except ValueError:
        return {}
    is_whole = (
        line.endswith(b"\n")
        and isinstance(record, dict)
        and all(type(record.get(name)) is kind for name, kind in FIELDS.items())
        and all(type(count) is int for count in record["removed"])
    )
    return record if is_whole else {}


def read_records(dataset: Path) -> list[Record]:
    """Where each sample of a finished dataset comes from, in their order.

    Raises:
        CorruptFileError: a line is not the record of a sample.
    """
    path = dataset / RECORDS
    with open_regular(path) as journal:
        records = [_parse(line) for line in journal]
    if {} in records:
        raise CorruptFileError(f"{path}:{records.index({}) + 1}: not the record of a sample.")
    return records


def _name(index: int) -> str:
    return f"{index:08d}"


def _paths(out: Path, name: str, suffix: str, soft: bool) -> list[Path]:
    """The files of a sample: image, mask, and class probabilities if there are any."""
    paths = [out / "images" / f"{name}.{suffix}", out / "masks" / f"{name}.png"]
    return [*paths, out / SOFT / f"{name}.png"] if soft else paths


def _is_intact(paths: list[Path], record: Record) -> bool:
    """Whether the files of a sample are there and as they were when it was entered."""
    return all(path.is_file() for path in paths) and record["sha256"] == [*map(sha256, paths)]


def _write_samples(
    out: Path, stream: Stream, tally: _Tally, count: int, suffix: str, quiet: bool
) -> None:
    """Appends samples until there are `count`; one block is encoded while the next is drawn."""
    for folder in [path.parent for path in _paths(out, "", suffix, stream.is_soft)]:
        refuse_links(folder)
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.stem >= _name(tally.count):
                path.unlink()  # written just before a kill, and never entered
    blocks = range(tally.count // stream.block_size, (count - 1) // stream.block_size + 1)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress("synth", total=count, start=tally.count, quiet=quiet) as progress,
        open_in_place(out / RECORDS, "ab") as journal,
    ):
        writing: list[Future[Record]] = []
        for k in blocks if tally.count < count else []:
            block = stream.block(k)
            _enter(writing, tally, journal)
            rows = range(max(tally.count - block.start, 0), min(count - block.start, len(block)))
            writing = [pool.submit(_write_sample, out, block, row, suffix) for row in rows]
            progress.update(block.start + rows.stop, kept=len(block) / int(block.attempts.sum()))
        _enter(writing, tally, journal)


def _enter(writing: list[Future[Record]], tally: _Tally, journal: BinaryIO) -> None:
    """Waits for samples to be written and enters them; only what is entered counts as written."""
    records = [future.result() for future in writing]
    journal.writelines(f"{json.dumps(record)}\n".encode() for record in records)
    journal.flush()
    os.fsync(journal.fileno())
    for record in records:
        tally.add(record)


def _write_sample(out: Path, block: Block, row: int, suffix: str) -> Record:
    """Writes the files of one sample. A part of a file does no harm: it was never entered."""
    name = _name(block.start + row)
    files = [encode(block.images[row], f".{suffix}"), encode(block.masks[row])]
    if block.soft is not None:
        files.append(encode(np.concatenate(block.soft[row])))  # (K, H, W) to (K * H, W)
    for path, file in zip(_paths(out, name, suffix, block.soft is not None), files, strict=True):
        with open_in_place(path, "wb") as stream:
            stream.write(file)
    return {
        "name": name,
        "seed": int(block.seeds[row]),
        "label": int(block.labels[row]),
        "confidence": round(float(block.confidence[row]), 4),
        "attempts": int(block.attempts[row]),
        "removed": block.removed[row].tolist(),
        "sha256": [hashlib.sha256(file).hexdigest() for file in files],
    }


def _check_space(out: Path, stream: Stream, count: int, suffix: str, quiet: bool) -> None:
    """Says what the samples will take, and refuses if the disk has less."""
    height, width = stream.size
    share = 3 * COMPRESSED[suffix] + MASK_COMPRESSED
    if stream.is_soft:
        share += len(stream.classes) * SOFT_COMPRESSED
    slack = SLACK_BYTES * len(_paths(out, "", suffix, stream.is_soft))
    needed = int(count * (height * width * share + slack))
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


def describe(
    stream: Stream, *, count: int, candidates: int, removed: Mapping[str, int]
) -> dict[str, Any]:
    """What dataset.json says: what a reader must know, and where the samples come from.

    Args:
        stream: What was written.
        count: How many samples of it.
        candidates: How many were drawn for them.
        removed: How many of those each filter refused.
    """
    info = stream.generator.info
    description = {
        "format": FORMAT,
        "latentseg": __version__,
        "classes": list(stream.classes),
        "ignore": IGNORE,
        "foreground": None,
        "size": list(stream.size),
        "count": count,
        "seed": stream.seed,
        "candidates": candidates,
        "removed": dict(removed),
        "licence": info.licence,
        "generator": info.to_json(),
        "labeler": stream.labeler.info,
    }
    return {**description, SOFT: True} if stream.is_soft else description
