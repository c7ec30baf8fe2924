"""Checkpoint files of any origin, opened without running what is in them."""

import hashlib
import json
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError, LatentsegError, UnsafeFileError
from latentseg.files import open_regular, read_safetensors, sha256
from latentseg.weights.archives import is_archive, unpacked
from latentseg.weights.openvino_ir import read_graph
from latentseg.weights.pickles import read_pickle
from latentseg.weights.records import ModuleTree, TensorRecord, is_module, walk_modules
from latentseg.weights.torch_files import read_torch

ZIP = b"PK\x03\x04"
XML = (b"<?xml", b"<net")
MOST_NESTED = 3  # archives in archives: a wheel may hold a .tar, packed by gzip
# A torch file older than 1.6 begins with this pickled number.
LEGACY_TORCH = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."


class Weights(dict[str, Tensor]):
    """Tensors by name; asking for one that is not there is an error that names it.

    Args:
        tensors: Of a state dict.
        where: The file, for the error.
    """

    def __init__(self, tensors: Mapping[str, Tensor], where: Path | str) -> None:
        super().__init__(tensors)
        self.where = where

    def __missing__(self, name: str) -> Tensor:
        raise CorruptFileError(f"{self.where}: the parameter {name!r} is missing.")

    def below(self, prefix: str) -> "Weights":
        """The tensors whose names begin with `prefix`, without it."""
        found = {
            name.removeprefix(prefix): tensor
            for name, tensor in self.items()
            if name.startswith(prefix)
        }
        return Weights(found, self.where)


@dataclass(frozen=True)
class Checkpoint:
    """What a file or folder of weights holds.

    Attributes:
        path: The file or folder.
        sha256: Of the file; of the names and contents of all files, for a folder.
        kind: "safetensors", "torch", "pickle", "openvino", "folder"; "torchscript" or "exported"
            for a program.
        tree: What the file holds: dicts, lists, plain values, tensors, and records of what would
            have to be run to be more (`records`); the graphs of OpenVINO's networks by name. A
            folder's is empty: see `inside`.
        metadata: The text metadata of a safetensors file.
        sources: sha256 of program text embedded in the file (never run): the classes it came with.
    """

    path: Path
    sha256: str
    kind: str
    tree: Any
    metadata: Mapping[str, str] = field(default_factory=dict)
    sources: Mapping[str, str] = field(default_factory=dict)
    _modules: dict[tuple[str, ...], ModuleTree] = field(default_factory=dict, repr=False)

    def has(self, *keys: str) -> bool:
        """Whether the tree is a dict with all of `keys`."""
        return isinstance(self.tree, dict) and all(key in self.tree for key in keys)

    def weights(self, *keys: str) -> Weights:
        """The tensors of the state dict at `keys` of the tree; of the tree itself without keys.

        Names lose the "module." that DataParallel puts before them; entries that are not tensors
        are left out.

        Raises:
            CorruptFileError: there is no state dict.
        """
        node = self._at(keys)
        if is_module(node):
            return Weights(self.module(*keys).tensors, self.path)
        if not isinstance(node, dict):
            raise CorruptFileError(f"{self.path}: {'.'.join(keys) or 'it'} is not a state dict.")
        tensors = {}
        for name, value in node.items():
            tensor = value.tensor() if isinstance(value, TensorRecord) else value
            if isinstance(name, str) and isinstance(tensor, Tensor):
                tensors[name.removeprefix("module.")] = tensor
        return Weights(tensors, self.path)

    def names(self, *keys: str) -> set[str]:
        """The names that `weights` would give, without reading a tensor; empty where it fails."""
        node = self.tree
        for key in keys:
            node = node.get(key) if isinstance(node, dict) else None
        if not isinstance(node, dict):
            return set()
        return {
            name.removeprefix("module.")
            for name, value in node.items()
            if isinstance(name, str) and isinstance(value, TensorRecord | Tensor)
        }

    def module(self, *keys: str) -> ModuleTree:
        """The network stored whole at `keys` of the tree, as its parts' attributes and tensors.

        Raises:
            CorruptFileError: there is none, or it contains itself.
        """
        if keys not in self._modules:
            self._modules[keys] = walk_modules(self._at(keys), self.path)
        return self._modules[keys]

    def has_module(self, *keys: str) -> bool:
        """Whether a whole network is stored at `keys` of the tree."""
        return self.has(keys[0]) and is_module(self._at(keys))

    def inside(self, name: str) -> "Checkpoint":
        """A file in this folder, opened.

        Raises:
            InputError: there is no such file.
        """
        return open_checkpoint(self.path / name)

    def outline(self) -> str:
        """What is in it, in a few words, for people."""
        if self.kind == "folder":
            names = sorted(path.name for path in self.path.iterdir())
            return f"a folder with {_listed(names)}"
        if isinstance(self.tree, dict):
            return f"a {self.kind} file with {_listed([str(key) for key in self.tree])}"
        return f"a {self.kind} file that holds a {type(self.tree).__name__}"

    def _at(self, keys: tuple[str, ...]) -> Any:
        node = self.tree
        for key in keys:
            if not isinstance(node, dict) or key not in node:
                raise CorruptFileError(f"{self.path}: {'.'.join(keys)} is not in the file.")
            node = node[key]
        return node


def _listed(names: list[str], most: int = 6) -> str:
    shown = ", ".join(repr(name[:60]) for name in names[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown or "nothing"


def open_checkpoint(path: Path | str, *, part: str | None = None) -> Checkpoint:
    """Opens a file or folder of weights by what it contains, whatever its name.

    Pickles, and torch files, which contain one, are read by `pickles`, which runs nothing. Of an
    archive the one checkpoint in it is opened; the path and the sha256 stay those of the archive.

    Args:
        path: A file, an archive, or a folder.
        part: Of an archive with several checkpoints: what the name of the one meant ends with.

    Raises:
        InputError: there is no such file, or an archive does not hold one checkpoint.
        UnsafeFileError: it could only be opened by running code from it, or it unfolds to many
            times its size.
        CorruptFileError: it is damaged.
    """
    return _opened(Path(path), part, MOST_NESTED)


def _opened(path: Path, part: str | None, most_nested: int) -> Checkpoint:
    if path.is_dir():
        if networks := _networks(path):
            return _of_networks(path, networks)
        return Checkpoint(path, _folder_sha256(path), "folder", {})
    if not os.path.isfile(path):  # unlike Path.is_file, never raises on a hostile name
        raise InputError(f"{path}: there is no such file.")
    with open_regular(path) as stream:
        start = stream.read(64)
    if start.lstrip(b"\xef\xbb\xbf \r\n").startswith(XML):
        return _of_networks(path, _networks(path.parent))
    if is_archive(path):
        if not most_nested:
            raise UnsafeFileError(f"{path}: archives in archives, more than {MOST_NESTED} deep.")
        return _packed(path, part, most_nested)
    return _of_file(path, start, sha256(path))


def _of_file(path: Path, start: bytes, digest: str) -> Checkpoint:
    if start.startswith(ZIP):
        if program := _program(path):
            return Checkpoint(path, digest, program, {})
        contents = read_torch(path)
        return Checkpoint(path, digest, "torch", contents.tree, sources=contents.sources)
    # A safetensors file begins with the length of its JSON header; its first byte may be any.
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        tensors = read_safetensors(path)
        return Checkpoint(path, digest, "safetensors", tensors, metadata=_metadata(path))
    if start[:1] == b"\x80":
        kind, read = ("torch", read_torch) if LEGACY_TORCH in start else ("pickle", read_pickle)
        contents = read(path)
        return Checkpoint(path, digest, kind, contents.tree, sources=contents.sources)
    raise CorruptFileError(
        f"{path}: neither a safetensors, nor a torch, nor a pickle file, nor an archive. Was it "
        "downloaded whole?"
    )


def _packed(path: Path, part: str | None, most_nested: int) -> Checkpoint:
    """The checkpoint in an archive."""
    with unpacked(path, part) as inner:
        try:
            opened = _opened(inner, part, most_nested - 1)
        except LatentsegError as error:
            raise type(error)(str(error).replace(str(inner), f"{path}: {inner.name}")) from error
        if opened.kind in ("folder", "torchscript", "exported"):
            raise InputError(f"{path}: holds a program, {inner.name}. Unpack it first.")
        return replace(opened, path=path, sha256=sha256(path))


def _networks(folder: Path) -> list[Path]:
    """The networks of OpenVINO in a folder; each has two files."""
    return sorted(path for path in folder.glob("*.xml") if path.with_suffix(".bin").is_file())


def _of_networks(path: Path, networks: list[Path]) -> Checkpoint:
    if not networks:
        raise CorruptFileError(f"{path}: its constants, {path.stem}.bin, are not beside it.")
    graphs = {}
    for file in networks:
        graph = read_graph(file)
        graphs[graph.name or file.stem] = graph
    files = sorted([*networks, *(file.with_suffix(".bin") for file in networks)])
    return Checkpoint(
        path, _sha256_of(path if path.is_dir() else path.parent, files), "openvino", graphs
    )


def _program(path: Path) -> str:
    """Which kind of program a zip archive is; "" for one of plain data."""
    try:
        with zipfile.ZipFile(path) as archive:
            # Names begin with the name of the archive.
            names = {name.partition("/")[2] for name in archive.namelist()}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorruptFileError(f"{path}: not a complete zip archive ({error}).") from error
    if "archive_format" in names:
        return "exported"
    return "torchscript" if "constants.pkl" in names else ""


def _metadata(path: Path) -> dict[str, str]:
    try:
        with safe_open(path, framework="pt") as archive:
            return archive.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise CorruptFileError(f"{path}: not a complete safetensors file ({error}).") from error


def _folder_sha256(folder: Path) -> str:
    return _sha256_of(folder, sorted(path for path in folder.rglob("*") if path.is_file()))


def _sha256_of(folder: Path, files: list[Path]) -> str:
    lines = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    return hashlib.sha256(json.dumps(lines).encode()).hexdigest()
