"""Disk: files are written atomically and can be verified; folders of work can be claimed."""

import contextlib
import difflib
import hashlib
import io
import itertools
import json
import os
import platform
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import filelock
from safetensors import SafetensorError, safe_open

from latentseg.errors import CorruptFileError, InputError
from latentseg.plain_data import MAX_BYTES, MAX_YAML_BYTES, parse_json, parse_yaml

if TYPE_CHECKING:  # torch takes a second to import, and most of this file needs none of it
    from torch import Tensor

MANIFEST = "MANIFEST.json"
LOCK = ".lock"
HOLDER = (
    ".holder"  # who holds the lock; a file of its own, as Windows lets nobody read a locked one
)
TEMPORARY = ".latentseg-{process}-{count}.tmp"
KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

_token = secrets.token_hex(4)  # two machines that share a folder may have equal process numbers
_counter = itertools.count()
_held: list[str] = []  # the work folders that this process holds, in which no link is followed


def open_regular(path: Path | str) -> io.BufferedReader:
    """Opens a file for reading, and nothing but a file: a pipe or a device could hang or act.

    Inside a folder that this process has `locked` or `guarded`, links are not followed.

    Raises:
        InputError: it is a pipe, a socket or a device, or is reached by a link in a work folder.
        OSError: as `open` raises it.
    """
    refuse_links(path)
    _check_kind(os.stat(path).st_mode, path)  # before it is opened: opening a device may act
    return open(path, "rb", opener=_open_checked)


def check_regular(path: Path | str) -> None:
    """Raises what `open_regular` raises, for a library that takes nothing but a path."""
    open_regular(path).close()


def open_in_place(path: Path | str, mode: str) -> BinaryIO:
    """Opens a file to be written where it is, as a journal is; a link is never followed.

    Args:
        path: The file.
        mode: As `open` takes it, for bytes: "ab", "a+b", "r+b".

    Raises:
        InputError: it is a link, or nothing that could be written to as a file.
        OSError: as `open` raises it.
    """
    refuse_links(path)
    if os.path.islink(path):
        raise _link_error(path)
    if os.path.exists(path):
        _check_kind(os.stat(path).st_mode, path)
    return cast(BinaryIO, open(path, mode, opener=_open_unfollowed))


def truncate(path: Path | str, length: int) -> None:
    """Cuts a file to `length` bytes; a link is refused as by `open_in_place`."""
    with open_in_place(path, "r+b") as stream:
        stream.truncate(length)


def _open_checked(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o666)
    try:
        _check_kind(os.fstat(descriptor).st_mode, path)  # it may be another since it was looked at
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_unfollowed(path: str, flags: int) -> int:
    return _open_checked(path, flags | getattr(os, "O_NOFOLLOW", 0))


def _check_kind(mode: int, path: Path | str) -> None:
    if kind := KINDS.get(stat.S_IFMT(mode)):
        raise InputError(f"{path}: {kind}, where a file was expected. Copy its content to a file.")


def refuse_links(path: Path | str) -> None:
    """Refuses a path that a link inside a work folder leads to somewhere else.

    Raises:
        InputError: the path, or a folder on the way to it, is a link inside a folder that is
            `locked` or `guarded`.
    """
    whole = os.path.abspath(path)
    for folder in _held:
        if not whole.startswith(os.path.join(folder, "")):
            continue
        step = folder
        for name in os.path.relpath(whole, folder).split(os.sep):
            step = os.path.join(step, name)
            if os.path.islink(step):
                raise _link_error(step)


def _link_error(path: Path | str) -> InputError:
    return InputError(
        f"{path}: a link. Inside a folder that it works in, latentseg follows none, as what is "
        "written there could end anywhere. Put the file or folder itself in its place."
    )


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it is flushed and takes the name `path`.

    A reader sees the old file or the new one, never a part, even after a kill or a full disk.

    Raises:
        InputError: the file cannot be written: no space, no permission, a fault of the disk, a
            link in a work folder.
    """
    path = Path(path)
    refuse_links(path)
    temporary = path.with_name(
        TEMPORARY.format(process=f"{os.getpid()}-{_token}", count=next(_counter))
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as stream:  # Windows flushes only what may be written
                os.fsync(stream.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written ({error.strerror or error}). What was complete is intact: "
            "make room, or choose another folder, and give the same command again."
        ) from error


def write_bytes(path: Path | str, content: bytes) -> None:
    """Writes `content` to `path` atomically, making the folder if it is missing."""
    with atomic(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path | str, text: str) -> None:
    """Writes `text` to `path` as UTF-8, atomically."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. NaN and infinity are refused."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_bytes(path: Path | str) -> bytes:
    """The content of a regular file.

    Raises:
        InputError: there is no such file, or it cannot be read.
    """
    with _reading(path), open_regular(path) as stream:
        return stream.read()


def read_text(path: Path | str) -> str:
    """The text of a regular file in UTF-8, with or without a byte order mark.

    Raises:
        InputError: there is no such file, or it cannot be read.
        CorruptFileError: it is not UTF-8.
    """
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptFileError(f"{path}: not a text in UTF-8 ({error}).") from error


def read_json(path: Path | str, *, limit: int = MAX_BYTES) -> Any:
    """Reads a JSON file as strictly as `parse_json`.

    Args:
        path: The file.
        limit: The largest size in bytes that is read.

    Raises:
        InputError: the file does not exist, or cannot be read.
        CorruptFileError: it is not valid JSON in UTF-8, or is too large or too deep.
    """
    with _reading(path), open_regular(path) as stream:
        content = stream.read(limit + 1)
    if len(content) > limit:
        raise CorruptFileError(f"{path}: larger than {limit} bytes; not a description.")
    try:
        return parse_json(content)
    except ValueError as error:
        raise CorruptFileError(f"{path}: not valid JSON ({error}).") from error


def read_yaml(path: Path | str) -> Any:
    """Reads a YAML file as plain data, bounded as `parse_yaml` bounds it.

    Raises:
        InputError: the file does not exist, or cannot be read.
        CorruptFileError: it is not valid YAML in UTF-8, or is too large, too deep, or unfolds.
    """
    with _reading(path), open_regular(path) as stream:
        content = stream.read(MAX_YAML_BYTES + 1)
    try:
        return parse_yaml(content)
    except ValueError as error:
        raise CorruptFileError(f"{path}: cannot be read ({error}).") from error


@contextlib.contextmanager
def _reading(path: Path | str) -> Iterator[None]:
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{path}: there is no such file.") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # a name with a zero in it
        raise InputError(f"{str(path)!r}: not a name of a file ({error}).") from error


def write_safetensors(
    path: Path | str, tensors: "Mapping[str, Tensor]", metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `tensors` to a safetensors file, atomically; byte-identical for equal input."""
    from safetensors.torch import save

    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    archive = save(plain, metadata=dict(metadata) if metadata else None)
    write_bytes(path, _with_sorted_metadata(archive) if metadata else archive)


def _with_sorted_metadata(archive: bytes) -> bytes:
    # safetensors writes metadata in an order that changes from process to process.
    end = 8 + int.from_bytes(archive[:8], "little")
    header = json.loads(archive[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors stay aligned to 8 bytes
    return len(text).to_bytes(8, "little") + text + archive[end:]


def read_safetensors(path: Path | str) -> "dict[str, Tensor]":
    """Reads all tensors of a safetensors file to the CPU.

    Raises:
        InputError: the file does not exist.
        CorruptFileError: it is not a complete safetensors file.
    """
    with _reading(path):
        check_regular(path)
    try:
        with safe_open(path, framework="pt") as archive:
            # Cloned, so that nothing stays mapped to a file that may be replaced.
            return {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise CorruptFileError(f"{path}: not a complete safetensors file ({error}).") from error


def sha256(path: Path | str) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def remove_leftovers(folder: Path | str) -> None:
    """Deletes the temporary files of `atomic` that a killed process left anywhere in `folder`."""
    for path in Path(folder).rglob(TEMPORARY.format(process="*", count="*")):
        path.unlink(missing_ok=True)


def _content(folder: Path) -> list[Path]:
    # Hidden files are ours (locks) or a file browser's, which change behind our back.
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST and not path.name.startswith(".")
    )


def write_manifest(folder: Path | str, keep: Callable[[Path], bool] = lambda path: True) -> None:
    """Records the sha256 of every file below `folder` for which `keep` holds in its MANIFEST.json.

    It is written last: a folder with a manifest is complete. Hidden files and manifests of folders
    inside are left out.
    """
    folder = Path(folder)
    remove_leftovers(folder)
    files = {
        path.relative_to(folder).as_posix(): sha256(path)
        for path in _content(folder)
        if keep(path.relative_to(folder))
    }
    write_json(folder / MANIFEST, {"sha256": files})


def verify_manifest(folder: Path | str) -> None:
    """Compares every file named in the MANIFEST.json of `folder` with its sha256.

    Raises:
        InputError: there is no manifest: the folder is not one of ours, or was not finished.
        CorruptFileError: files are missing or changed; all of them are named.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise InputError(f"{folder}: no {MANIFEST}; the folder was never finished.")
    manifest = read_json(folder / MANIFEST)
    recorded = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(recorded, dict):
        raise CorruptFileError(f"{folder / MANIFEST}: not a manifest: 'sha256' is missing.")
    problems = []
    for name, digest in recorded.items():
        path = folder / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            problems.append(f"{name!r} (a name that leaves the folder)")
        elif not os.path.isfile(path):  # unlike Path.is_file, never raises on a hostile name
            problems.append(f"{name} (missing)")
        elif sha256(path) != digest:
            problems.append(f"{name} (changed)")
    if problems:
        raise CorruptFileError(f"{folder}: does not match its {MANIFEST}: {', '.join(problems)}.")


@contextlib.contextmanager
def locked(folder: Path | str) -> Iterator[None]:
    """Holds `folder` for this process.

    Raises:
        InputError: another process is working in it (its host and process number are named), or
            a file is in its place.
    """
    folder = Path(folder)
    _make(folder)
    lock = filelock.FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0.5)
    except filelock.Timeout as error:
        raise InputError(
            f"{folder}: in use by {_read_holder(folder)}. Wait for it, or choose another folder."
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be worked in ({error.strerror or error}: {LOCK}). "
            "Choose a folder that may be written to."
        ) from error
    try:
        with guarded(folder):
            write_text(folder / HOLDER, f"{platform.node()} process {os.getpid()}")
            remove_leftovers(folder)
            yield
    finally:
        # Removed while it is held: who waits for a lock that has no name any more makes a new one.
        for name in (HOLDER, LOCK):
            with contextlib.suppress(OSError):  # Windows removes no open file
                (folder / name).unlink()
        lock.release()


@contextlib.contextmanager
def guarded(folder: Path | str) -> Iterator[None]:
    """Makes `folder` a work folder of this process, in which no link is followed."""
    name = os.path.abspath(folder)
    _held.append(name)
    try:
        yield
    finally:
        _held.remove(name)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: a file is in the way of this folder. Choose another."
        ) from error
    except OSError as error:
        raise InputError(
            f"{folder}: cannot be made ({error.strerror or error}). Choose another place."
        ) from error


def _read_holder(folder: Path) -> str:
    try:
        with open_regular(folder / HOLDER) as stream:
            return stream.read(200).decode(errors="replace").strip() or "another process"
    except (OSError, InputError):
        return "another process"


def claim(folder: Path | str, config: dict[str, Any], *, free: tuple[str, ...] = ()) -> bool:
    """Makes `folder` the place of the work that `config` describes; `config.json` is its record.

    Args:
        folder: Made if missing. One with a `config.json` is continued if the configurations agree.
        config: What was asked for; JSON values.
        free: Fields that may differ (for example a raised number of steps); a field inside another
            is called "outer.inner".

    Returns:
        True if earlier work is continued.

    Raises:
        InputError: the folder holds other work; every field that differs is named.
        CorruptFileError: its `config.json` is damaged.
    """
    folder = Path(folder)
    path = folder / "config.json"
    config = json.loads(json.dumps(config, allow_nan=False))
    _make(folder)
    if not path.exists():
        if any(not entry.name.startswith(".") for entry in folder.iterdir()):
            raise InputError(
                f"{folder}: not empty and not begun by this command. Choose another folder."
            )
        write_json(path, config)
        return False
    earlier = read_json(path)
    if not isinstance(earlier, dict):
        raise CorruptFileError(f"{path}: expected a JSON object, found {type(earlier).__name__}.")
    if differing := _differences(earlier, config, free):
        raise InputError(
            f"{folder}: holds other work. It differs in: {'; '.join(differing)}. "
            "Give the same options to continue it, or choose another folder."
        )
    if earlier != config and not (folder / MANIFEST).exists():
        write_json(path, config)  # what is finished keeps its record, which its manifest holds
    return True


def _differences(
    earlier: dict[str, Any], now: dict[str, Any], free: tuple[str, ...], prefix: str = ""
) -> list[str]:
    differing = []
    for key in sorted(earlier.keys() | now.keys()):
        name, before, after = f"{prefix}{key}", earlier.get(key), now.get(key)
        if name in free or before == after:
            continue
        if isinstance(before, dict) and isinstance(after, dict):
            differing += _differences(before, after, free, f"{name}.")
        else:
            differing.append(f"{name}: {before!r} there, {after!r} now")
    return differing


def check_keys(given: Mapping[str, Any], known: set[str], where: Path | str) -> None:
    """Refuses keys that are not in `known`, naming the nearest known one.

    Raises:
        InputError: a key is unknown.
    """
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f" Perhaps {near[0]!r}?" if near else ""
            raise InputError(
                f"{where}: unknown field {key!r}.{hint} Known: {', '.join(sorted(known))}."
            )


def free_bytes(folder: Path | str) -> int:
    """Free disk space where `folder` is, or will be, in bytes."""
    folder = Path(folder).absolute()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
