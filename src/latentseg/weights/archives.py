"""Archives in which checkpoints are passed on: .zip, .whl, .tar, .tar.gz, .gz."""

import gzip
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO

from latentseg.errors import CorruptFileError, InputError, UnsafeFileError

SUFFIXES = {".pt", ".pth", ".pkl", ".ckpt", ".model", ".safetensors", ".tar", ".zip", ".gz", ".xml"}
MAX_MEMBERS = 100_000
# Weights hardly shrink in an archive: what unfolds further is a trap.
MOST_TIMES, SMALL_BYTES = 20, 2**28
CHUNK = 2**20
ZIP, GZIP, TAR, TAR_AT = b"PK\x03\x04", b"\x1f\x8b", b"ustar", 257
DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, ValueError, zlib.error,
           NotImplementedError, RuntimeError)  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A plain file in an archive.

    Attributes:
        name: With its folders, as the archive has it.
        open: Opens its content.
    """

    name: str
    open: Callable[[], IO[bytes] | gzip.GzipFile]


def is_archive(path: Path) -> bool:
    """Whether a file is an archive of files; those of torch.save, which are zips, are not."""
    with open(path, "rb") as stream:
        start = stream.read(TAR_AT + len(TAR))
    if start.startswith(GZIP) or start[TAR_AT:] == TAR:
        return True
    return start.startswith(ZIP) and not _is_torch(path)


def _is_torch(path: Path) -> bool:
    with _explained(path), zipfile.ZipFile(path) as archive:
        last = {PurePosixPath(name).name for name in archive.namelist()}
    # A file that torch cut off still is no archive; nor are its programs.
    return bool(last & {"data.pkl", "constants.pkl", "archive_format"})


@contextmanager
def unpacked(path: Path, part: str | None = None) -> Iterator[Path]:
    """The one checkpoint in an archive, as a file in a folder that goes away again.

    Args:
        path: The archive.
        part: What its name ends with, where there are several.

    Raises:
        InputError: there is none, or there are several; they are named.
        UnsafeFileError: it unfolds to many times its size.
        CorruptFileError: it is damaged.
    """
    with TemporaryDirectory(prefix="latentseg-") as folder:
        with _explained(path), _members(path) as members:
            yielded = _unpack(members, path, Path(folder), part)
        yield yielded


def _unpack(members: list[Member], path: Path, folder: Path, part: str | None) -> Path:
    by_name = {member.name: member for member in members}
    chosen = choose(list(by_name), path, part)
    room = MOST_TIMES * path.stat().st_size + SMALL_BYTES
    for name in _companions(chosen, list(by_name)):
        # The name in the archive never becomes a path: only its last part is used.
        room -= _copy(by_name[name], folder / PurePosixPath(name).name, room, path)
    return folder / PurePosixPath(chosen).name


def choose(names: list[str], where: Path, part: str | None = None) -> str:
    """Which of `names` is the checkpoint.

    Raises:
        InputError: none is, or several are; they are named.
    """
    if len(names) == 1:
        return names[0]
    found = [name for name in names if is_candidate(name, names)]
    fitting = [name for name in found if part is None or name.endswith(part)]
    folders = {PurePosixPath(name).parent for name in fitting}
    if fitting and len(folders) == 1 and all(name.endswith(".xml") for name in fitting):
        return fitting[0]  # the networks of one folder belong together
    if len(fitting) == 1:
        return fitting[0]
    shown = ", ".join(sorted(found)[:8]) or "none"
    what = "several checkpoints" if len(fitting) > 1 else "no such checkpoint"
    raise InputError(
        f"{where}: holds {what}. There are: {shown}. Say which: `options` file=NAME"
        if found
        else f"{where}: holds no checkpoint: nothing in it ends in {', '.join(sorted(SUFFIXES))}."
    )


def is_candidate(name: str, names: list[str]) -> bool:
    """Whether `name`, among all `names`, may be that of a checkpoint."""
    path = PurePosixPath(name)
    if path.name.startswith(".") or path.suffix.lower() not in SUFFIXES:
        return False
    return path.suffix != ".xml" or str(path.with_suffix(".bin")) in names


def _companions(chosen: str, names: list[str]) -> list[str]:
    """`chosen`, and the files that belong to it: all networks of OpenVINO in its folder."""
    if not chosen.endswith(".xml"):
        return [chosen]
    folder = PurePosixPath(chosen).parent
    return [
        name
        for name in names
        if PurePosixPath(name).parent == folder and name.endswith((".xml", ".bin"))
    ]


def _copy(member: Member, target: Path, room: int, where: Path) -> int:
    n_bytes = 0
    with member.open() as source, open(target, "xb") as stream:
        while chunk := source.read(CHUNK):
            n_bytes += len(chunk)
            if n_bytes > room:
                raise UnsafeFileError(f"{where}: {member.name!r} unfolds to many times its size.")
            stream.write(chunk)
    return n_bytes


@contextmanager
def _members(path: Path) -> Iterator[list[Member]]:
    with open(path, "rb") as stream:
        start = stream.read(TAR_AT + len(TAR))
    if start.startswith(ZIP):
        with zipfile.ZipFile(path) as archive:
            yield _zip_members(archive)
    elif start[TAR_AT:] == TAR:
        with tarfile.open(path, "r:") as archive:
            yield _tar_members(archive)
    else:
        name = path.name.removesuffix(".gz") if path.suffix == ".gz" else f"{path.stem}.tar"
        yield [Member(name, lambda: gzip.GzipFile(path, "rb"))]


def _zip_members(archive: zipfile.ZipFile) -> list[Member]:
    found = [info for info in archive.infolist() if not info.is_dir()]
    _check_count(len(found))
    return [Member(info.filename, lambda info=info: archive.open(info)) for info in found]


def _tar_members(archive: tarfile.TarFile) -> list[Member]:
    found = []
    for info in archive:
        _check_count(len(found))
        if info.isfile():  # neither a link nor a device
            found.append(Member(info.name, lambda info=info: _extracted(archive, info)))
    return found


def _extracted(archive: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    stream = archive.extractfile(info)
    if stream is None:
        raise tarfile.TarError(f"{info.name!r} is no file")
    return stream


def _check_count(count: int) -> None:
    if count > MAX_MEMBERS:
        raise UnsafeFileError(f"it has more than {MAX_MEMBERS} files")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except DAMAGED as error:
        raise CorruptFileError(f"{path}: not a complete archive ({error}).") from error
