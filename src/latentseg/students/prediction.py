"""Masks of any number of photos, of any size, in bounded memory; a bad photo stops no other."""

import contextlib
import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError, LatentsegError
from latentseg.files import atomic, locked
from latentseg.images import (
    PLAIN,
    Pixels,
    Reading,
    cut_out,
    overlay,
    read_image,
    size_of,
    with_range,
    write_image,
    write_mask,
)
from latentseg.progress import Progress, say
from latentseg.students.edges import check_radius
from latentseg.students.photo_names import NamedPhoto, name_photos
from latentseg.students.prediction_records import Record, Records, annotate, write_coco
from latentseg.students.segmenter import WHOLE, Scores, Segmenter, View, check_scales
from latentseg.students.tiling import OVERLAP, by_strips, check_tiling

RECORDS = "predictions.jsonl"
COCO = "annotations.json"
SUFFIXES = {
    "masks": "_mask.png",
    "overlays": "_overlay.jpg",
    "cutouts": "_cutout.png",
    "scores": "_scores.npy",
}
OUTPUTS = (*SUFFIXES, "coco")
DEFAULT_OUTPUTS = ("masks", "overlays", "cutouts")
CHUNK = 16  # photos that are read together; at most three times as many are in memory
CHUNK_PIXELS = 64_000_000  # of their photos together, unless one alone has more
THREADS = min(8, os.cpu_count() or 1)


def predict_files(
    segmenter: Segmenter,
    photos: Sequence[Path | str],
    out: Path | str,
    *,
    outputs: Sequence[str] = DEFAULT_OUTPUTS,
    flip: bool = False,
    scales: Sequence[float] = WHOLE,
    edges: int | None = None,
    tile: int | None = None,
    tile_overlap: float = OVERLAP,
    reading: Reading = PLAIN,
    quiet: bool = False,
) -> tuple[list[Path], list[str]]:
    """Segments photos, whatever their number and size; the same call continues interrupted work.

    A photo NAME.* gives NAME_mask.png (class ids, with a palette), NAME_overlay.jpg,
    NAME_cutout.png (transparent where there is background) and NAME_scores.npy (probabilities
    (K + 1, H, W) float32); all photos together give annotations.json, in COCO's format with
    run-length masks and scores. NAME has the sub-folders of the photo. predictions.jsonl has a line
    for each photo.

    Photos are read ahead, and results written behind, by threads. Photos go through the networks in
    groups that depend only on the list of photos, so that a job that was interrupted and continued
    writes the same bytes. Beside `Segmenter.predict` of a single photo, scores differ by rounding.

    Photos that were segmented before by the same segmenter with the same options are not segmented
    again, as long as photo and results are in place, except together with up to 15 neighbours that
    are not finished.

    Args:
        segmenter: What finds the masks.
        photos: Photos, folders of photos, and lists of photos; see `name_photos`.
        out: Folder of the results, made if missing.
        outputs: What is written, of `OUTPUTS`.
        flip: Average with the mirror image.
        scales: Average over the photo at these multiples of the input size.
        edges: Let masks follow the edges of the photo; see `Segmenter.predict`.
        tile: See large photos in windows of this many photo pixels; see `Segmenter.predict`.
        tile_overlap: Share of a window that its neighbour shows again.
        reading: How photos become images where there is a choice; of many that have more than 8
            bits black and white are chosen for all of them alike.
        quiet: No progress line.

    Returns:
        The photos that were segmented, now or before, and a message for each that could not be,
        pictures of formats that are not read included.

    Raises:
        InputError: an unknown output, an unusable tile, a folder without photos, results that would
            lie among the photos or replace one, two photos whose results would have one name, or
            no room on the disk.
    """
    out = Path(out)
    _check_outputs(outputs)
    options = PhotoOptions(flip, tuple(scales), edges, tile, tile_overlap)
    options.check(segmenter)
    found = name_photos(photos, out, reading)
    named = found.photos
    reading, note = with_range(reading, [photo.path for photo in named])
    task = _Task(segmenter, out, tuple(outputs), options, reading)
    _refuse_replacing(named, task)
    problems: dict[NamedPhoto, str] = {}
    if note:
        say(f"predict: {note}", quiet=quiet)
    say(f"predict: {len(named)} photos; {', '.join(outputs)} to {out}", quiet=quiet)
    with (
        locked(out),
        Records(out / RECORDS) as records,
        ThreadPoolExecutor(THREADS) as readers,
        ThreadPoolExecutor(THREADS) as writers,
        Progress("predict", total=len(named), quiet=quiet) as progress,
    ):
        writing: list[Future[Record]] = []
        n_finished = 0
        for chunk, being_read in _read_ahead(named, task, records, readers):
            if being_read is None:
                n_finished += len(chunk)
                progress.start += len(chunk)
            else:
                read = _successes(chunk, being_read, problems)
                writing, written = _segment(read, task, writers), writing
                n_finished += _enter(written, records)
            _report(progress, n_finished, len(problems))
        n_finished += _enter(writing, records)
        _report(progress, n_finished, len(problems))
        segmented = [photo for photo in named if photo not in problems]
        if "coco" in outputs:
            write_coco(out / COCO, segmented, records, segmenter.classes)
    return [photo.path for photo in segmented], [*problems.values(), *found.left_out]


@dataclass(frozen=True)
class PhotoOptions:
    """How each photo is looked at; see `Segmenter.predict`."""

    flip: bool
    scales: tuple[float, ...]
    edges: int | None
    tile: int | None
    tile_overlap: float

    def check(self, segmenter: Segmenter) -> None:
        """Refuses what the segmenter cannot do, before any photo is read.

        Raises:
            InputError: a value is out of range.
        """
        check_scales(self.scales)
        check_radius(self.edges)
        check_tiling(self.tile, self.tile_overlap, min(segmenter.input_size))


@dataclass(frozen=True)
class _Read:
    """A photo that was read: as the networks see it and, if results show it, as it is."""

    photo: NamedPhoto
    stamp: list[int] | None
    view: View
    image: Pixels | None


@dataclass(frozen=True)
class _Task:
    """What is asked for, of every photo alike."""

    segmenter: Segmenter
    out: Path
    outputs: tuple[str, ...]
    options: "PhotoOptions"
    reading: Reading

    @cached_property
    def settings(self) -> str:
        """A digest of all that answers depend on, beside the photo."""
        segmenter, options = self.segmenter, self.options
        settings = {
            "segmenter": segmenter.digest,
            "classes": segmenter.classes,
            "input_size": segmenter.input_size,
            "threshold": segmenter.threshold,
            "flip": options.flip,
            "scales": options.scales,
            "edges": options.edges,
            "tile": None if options.tile is None else [options.tile, options.tile_overlap],
            **self.reading.chosen,
        }
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def files(self, photo: NamedPhoto) -> dict[str, str]:
        """The files of a photo below the folder of the results, by output."""
        return {name: photo.name + SUFFIXES[name] for name in self.outputs if name in SUFFIXES}

    def find_finished(self, photo: NamedPhoto, records: Records) -> Record | None:
        """The record of a photo of which everything is there that is asked for."""
        record, files = records.find(photo.name), self.files(photo).values()
        if (
            record is not None
            and record["settings"] == self.settings
            and record["photo"] == os.path.abspath(photo.path)
            and record["stamp"] == _stamp(photo.path)
            and set(files) <= set(record["files"])
            and ("coco" not in self.outputs or record["annotations"] is not None)
            and all((self.out / file).is_file() for file in files)
        ):
            return record
        return None

    def read(self, photo: NamedPhoto) -> _Read:
        """Reads a photo and scales it."""
        stamp = _stamp(photo.path)
        image = read_image(photo.path, self.reading, photo.page)
        view = self.segmenter.view(
            image,
            edges=self.options.edges,
            tile=self.options.tile,
            tile_overlap=self.options.tile_overlap,
        )
        is_shown = not {"overlays", "cutouts"}.isdisjoint(self.outputs)
        return _Read(photo, stamp, view, image if is_shown else None)

    def collect(self, read: _Read, strips: Iterable[Tensor]) -> tuple[Pixels, dict[int, float]]:
        """The mask, and the mean probability of each class where it was found; writes the scores.

        Everything that needs the scores happens here, so that there is never more than a strip.
        """
        n_classes, (height, width) = len(self.segmenter.classes) + 1, read.view.size
        mask = np.empty((height, width), np.uint8)
        sums, counts = torch.zeros(2, n_classes, dtype=torch.float64)
        with contextlib.ExitStack() as stack:
            put = None
            if "scores" in self.outputs:
                path = self.out / self.files(read.photo)["scores"]
                put = stack.enter_context(_scores_file(path, (n_classes, height, width)))
            top = 0
            for strip in strips:
                ids = self.segmenter.decide(strip)
                mask[top : top + len(ids)] = ids.cpu().numpy()
                if put is not None:
                    put(top, strip.cpu().numpy())
                if "coco" in self.outputs:
                    ids = ids.long()
                    chosen = strip.gather(0, ids[None]).flatten().cpu().double()
                    sums += torch.bincount(ids.flatten().cpu(), chosen, n_classes)
                    counts += torch.bincount(ids.flatten().cpu(), minlength=n_classes)
                top += len(ids)
        means = sums / counts
        return mask, {k: float(means[k]) for k in range(1, n_classes) if counts[k] > 0}

    def write(self, read: _Read, mask: Pixels, certainty: dict[int, float]) -> Record:
        """Writes the pictures of a photo; returns its record."""
        files = self.files(read.photo)
        if "masks" in files:
            write_mask(self.out / files["masks"], mask)
        for name, compose in (("overlays", overlay), ("cutouts", cut_out)):
            if name in files and read.image is not None:
                write_image(self.out / files[name], by_strips(compose, read.image, mask))
        return {
            "name": read.photo.name,
            "photo": os.path.abspath(read.photo.path),
            "stamp": read.stamp,
            "settings": self.settings,
            "size": list(read.view.size),
            "files": list(files.values()),
            "annotations": annotate(mask, certainty) if "coco" in self.outputs else None,
        }


def _check_outputs(outputs: Sequence[str]) -> None:
    for name in outputs or [""]:
        if name not in OUTPUTS:
            near = difflib.get_close_matches(name, OUTPUTS, n=1)
            hint = f" Perhaps {near[0]}?" if near else ""
            raise InputError(
                f"`outputs`: expected some of {', '.join(OUTPUTS)}, found {name!r}.{hint}"
            )


def _refuse_replacing(named: Sequence[NamedPhoto], task: _Task) -> None:
    photos = {os.path.abspath(photo.path) for photo in named}
    for photo in named:
        for file in task.files(photo).values():
            if os.path.abspath(task.out / file) in photos:
                raise InputError(
                    f"{photo.path}: its result would replace the photo {task.out / file}. "
                    "Give another folder for the results."
                )


def _stamp(path: Path) -> list[int] | None:
    """Size in bytes and time of change; None of a file that is not there."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return [status.st_size, status.st_mtime_ns]


def _read_ahead(
    named: Sequence[NamedPhoto], task: _Task, records: Records, readers: ThreadPoolExecutor
) -> Iterator[tuple[list[NamedPhoto], list[Future[_Read]] | None]]:
    """Chunks with their photos, or with None if they are finished; the next is being read."""
    ahead: tuple[list[NamedPhoto], list[Future[_Read]] | None] | None = None
    for chunk, is_finished in _chunks(named, task, records):
        reading = None if is_finished else [readers.submit(task.read, photo) for photo in chunk]
        if ahead is not None:
            yield ahead
        ahead = chunk, reading
    if ahead is not None:
        yield ahead


def _chunks(
    named: Sequence[NamedPhoto], task: _Task, records: Records
) -> Iterator[tuple[list[NamedPhoto], bool]]:
    """Neighbours, few enough for memory, and whether all are finished.

    Where a chunk ends must not depend on what is finished: networks round by what is in a batch.
    """
    chunk, pixels, is_finished = [], 0, True
    for photo in named:
        record = task.find_finished(photo, records)
        size = _n_pixels(photo.path) if record is None else math.prod(record["size"])
        if chunk and (len(chunk) == CHUNK or pixels + size > CHUNK_PIXELS):
            yield chunk, is_finished
            chunk, pixels, is_finished = [], 0, True
        chunk, pixels = [*chunk, photo], pixels + size
        is_finished = is_finished and record is not None
    if chunk:
        yield chunk, is_finished


def _n_pixels(path: Path) -> int:
    try:
        return math.prod(size_of(path))
    except LatentsegError:  # which is said when the photo is read
        return 0


def _successes(
    chunk: Sequence[NamedPhoto], reading: Sequence[Future[_Read]], problems: dict[NamedPhoto, str]
) -> list[_Read]:
    """Waits for photos; those that cannot be read are entered among the problems."""
    read = []
    for photo, future in zip(chunk, reading, strict=True):
        try:
            read.append(future.result())
        except LatentsegError as error:
            problems[photo] = str(error)
    return read


def _segment(
    read: Sequence[_Read], task: _Task, writers: ThreadPoolExecutor
) -> list[Future[Record]]:
    """Finds the masks of photos, and gives them to the writers."""
    views = [one.view for one in read]
    return [
        writers.submit(task.write, read[index], *task.collect(read[index], strips))
        for index, strips in task.segmenter.strips(
            views, flip=task.options.flip, scales=task.options.scales
        )
    ]


def _enter(writing: Sequence[Future[Record]], records: Records) -> int:
    """Waits for results and enters them: only then they count as finished. Returns how many."""
    for future in writing:
        records.enter(future.result())
    return len(writing)


def _report(progress: Progress, n_finished: int, n_failed: int) -> None:
    failed = {"failed": str(n_failed)} if n_failed else {}
    progress.update(n_finished + n_failed, **failed)


@contextlib.contextmanager
def _scores_file(
    path: Path, shape: tuple[int, int, int]
) -> Iterator[Callable[[int, Scores], None]]:
    """A .npy file of float32 (C, H, W), atomic; gives a function that puts (C, n, W) at a row."""
    _, height, width = shape
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    with atomic(path) as temporary, open(temporary, "wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
        start = stream.tell()

        def put(top: int, strip: Scores) -> None:
            for index, rows in enumerate(strip):
                stream.seek(start + 4 * (index * height + top) * width)
                stream.write(rows.astype("<f4").tobytes())

        yield put
