"""Which photos are meant by files, folders and lists, and what their results are called."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from latentseg.errors import InputError
from latentseg.files import read_bytes
from latentseg.images import SUFFIXES

LIST_SUFFIX = ".txt"
STDIN = "-"


@dataclass(frozen=True)
class NamedPhoto:
    """A photo, and the name of its results.

    Attributes:
        path: As it was given or found.
        name: Without suffix; with sub-folders below the folder that was given ("summer/cat").
    """

    path: Path
    name: str

    @property
    def file_name(self) -> str:
        """The name with the suffix of the photo."""
        return self.name + self.path.suffix


def name_photos(sources: Sequence[Path | str], out: Path | str) -> list[NamedPhoto]:
    """All photos of files, folders and lists, each once, in the order given; folders by name.

    Args:
        sources: Photos; folders, with all folders in them, hidden ones left out; lists of photos: a
            .txt file, or "-" for stdin, with a path per line, or between NUL bytes.
            A list's names begin below the deepest folder that holds all its photos.
        out: Folder of the results; inside a folder of photos, it is left out.

    Raises:
        InputError: nothing to segment, `out` holds the photos, a folder or list cannot be read, or
            two photos whose results would have one name.
    """
    found: dict[str, NamedPhoto] = {}
    by_name: dict[str, NamedPhoto] = {}
    for source in sources:
        for photo in _photos_of(Path(source), Path(out)):
            if os.path.abspath(photo.path) in found:
                continue
            found[os.path.abspath(photo.path)] = photo
            other = by_name.setdefault(photo.name, photo)
            if other is not photo:
                raise InputError(
                    f"{other.path} and {photo.path}: their results would have one name. Give them "
                    "one by one, with different output folders."
                )
    return list(found.values())


def _photos_of(source: Path, out: Path) -> Iterator[NamedPhoto]:
    if source.is_dir():
        yield from _photos_below(source, out)
    elif str(source) == STDIN or source.suffix.lower() == LIST_SUFFIX:
        yield from _listed_photos(source)
    else:
        yield NamedPhoto(source, source.stem)


def _photos_below(folder: Path, out: Path) -> Iterator[NamedPhoto]:
    if folder.resolve() == out.resolve():
        raise InputError(f"{out}: holds the photos. Give another folder for the results.")
    is_empty = True
    for place, folders, files in os.walk(folder, onerror=_refuse_unreadable):
        folders[:] = sorted(
            name
            for name in folders
            if not name.startswith(".") and Path(place, name).resolve() != out.resolve()
        )
        for name in sorted(files):
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and not name.startswith("."):
                is_empty = False
                yield NamedPhoto(path, path.relative_to(folder).with_suffix("").as_posix())
    if is_empty:
        raise InputError(f"{folder}: no images ({', '.join(SUFFIXES)}) in it or in its folders.")


def _refuse_unreadable(error: OSError) -> None:
    raise InputError(f"{error.filename}: cannot be listed ({error.strerror}).") from error


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
        yield NamedPhoto(path, below.with_suffix("").as_posix())
