"""A stream's first samples as shards, made by any number of workers, in any order, on any machine.

No worker needs to hear of another. Sample i depends only on (seed, i), so a shard has the same
bytes whoever makes it, and it takes its name only when it is whole. Locks merely save work that
would be done twice: a worker holds the shard that it makes, and the lock goes when the process
does. Where the file system has no locks, each worker makes the shards of its own rank.
"""

import json
import multiprocessing
import os
import pickle
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, Literal

import filelock
import numpy as np
import torch

from latentseg.configs import check_choice
from latentseg.datasets.folder import SOFT
from latentseg.datasets.shard_files import DESCRIPTION, Shard, cut, kinds, pack
from latentseg.errors import InputError, LatentsegError, NotFinishedError
from latentseg.files import (
    MANIFEST,
    atomic,
    claim,
    free_bytes,
    guarded,
    read_json,
    refuse_links,
    sha256,
    write_json,
)
from latentseg.generators.protocols import Generator
from latentseg.images import encode
from latentseg.interrupts import HeldInterrupt
from latentseg.labelers.protocols import Labeler
from latentseg.progress import Progress, say
from latentseg.synthesis.stream import Block, Stream
from latentseg.synthesis.writers import (
    COMPRESSED,
    MASK_COMPRESSED,
    SOFT_COMPRESSED,
    describe,
)

WORK = ".work"  # locks, and shards that are not whole yet
MAX_SAMPLES, MAX_BYTES = 1024, 2**28  # of a shard, unless its size is given
TAR_BYTES = 1024  # of header and padding per file
THREADS = 4
POLL_S = 0.5
RECORD = {"sha256", "bytes", "first", "count", "candidates", "removed"}

Record = dict[str, Any]
Files = list[tuple[str, bytes]]  # name, content
Report = Callable[[int, int, int], None]  # shard, samples that are in it, candidates drawn for them


def synthesize_shards(
    generator: Generator,
    labeler: Labeler,
    *,
    count: int,
    out: Path | str,
    seed: int = 0,
    suffix: Literal["png", "jpg"] = "png",
    block: int = 64,
    soft: bool = False,
    shard_size: int | None = None,
    workers: int = 1,
    rank: int = 0,
    world: int = 1,
    quiet: bool = False,
) -> Path:
    """Writes the first `count` samples of a stream as shards: WebDataset tar files.

    The call returns when all shards are whole. It may be given at the same time in other processes
    and on other machines that see the same folder: they share the work and take over the shards of
    those that die. The same call continues interrupted work, makes damaged shards again, and
    extends a finished data set to a larger `count`.

    Every worker computes in one thread, since the last bits of sums depend on the number of
    threads; use as many workers as there are cores. On another kind of processor or with another
    version of torch the last bits may differ.

    Args:
        generator: The generator that the labeler was fitted to.
        labeler: Labels and refuses.
        count: Number of samples.
        out: The folder: shard-NNNNNN.tar with a record of each in shard-NNNNNN.json, dataset.json,
            MANIFEST.json.
        seed: Of all samples; sample i depends only on (seed, i).
        suffix: "png" is lossless; "jpg" of quality 95 is smaller. Masks are always PNG.
        block: Samples that are drawn together.
        soft: Keep class probabilities, too, as `synthesize` does.
        shard_size: Samples in a shard, a multiple of `block`. By default 1024, fewer if they
            would take more than 256 MiB.
        workers: Processes that this call starts; with 1 it works itself. Like all that starts
            processes, a script needs `if __name__ == "__main__":` then.
        rank: Which of `world` equal calls this one is, from 0: it begins with the shards k for
            which k % world == rank, and checks those that are there.
        world: How many such calls there are.
        quiet: Print no progress.

    Returns:
        `out`. The data set is complete, unless the file system has no locks, and ranks other than
        this one are not done yet.

    Raises:
        InputError: `out` holds another or a larger data set; the disk is too small; the filters
            refuse nearly everything; or the labeler knows no probabilities.
        NotFinishedError: workers died.
    """
    out = Path(out)
    check_choice("suffix", suffix, tuple(COMPRESSED))
    for name, value in (("count", count), ("workers", workers)):
        if value < 1:
            raise InputError(f"`{name}`: expected at least 1, found {value}.")
    if not 0 <= rank < world:
        raise InputError(f"`rank`: expected 0 to {world - 1}, found {rank}.")
    stream = Stream(generator, labeler, seed=seed, block=block, soft=soft, is_ahead=False)
    sample_bytes = _bytes_per_sample(stream, suffix)
    shard_size = shard_size or max(min(MAX_SAMPLES, MAX_BYTES // sample_bytes) // block, 1) * block
    if shard_size < 1 or shard_size % block:
        raise InputError(
            f"`shard_size`: expected a multiple of {block}, the samples of a block, "
            f"found {shard_size}."
        )
    job = _Job(out, cut(count, shard_size), suffix, rank, world)
    _claim(job, stream, count, shard_size)
    _forget_changed_records(job)
    missing = sum(shard.count for shard in job.shards if read_record(out, shard) is None)
    _check_space(job, stream, count, missing, sample_bytes, quiet)
    with Progress("synth", total=count, start=count - missing, quiet=quiet) as progress:
        tally = _Tally(progress)
        if workers == 1:
            with _one_thread():
                work(stream, job, tally.add)
        else:
            _supervise(stream, job, workers, tally.add, quiet)
    _finish(stream, job, count, shard_size, quiet)
    return out


@dataclass(frozen=True)
class _Job:
    """What is to be made, and which part of it comes first."""

    out: Path
    shards: tuple[Shard, ...]
    suffix: str
    rank: int
    world: int

    @property
    def own(self) -> tuple[Shard, ...]:
        """The shards of this rank."""
        return self.shards[self.rank :: self.world]


class _Tally:
    """Adds up what workers report, for the progress line."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.done: dict[int, tuple[int, int]] = {}

    def add(self, shard: int, samples: int, candidates: int) -> None:
        """Shard number `shard` holds so many samples by now."""
        self.done[shard] = samples, candidates
        samples, candidates = map(sum, zip(*self.done.values(), strict=True))
        self.progress.update(samples, kept=samples / max(candidates, 1))


def work(stream: Stream, job: _Job, report: Report) -> None:
    """One worker: makes its own shards, then helps with the others until all are whole."""
    with guarded(job.out):
        refuse_links(job.out / WORK)
        (job.out / WORK).mkdir(exist_ok=True)
        _make_all(stream, job, report)


def _make_all(stream: Stream, job: _Job, report: Report) -> None:
    is_shared = _has_locks(job.out / WORK)
    for shard in job.own:
        _forget_damaged(job, shard, is_shared)
    others = [shard for shard in job.shards if shard.index % job.world != job.rank]
    # From their end, which their own workers reach last; without locks they are not ours to make.
    others = others[::-1] if is_shared else []
    left = [*job.own, *others]
    while left := [shard for shard in left if not _settle(stream, job, shard, is_shared, report)]:
        time.sleep(POLL_S)  # somebody holds what is left; should they die, their locks go


def _settle(stream: Stream, job: _Job, shard: Shard, is_shared: bool, report: Report) -> bool:
    """Makes a shard if it is missing; False if another worker is doing so."""
    record = read_record(job.out, shard)
    if record is None:
        with _held(job, shard, is_shared) as is_ours:
            if is_ours:  # by now it may have been made
                record = read_record(job.out, shard) or _make(stream, job, shard, report)
    if record is not None:
        report(shard.index, shard.count, record["candidates"])
    return record is not None


def _make(stream: Stream, job: _Job, shard: Shard, report: Report) -> Record:
    """Draws and writes a shard: first the tar, then its record, which makes it count."""
    (job.out / MANIFEST).unlink(missing_ok=True)
    folder = job.out / WORK / f"{shard.index:06d}"
    shutil.rmtree(folder, ignore_errors=True)  # of a worker that died
    attempts: list[int] = []
    removed = np.zeros(len(stream.labeler.filters), np.int64)

    def members() -> Iterator[tuple[str, bytes]]:
        for block, files in _encoded(stream, shard, job.suffix):
            for file in files:
                yield from file
            attempts.extend(block.attempts[: len(files)].tolist())
            removed[:] += block.removed[: len(files)].sum(axis=0)
            report(shard.index, len(attempts), sum(attempts))

    with atomic(folder / shard.name) as temporary:
        pack(temporary, members())
    record = {
        "sha256": sha256(folder / shard.name),
        "bytes": (folder / shard.name).stat().st_size,
        "first": shard.first,
        "count": shard.count,
        "candidates": sum(attempts),
        "removed": dict(zip(stream.labeler.filters, removed.tolist(), strict=True)),
        "yield": round(shard.count / sum(attempts), 4),
    }
    write_json(folder / shard.record, record)
    os.replace(folder / shard.name, job.out / shard.name)
    os.replace(folder / shard.record, job.out / shard.record)
    shutil.rmtree(folder, ignore_errors=True)
    return record


def _encoded(stream: Stream, shard: Shard, suffix: str) -> Iterator[tuple[Block, list[Files]]]:
    """The blocks of a shard, with the files of each of their samples that belong to it.

    One block is encoded while the next is drawn.
    """
    size, end = stream.block_size, shard.first + shard.count
    with ThreadPoolExecutor(THREADS) as pool:
        encoding: list[tuple[Block, list[Future[Files]]]] = []
        for k in range(shard.first // size, (end - 1) // size + 1):
            block = stream.block(k)
            rows = range(min(end - block.start, len(block)))
            encoding.append((block, [pool.submit(_files, block, row, suffix) for row in rows]))
            if len(encoding) == 2:
                earlier, files = encoding.pop(0)
                yield earlier, [future.result() for future in files]
        for block, files in encoding:
            yield block, [future.result() for future in files]


def _files(block: Block, row: int, suffix: str) -> Files:
    """The files of one sample: image, mask, class probabilities if there are any, record."""
    record = {
        "index": block.start + row,
        "seed": int(block.seeds[row]),
        "label": int(block.labels[row]),
        "confidence": round(float(block.confidence[row]), 4),
        "attempts": int(block.attempts[row]),
        "removed": block.removed[row].tolist(),
    }
    contents = [encode(block.images[row], f".{suffix}"), encode(block.masks[row])]
    if block.soft is not None:
        contents.append(encode(np.concatenate(block.soft[row])))  # (K, H, W) to (K * H, W)
    contents.append(json.dumps(record, allow_nan=False).encode())
    names = [f"{record['index']:08d}.{kind}" for kind in kinds(suffix, block.soft is not None)]
    return list(zip(names, contents, strict=True))


def read_record(out: Path, shard: Shard, *, is_deep: bool = False) -> Record | None:
    """What is known of a shard that is whole; None if it has to be made.

    `is_deep` compares its sha256, too, and not only its size.
    """
    path = out / shard.name
    try:
        record = read_json(out / shard.record)
        is_whole = (
            record.keys() >= RECORD
            and (record["first"], record["count"]) == (shard.first, shard.count)
            and record["bytes"] == path.stat().st_size
            and (not is_deep or record["sha256"] == sha256(path))
        )
    except (LatentsegError, AttributeError, OSError):
        return None
    return record if is_whole else None


def _forget_damaged(job: _Job, shard: Shard, is_shared: bool) -> None:
    """Takes away the record of a shard that has changed, so that it is made again."""
    with _held(job, shard, is_shared) as is_ours:
        if is_ours and read_record(job.out, shard, is_deep=True) is None:
            (job.out / shard.record).unlink(missing_ok=True)


def _forget_changed_records(job: _Job) -> None:
    """The same for records that differ from a finished data set's manifest."""
    with suppress(LatentsegError, AttributeError, KeyError):
        digests = read_json(job.out / MANIFEST)["sha256"]
        for shard in job.shards:
            path = job.out / shard.record
            if path.is_file() and digests.get(shard.record) not in (None, sha256(path)):
                path.unlink(missing_ok=True)


def _has_locks(folder: Path) -> bool:
    try:
        with filelock.FileLock(folder / "probe.lock", blocking=False, fallback_to_soft=False):
            return True
    except filelock.Timeout:
        return True  # another worker is asking at this moment
    except OSError:  # ENOSYS, ENOLCK: some network file systems
        return False


@contextmanager
def _held(job: _Job, shard: Shard, is_shared: bool) -> Iterator[bool]:
    """Holds a shard for this worker, and tells whether that worked."""
    if not is_shared:
        yield True  # by its rank it has no rival
        return
    path = job.out / WORK / f"{shard.index:06d}.lock"
    lock = filelock.FileLock(path, blocking=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _supervise(stream: Stream, job: _Job, workers: int, report: Report, quiet: bool) -> None:
    """Lets processes do the work, and says which of them died.

    Raises:
        NotFinishedError: so many died that shards are missing.
    """
    context = multiprocessing.get_context("spawn")
    ordered = _pickled(stream)
    crew: dict[Connection, SpawnProcess] = {}
    failed = 0
    with HeldInterrupt() as interrupt:
        try:
            for j in range(min(workers, len(job.shards))):
                place = replace(job, rank=job.rank * workers + j, world=job.world * workers)
                ours, theirs = context.Pipe(duplex=False)
                crew[ours] = context.Process(target=_serve, args=(ordered, place, theirs))
                crew[ours].start()
                theirs.close()  # so that the pipe ends with the process
            while crew:
                interrupt.release()
                ready = wait(list(crew), timeout=POLL_S)
                for pipe in [pipe for pipe in crew if pipe in ready]:
                    process = crew[pipe]
                    try:
                        message = pipe.recv()
                    except EOFError:
                        process.join()
                        del crew[pipe]
                        if process.exitcode:
                            failed += 1
                            say(_obituary(process), quiet=quiet)
                        continue
                    if isinstance(message, LatentsegError):
                        raise message
                    report(*message)
        finally:
            for process in crew.values():
                process.terminate()
                process.join()
    left = sum(read_record(job.out, shard) is None for shard in job.shards)
    if failed and left:
        raise NotFinishedError(
            f"{job.out}: {failed} workers died, and {left} of {len(job.shards)} shards are "
            "missing. Give the same command again to make them."
        )


def _pickled(stream: Stream) -> bytes:
    try:
        return pickle.dumps(
            (stream.generator, stream.labeler, stream.seed, stream.block_size, stream.is_soft)
        )
    except Exception as error:  # any that the user's classes raise
        raise InputError(
            f"generator {stream.generator.info.name!r} or its labeler cannot be sent to other "
            f"processes ({error}). Take one worker, and start several such commands at once, for "
            "example with torchrun: they share the work."
        ) from error


def _serve(ordered: bytes, job: _Job, pipe: Connection) -> None:
    """A worker process: reports (shard, samples, candidates), or the error that stopped it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    torch.set_num_threads(1)
    # Made by `_pickled` in the process that started this one; it was never in a file.
    generator, labeler, seed, block, soft = pickle.loads(ordered)  # nosec B301
    stream = Stream(generator, labeler, seed=seed, block=block, soft=soft, is_ahead=False)
    with suppress(BrokenPipeError):  # the process that started it is gone
        try:
            work(stream, job, lambda *progress: pipe.send(progress))
        except LatentsegError as error:
            pipe.send(error)


def _obituary(process: SpawnProcess) -> str:
    code = process.exitcode or 0
    cause = f"was killed ({signal.Signals(-code).name})" if code < 0 else f"failed (exit {code})"
    return f"synth: worker process {process.pid} {cause}; the others take over its shards"


def _claim(job: _Job, stream: Stream, count: int, shard_size: int) -> None:
    """Makes the folder the place of this work, unless it holds another or a larger data set."""
    path = job.out / "config.json"
    asked = {
        "format": "shards",
        "generator": stream.generator.info.to_json(),
        "labeler": stream.labeler.info,
        "seed": stream.seed,
        "suffix": job.suffix,
        "block": stream.block_size,
        SOFT: stream.is_soft,
        "shard_size": shard_size,
        "count": count,
    }
    held = read_json(path).get("count", 0) if path.is_file() else 0
    if held > count:
        raise InputError(
            f"{job.out}: {held} samples were asked for already, more than the {count} now. A part "
            "of a dataset can be used with `limit`; or choose another folder."
        )
    if 0 < held < count:
        (job.out / MANIFEST).unlink(missing_ok=True)
    try:
        claim(job.out, asked, free=("count",))
    except InputError:
        if held or not path.is_file():
            raise
        claim(job.out, asked, free=("count",))  # another worker made it at the same moment


def _bytes_per_sample(stream: Stream, suffix: str) -> int:
    """What a sample takes in a shard, at most."""
    height, width = stream.size
    share = 3 * COMPRESSED[suffix] + MASK_COMPRESSED
    share += len(stream.classes) * SOFT_COMPRESSED * stream.is_soft
    return int(height * width * share) + TAR_BYTES * len(kinds(suffix, stream.is_soft))


def _check_space(
    job: _Job, stream: Stream, count: int, missing: int, sample_bytes: int, quiet: bool
) -> None:
    """Says what the missing samples will take, and refuses if the disk has less."""
    height, width = stream.size
    needed, free = missing * sample_bytes, free_bytes(job.out)
    say(
        f"synth: {count} pairs of {height} x {width} px in {len(job.shards)} shards to {job.out}; "
        f"{missing} are missing, at most {needed / 1e6:.0f} MB",
        quiet=quiet,
    )
    if needed > free:
        raise InputError(
            f"{job.out}: {missing} pairs take up to {needed / 1e6:.0f} MB, but only "
            f"{free / 1e6:.0f} MB are free. Make room, or ask for fewer."
        )


def _finish(stream: Stream, job: _Job, count: int, shard_size: int, quiet: bool) -> None:
    """Describes the data set and writes its manifest, if all shards are there."""
    found = [read_record(job.out, shard) for shard in job.shards]
    records = [record for record in found if record is not None]
    if left := len(found) - len(records):
        say(
            f"synth: {left} shards are left to other ranks, of which the last one finishes",
            quiet=quiet,
        )
        return
    description = describe(
        stream,
        count=count,
        candidates=sum(record["candidates"] for record in records),
        removed={
            name: sum(record["removed"][name] for record in records)
            for name in stream.labeler.filters
        },
    )
    write_json(
        job.out / DESCRIPTION, {**description, "shard_size": shard_size, "suffix": job.suffix}
    )
    digests = {
        "config.json": sha256(job.out / "config.json"),
        DESCRIPTION: sha256(job.out / DESCRIPTION),
    }
    for shard, record in zip(job.shards, records, strict=True):
        digests[shard.record] = sha256(job.out / shard.record)
        digests[shard.name] = record["sha256"]
    write_json(job.out / MANIFEST, {"sha256": digests})
    shutil.rmtree(job.out / WORK, ignore_errors=True)
