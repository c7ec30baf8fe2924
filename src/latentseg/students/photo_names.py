"""Which photos are meant by files, folders and lists, and what their results are called."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from latentseg.errors import InputError, LatentsegError
from latentseg.files import read_bytes
from latentseg.images import (
    PLAIN,
    SUFFIXES,
    Reading,
    is_stack,
    list_pictures,
    name_of,
    page_name,
    pages_of,
)

LIST_SUFFIX = ".txt"
STDIN = "-"


@dataclass(frozen=True)
class NamedPhoto:
    """A photo, and the name of its results.

    Attributes:
        path: As it was given or found.
        name: Without suffix; with sub-folders below the folder that was given ("summer/cat"). With
            suffix where another photo differs in nothing else; with the number of its page.
        page: Which page of a stack, from 0; None where there are no pages.
    """

    path: Path
    name: str
    page: int | None = None

    @property
    def file_name(self) -> str:
        """The name with the suffix of the photo."""
        return self.name if self.name.endswith(self.path.suffix) else self.name + self.path.suffix


@dataclass(frozen=True)
class NamedPhotos:
    """What is to be segmented.

    Attributes:
        photos: In order.
        left_out: A message for each picture in the folders that is of a format that is not read.
    """

    photos: tuple[NamedPhoto, ...]
    left_out: tuple[str, ...]


def name_photos(
    sources: Sequence[Path | str], out: Path | str, reading: Reading = PLAIN
) -> NamedPhotos:
    """All photos of files, folders and lists, each once, in the order given; folders by name.

    Photos of one name and two suffixes are called with their suffix. Of a stack each page is a
    photo of its own: scan_0001, scan_0002, ...

    Args:
        sources: Photos; folders, with all folders in them, hidden ones left out; lists of photos: a
            .txt file, or "-" for stdin, with a path per line, or between NUL bytes.
            A list's names begin below the deepest folder that holds all its photos.
        out: Folder of the results; inside a folder of photos, it is left out.
        reading: Says which page of a stack is meant, if not all.

    Raises:
        InputError: nothing to segment, `out` holds the photos, a folder or list cannot be read, or
            two photos whose results would have one name.
    """
    found: dict[str, NamedPhoto] = {}
    left_out: list[str] = []
    for source in sources:
        for photo in _photos_of(Path(source), Path(out), left_out):
            found.setdefault(os.path.abspath(photo.path), photo)
    photos = [
        replace(photo, name=photo.name + page_name(page), page=page)
        for photo in _told_apart([*found.values()])
        for page in _pages(photo.path, reading)
    ]
    by_name: dict[str, NamedPhoto] = {}
    for photo in photos:
        other = by_name.setdefault(photo.name, photo)
        if other is not photo:
            raise InputError(
                f"{other.path} and {photo.path}: their results would have one name. Give them "
                "one by one, with different output folders."
            )
    return NamedPhotos(tuple(photos), tuple(left_out))


def _told_apart(photos: Sequence[NamedPhoto]) -> list[NamedPhoto]:
    """The photos; those of one name with their suffixes, if these differ."""
    counts = Counter(photo.name for photo in photos)
    return [
        replace(photo, name=photo.file_name) if counts[photo.name] > 1 else photo
        for photo in photos
    ]


def _pages(path: Path, reading: Reading) -> list[int | None]:
    """The pages to be segmented; what is wrong with a file is said when it is read."""
    if not is_stack(path):
        return [None]
    try:
        return pages_of(path, reading)
    except LatentsegError:
        return [None]


def _photos_of(source: Path, out: Path, left_out: list[str]) -> Iterator[NamedPhoto]:
    if source.is_dir():
        yield from _photos_below(source, out, left_out)
    elif str(source) == STDIN or source.suffix.lower() == LIST_SUFFIX:
        yield from _listed_photos(source)
    else:
        yield NamedPhoto(source, name_of(Path(source.name)))


def _photos_below(folder: Path, out: Path, left_out: list[str]) -> Iterator[NamedPhoto]:
    if folder.resolve() == out.resolve():
        raise InputError(f"{out}: holds the photos. Give another folder for the results.")
    found = list_pictures(folder, without=out)
    if not found.paths and not found.left_out:
        raise InputError(f"{folder}: no images ({', '.join(SUFFIXES)}) in it or in its folders.")
    left_out += found.problems
    for path in found.paths:
        yield NamedPhoto(path, name_of(path.relative_to(folder)))


def _listed_photos(source: Path) -> Iterator[NamedPhoto]:
    content = sys.stdin.buffer.read() if str(source) == STDIN else read_bytes(source)
    separator = b"\0" if b"\0" in content else b"\n"
    lines = content.removeprefix(b"\xef\xbb\xbf").split(separator)
    paths = [Path(os.fsdecode(line.strip(b"\r\n"))) for line in lines if line.strip()]
    if not paths:
        raise InputError(f"{source}: an empty list. Expected the path of a photo on each line.")
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    for path in paths:
        below = Path(os.path.relpath(os.path.abspath(path), folder))
        yield NamedPhoto(path, name_of(below))
