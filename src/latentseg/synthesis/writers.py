"""Datasets on disk: a stream's first samples as a folder that is complete and verified."""

import contextlib
import errno
import hashlib
import json
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

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
    write_text,
)
from latentseg.generators.protocols import Generator
from latentseg.images import IGNORE, encode
from latentseg.labelers.protocols import Labeler
from latentseg.progress import Progress, say
from latentseg.synthesis.stream import Block, Stream

FORMAT = 1
RECORDS = "samples.jsonl"
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
        records = _read_records(out)
        if len(records) > count:
            raise InputError(
                f"{out}: holds {len(records)} samples already, more than the {count} asked for. "
                "A part of a dataset can be used with --limit; or choose another folder."
            )
        claim(out, asked)
        if (out / MANIFEST).is_file():
            verify_manifest(out)
            if len(records) == count:
                return out
            (out / MANIFEST).unlink()
        records = _intact(out, records, suffix)
        _check_space(out, stream, count - len(records), suffix, quiet)
        with _full_disk_explained(out):
            _write_samples(out, stream, records, count, suffix, quiet)
            write_json(out / "dataset.json", _describe(stream, records))
            write_manifest(out)
    return out


def _write_samples(
    out: Path, stream: Stream, records: list[Record], count: int, suffix: str, quiet: bool
) -> None:
    """Appends samples until there are `count`; one block is encoded while the next is drawn."""
    entered = {record["name"] for record in records}
    for folder in (out / "images", out / "masks"):
        folder.mkdir(exist_ok=True)
        for path in folder.iterdir():
            if path.stem not in entered:
                path.unlink()  # written just before a kill
    write_text(out / RECORDS, "".join(map(_line, records)))
    start = len(records)
    blocks = range(start // stream.block_size, (count - 1) // stream.block_size + 1)
    with (
        ThreadPoolExecutor(THREADS) as pool,
        Progress("synth", total=count, start=start, quiet=quiet) as progress,
        open(out / RECORDS, "a", encoding="utf-8") as journal,
    ):
        writing: list[Future[Record]] = []
        for k in blocks if start < count else []:
            block = stream.block(k)
            _record(writing, records, journal)
            rows = range(max(len(records) - block.start, 0), min(count - block.start, len(block)))
            writing = [pool.submit(_write_sample, out, block, row, suffix) for row in rows]
            progress.update(block.start + rows.stop, kept=len(block) / int(block.attempts.sum()))
        _record(writing, records, journal)


def _record(writing: list[Future[Record]], records: list[Record], journal: Any) -> None:
    """Waits for samples to be written and enters them; only what is entered counts as written."""
    written = [future.result() for future in writing]
    journal.writelines(map(_line, written))
    journal.flush()
    os.fsync(journal.fileno())
    records.extend(written)


def _write_sample(out: Path, block: Block, row: int, suffix: str) -> Record:
    """Writes one image and one mask. A part of a file does no harm: it was never entered."""
    name = f"{block.start + row:08d}"
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


def _line(record: Record) -> str:
    return json.dumps(record) + "\n"


def _read_records(out: Path) -> list[Record]:
    """What was entered so far; a last line that a kill cut off does not count."""
    path = out / RECORDS
    if not path.is_file():
        return []
    records: list[Record] = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            break
        if not isinstance(record, dict) or record.get("name") != f"{len(records):08d}":
            break
        records.append(record)
    return records


def _intact(out: Path, records: list[Record], suffix: str) -> list[Record]:
    """The records up to the first whose files are missing or differ from what was entered."""
    for i, record in enumerate(records):
        name = record["name"]
        paths = [out / "images" / f"{name}.{suffix}", out / "masks" / f"{name}.png"]
        if not all(path.is_file() for path in paths) or record["sha256"] != [*map(sha256, paths)]:
            return records[:i]
    return records


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


def _describe(stream: Stream, records: list[Record]) -> dict[str, Any]:
    """dataset.json: what a reader of the folder must know, and where it comes from."""
    info = stream.generator.info
    removed = [sum(counts) for counts in zip(*(r["removed"] for r in records), strict=True)]
    return {
        "format": FORMAT,
        "latentseg": __version__,
        "classes": list(stream.classes),
        "ignore": IGNORE,
        "foreground": None,
        "size": list(stream.size),
        "count": len(records),
        "seed": stream.seed,
        "candidates": sum(record["attempts"] for record in records),
        "removed": dict(zip(stream.labeler.filters, removed, strict=True)),
        "licence": info.licence,
        "generator": info.to_json(),
        "labeler": stream.labeler.info,
    }
