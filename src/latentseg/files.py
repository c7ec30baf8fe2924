"""Disk: files are written atomically and can be verified; folders of work can be claimed."""

import contextlib
import difflib
import hashlib
import itertools
import json
import os
import platform
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
from safetensors import SafetensorError, safe_open

from latentseg.errors import CorruptFileError, InputError

if TYPE_CHECKING:  # torch takes a second to import, and most of this file needs none of it
    from torch import Tensor

MANIFEST = "MANIFEST.json"
LOCK = ".lock"
HOLDER = (
    ".holder"  # who holds the lock; a file of its own, as Windows lets nobody read a locked one
)
TEMPORARY = ".latentseg-{process}-{count}.tmp"

_token = secrets.token_hex(4)  # two machines that share a folder may have equal process numbers
_counter = itertools.count()


@contextlib.contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on success it is flushed and takes the name `path`.

    A reader sees the old file or the new one, never a part, even after a kill or a full disk.

    Raises:
        InputError: the file cannot be written: no space, no permission, a fault of the disk.
    """
    path = Path(path)
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


def read_json(path: Path | str) -> Any:
    """Reads a JSON file strictly: NaN, infinity and a key given twice are refused.

    Raises:
        InputError: the file does not exist.
        CorruptFileError: it is not valid JSON in UTF-8.
    """
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
        return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_unique_keys)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise InputError(f"{path}: there is no such file.") from error
    except (ValueError, RecursionError) as error:
        raise CorruptFileError(f"{path}: not valid JSON ({error}).") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError(f"a key occurs twice among {', '.join(value)}")
    return value


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
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file.")
    try:
        with safe_open(path, framework="pt") as archive:
            # Cloned, so that nothing stays mapped to a file that may be replaced.
            return {name: archive.get_tensor(name).clone() for name in archive.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, RuntimeError, OSError) as error:
        raise CorruptFileError(f"{path}: not a complete safetensors file ({error}).") from error


def sha256(path: Path | str) -> str:
    """The sha256 of a file as 64 hexadecimal digits."""
    with open(path, "rb") as stream:
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
        holder = _read_holder(folder)
        raise InputError(
            f"{folder}: in use by {holder}. Wait for it, or choose another folder."
        ) from error
    try:
        (folder / HOLDER).write_text(f"{platform.node()} process {os.getpid()}")
        remove_leftovers(folder)
        yield
    finally:
        lock.release()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{folder}: a file is in the way of this folder. Choose another."
        ) from error


def _read_holder(folder: Path) -> str:
    try:
        return (folder / HOLDER).read_text().strip() or "another process"
    except FileNotFoundError:
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
