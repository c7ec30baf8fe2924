"""What becomes of the objects in a pickle that nobody runs: inert records, and networks in them."""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, UnsafeFileError

MAX_DIMENSIONS = 32
MAX_SIZE = 2**48  # of the product of all dimensions that are not 0; also of an offset
MAX_STRIDE = 2**62  # a dimension of size 1 may have any
MAX_DEPTH = 64  # of modules in modules, and of lists in lists
MAX_MODULES = 100_000
MAX_EFFORT = 4_000_000  # letters of names that one walk may make
VALUE = 10  # what one plain value counts, in such letters


@dataclass(frozen=True, eq=False, slots=True)
class Global:
    """A class or function that a file names and nothing calls: only its name.

    Attributes:
        module: Where the file says that it is defined.
        name: Its name there.
    """

    module: str
    name: str


class StorageRecord:
    """The numbers of one or several tensors, in one row.

    Attributes:
        key: Its name in the file.
        dtype: Of its elements.
        count: How many elements it has.
    """

    __slots__ = ("_data", "_tensor", "count", "dtype", "key")

    def __init__(self, key: str, dtype: torch.dtype, count: int) -> None:
        self.key = key
        self.dtype = dtype
        self.count = count
        self._data: bytearray | memoryview | None = None
        self._tensor: Tensor | None = None

    @property
    def n_bytes(self) -> int:
        """Its size in bytes."""
        return self.count * self.dtype.itemsize

    def fill(self, data: bytearray | memoryview) -> None:
        """Takes `data`, `n_bytes` long, as its content; a view is copied once it is asked for."""
        self._data = data

    def tensor(self) -> Tensor:
        """All elements (count,); the same memory at every call.

        Raises:
            CorruptFileError: the file names the storage but does not hold it.
        """
        if self._tensor is None:
            if self._data is None:
                raise CorruptFileError(f"the numbers of storage {self.key!r} are missing")
            own = bytearray(self._data) if isinstance(self._data, memoryview) else self._data
            self._tensor = (
                torch.frombuffer(own, dtype=self.dtype)
                if self.count
                else torch.empty(0, dtype=self.dtype)
            )
            self._data = None
        return self._tensor


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class TensorRecord:
    """A tensor of the file that lies wholly within its storage; nothing can change it.

    Attributes:
        storage: Where its elements are.
        offset: Index of its first element there.
        shape: Its shape.
        stride: Steps in the storage, in elements, one per dimension.

    Raises:
        UnsafeFileError: it would reach outside its storage, or have more elements than that.
    """

    storage: StorageRecord
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def __post_init__(self) -> None:
        elements = n_elements(self.shape)
        if not _are_counts(self.stride, MAX_STRIDE) or len(self.stride) != len(self.shape):
            raise UnsafeFileError("a tensor has strides that do not fit its shape")
        if not _are_counts((self.offset,), MAX_SIZE):
            raise UnsafeFileError("a tensor begins before its storage")
        if elements == 0:
            return
        last = self.offset + sum(
            (size - 1) * step for size, step in zip(self.shape, self.stride, strict=True)
        )
        if last >= self.storage.count or elements > self.storage.count:
            raise UnsafeFileError(
                f"a tensor of shape {list(self.shape)} does not fit in its storage of "
                f"{self.storage.count} numbers"
            )

    def __repr__(self) -> str:
        return f"TensorRecord({list(self.shape)}, {self.dtype})"

    @property
    def dtype(self) -> torch.dtype:
        """Of its elements."""
        return self.storage.dtype

    def tensor(self) -> Tensor:
        """The tensor on the CPU. Tensors that share a storage in the file share memory here.

        Raises:
            CorruptFileError: the file does not hold its numbers.
        """
        flat = self.storage.tensor()
        if 0 in self.shape:
            return flat.new_empty(self.shape)
        return flat.as_strided(self.shape, self.stride, self.offset)


def n_elements(shape: tuple[int, ...]) -> int:
    """Elements of an array of this shape.

    Raises:
        UnsafeFileError: it is not the shape of anything that fits in memory.
    """
    if (
        type(shape) is not tuple
        or len(shape) > MAX_DIMENSIONS
        or not _are_counts(shape, MAX_SIZE)
        or math.prod(size for size in shape if size) > MAX_SIZE
    ):
        raise UnsafeFileError("an array or tensor has an impossible shape")
    return math.prod(shape)


def _are_counts(numbers: tuple[int, ...], most: int) -> bool:
    return type(numbers) is tuple and all(
        type(number) is int and 0 <= number <= most for number in numbers
    )


class ArrayRecord:
    """A numpy array of the file.

    Attributes:
        shape: Its shape.
        dtype: Of its elements; None if they are Python objects, which are never put into an array.
        items: Those objects in order, as the file lists them; else empty.
    """

    __slots__ = ("_array", "_axes", "_data", "_stored_shape", "dtype", "items", "shape")

    def __init__(self) -> None:
        self.shape: tuple[int, ...] = (0,)
        self.dtype: np.dtype | None = np.dtype(np.int8)
        self.items: list[Any] = []
        self._data = b""
        self._stored_shape = self._axes = (0,)
        self._array: np.ndarray | None = None

    def fill(
        self,
        stored_shape: tuple[int, ...],
        axes: tuple[int, ...],
        dtype: np.dtype,
        data: bytes,
    ) -> None:
        """Takes its content.

        Args:
            stored_shape: Its shape as it lies in `data`, the slowest dimension first.
            axes: For each dimension of the array, the index of its dimension in `stored_shape`.
            dtype: Of its elements.
            data: Its elements, (product of the shape) * itemsize bytes.

        Raises:
            UnsafeFileError: the shape is impossible.
            CorruptFileError: `data` is of another length, or `axes` does not fit.
        """
        if n_elements(stored_shape) * dtype.itemsize != len(data):
            raise CorruptFileError(
                f"an array of shape {list(stored_shape)} and type {dtype} has {len(data)} bytes"
            )
        if not _are_counts(axes, MAX_DIMENSIONS) or sorted(axes) != [*range(len(stored_shape))]:
            raise CorruptFileError("the axes of an array are not those of its shape")
        self.shape = tuple(stored_shape[axis] for axis in axes)
        self.dtype, self._data = dtype, data
        self._stored_shape, self._axes = stored_shape, axes

    def fill_with_objects(self, shape: tuple[int, ...], items: list[Any]) -> None:
        """Takes the objects of an array of Python objects, which stay a list.

        Raises:
            UnsafeFileError: the shape is impossible.
            CorruptFileError: there are more or fewer objects than it says.
        """
        if n_elements(shape) != len(items):
            raise CorruptFileError(f"an array of shape {list(shape)} has {len(items)} objects")
        self.shape, self.dtype, self.items = shape, None, items

    def __repr__(self) -> str:
        return f"ArrayRecord({list(self.shape)}, {self.dtype})"

    def array(self) -> np.ndarray:
        """The array, in the byte order of this machine; the same memory at every call.

        Raises:
            UnsafeFileError: its elements are Python objects.
        """
        if self.dtype is None:
            raise UnsafeFileError("an array of Python objects is not read; take its `items`")
        if self._array is None:
            stored = np.frombuffer(self._data, self.dtype).reshape(self._stored_shape)
            native = self.dtype.newbyteorder("=")
            self._array = stored.transpose(self._axes).astype(native, order="K", copy=True)
            self._data = b""
        return self._array


NOTHING: Mapping[Any, Any] = MappingProxyType({})


class Record:
    """An object of a class, or the result of a function, that the reader does not know. Inert.

    Attributes:
        module: Where the file says that the class or function is defined.
        name: Its name there, dots included.
        arguments: What it would have been called with.
        keywords: The same, by name.
        state: What the object would have been given after it was made; often a dict of attributes.
        items: What would have been appended to it or put into it.
        entries: What would have been set in it by key.
    """

    __slots__ = ("arguments", "entries", "items", "keywords", "module", "name", "state")

    def __init__(
        self, module: str, name: str, arguments: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> None:
        self.module = module
        self.name = name
        self.arguments = arguments
        self.keywords = keywords
        self.state: Any = None
        # A file of some bytes can ask for many records: each is as small as it can be.
        self.items: Sequence[Any] = ()
        self.entries: Mapping[Any, Any] = NOTHING

    def extend(self, items: list[Any]) -> None:
        """Takes what would have been appended."""
        if isinstance(self.items, list):
            self.items.extend(items)
        else:
            self.items = items

    def set_entries(self, entries: dict[Any, Any]) -> None:
        """Takes what would have been set by key."""
        if isinstance(self.entries, dict):
            self.entries.update(entries)
        else:
            self.entries = entries

    def __repr__(self) -> str:
        return f"Record({self.module[:80]!r}, {self.name[:80]!r})"


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class PersistentRecord:
    """An object whose file carries the source of its class, as NVIDIA's do. Nothing of it is run.

    Attributes:
        class_name: Of its class in that source.
        version: Of this way of storing.
        state: Its attributes by name.
        source: The source, as text.
        source_sha256: Of the source in UTF-8.
    """

    class_name: str
    version: Any
    state: Any
    source: str
    source_sha256: str

    def __repr__(self) -> str:
        return f"PersistentRecord({self.class_name[:80]!r})"


@dataclass(frozen=True, eq=False)
class Contents:
    """What a file holds.

    Attributes:
        tree: Dicts, lists, tuples, plain values and records. It may be nested without limit and
            contain itself: never compare, print or copy it as a whole.
        names: Every class and function the file asks for, "module.name", and how often.
        sources: sha256 of each source text in the file: names of the classes that came with it,
            joined by commas.
    """

    tree: Any = field(repr=False)
    names: dict[str, int]
    sources: dict[str, str]


# What the keys of a dict and the members of a set may be is decided where a file is read: tuples
# there hold text only.
KEYS = (bool, int, float, str, bytes, tuple, type(None))
PLAIN = (bool, int, float, complex, str, bytes, torch.dtype)
INERT = (Global, StorageRecord, TensorRecord, ArrayRecord, Record, PersistentRecord)


class _NotPlain(Exception):
    pass


class _Effort:
    """Bounds the work that a small file with shared parts can ask for."""

    def __init__(self, where: Path | str) -> None:
        self.left = MAX_EFFORT
        self.where = where

    def spend(self, amount: int) -> None:
        self.left -= amount
        if self.left < 0:
            raise UnsafeFileError(
                f"{self.where}: unfolds to more than {MAX_EFFORT // VALUE} values; no real network "
                "does. "
                "Take the file from its publisher again."
            )


def value_of(x: Any) -> Any:
    """One value of the tree as plain Python.

    Numbers, text, bytes, None and torch.dtype stay; tuples, lists, sets and dicts are copied;
    arrays become np.ndarray (those of objects: the list of them), tensors torch.Tensor.

    Raises:
        UnsafeFileError: there is a record of unknown kind in it, it is nested deeper than 64, or
            unfolds to millions of values.
    """
    try:
        return _plain(x, 0, _Effort("the value"), True)
    except _NotPlain as reason:
        raise UnsafeFileError(f"{reason} is not a plain value.") from None


def _plain(x: Any, depth: int, effort: _Effort, tensors: bool) -> Any:
    effort.spend(VALUE)
    if depth > MAX_DEPTH:
        raise _NotPlain(f"what is nested deeper than {MAX_DEPTH}")
    if x is None or isinstance(x, PLAIN):
        return x
    if isinstance(x, ArrayRecord):
        return x.array() if x.dtype is not None else _plain_items(x.items, depth, effort, tensors)
    if isinstance(x, TensorRecord) and tensors:
        return x.tensor()
    if isinstance(x, dict):
        _check_keys(x, effort)
        return dict(zip(x, _plain_items(x.values(), depth, effort, tensors), strict=True))
    if isinstance(x, set | frozenset):
        _check_keys(x, effort)
        return set(x)
    if isinstance(x, list | tuple):
        return type(x)(_plain_items(x, depth, effort, tensors))
    raise _NotPlain(_described(x))


def _plain_items(items: Iterable[Any], depth: int, effort: _Effort, tensors: bool) -> list[Any]:
    return [_plain(item, depth + 1, effort, tensors) for item in items]


def _check_keys(keys: Collection[Any], effort: _Effort) -> None:
    effort.spend(VALUE * len(keys))
    for key in keys:
        if not isinstance(key, KEYS):
            raise _NotPlain(_described(key))


def _described(x: Any) -> str:
    # Lists and dicts may be nested without limit: nobody may ask for their repr.
    return repr(x) if isinstance(x, INERT) else f"a {type(x).__name__}"


@dataclass(frozen=True)
class ModuleNode:
    """One nn.Module of a file.

    Attributes:
        class_name: Without the path of its module, for example "SynthesisLayer".
        attributes: Those that are plain values (`value_of`): no tensors, no records, no name that
            begins with an underscore.
        init_arguments: What it was constructed with, where the file says so (NVIDIA's files do).
        init_keywords: The same, by name.
    """

    class_name: str
    attributes: dict[str, Any]
    init_arguments: tuple[Any, ...]
    init_keywords: dict[str, Any]


@dataclass(frozen=True)
class ModuleTree:
    """A network of a file.

    Attributes:
        nodes: Its modules by dotted path; "" is the network itself.
        tensors: Its parameters and persistent buffers by dotted name, as in its state dict.
    """

    nodes: dict[str, ModuleNode]
    tensors: dict[str, Tensor]


def is_module(x: Any) -> bool:
    """Whether `x` is the record of an nn.Module."""
    return (
        isinstance(x, PersistentRecord | Record)
        and isinstance(x.state, dict)
        and _mapping(x.state.get("_modules")) is not None
        and _mapping(x.state.get("_parameters")) is not None
    )


def _mapping(x: Any) -> Mapping[Any, Any] | None:
    # An unknown dict class, as old files of dill may have, keeps its content in the entries.
    return x.entries if isinstance(x, Record) else x if isinstance(x, dict) else None


def walk_modules(record: Any, where: Path | str) -> ModuleTree:
    """Collects the modules and tensors of the network that `record` stands for.

    Args:
        record: A PersistentRecord or Record of an nn.Module.
        where: The file, for the errors.

    Raises:
        UnsafeFileError: a module contains itself, or there are more modules, levels or values than
            any real network has, or a parameter is stored in a way that only code could restore.
        CorruptFileError: it is not a module, or one of its parts is not.
    """
    walk = _Walk(where)
    walk.visit(record, "", ())
    return ModuleTree(walk.nodes, walk.tensors)


class _Walk:
    def __init__(self, where: Path | str) -> None:
        self.where = where
        self.effort = _Effort(where)
        self.nodes: dict[str, ModuleNode] = {}
        self.tensors: dict[str, Tensor] = {}
        self.described: dict[int, ModuleNode] = {}  # a module met again is not read again

    def visit(self, record: Any, path: str, within: tuple[int, ...]) -> None:
        if not is_module(record):
            raise CorruptFileError(
                f"{self.where}: {path or 'what it holds'} is not a network module. The file is of "
                "another kind than its place says, or damaged."
            )
        if id(record) in within:
            raise self._refusal(path, "the module contains itself")
        if len(within) >= MAX_DEPTH:
            raise self._refusal(path, f"modules are nested deeper than {MAX_DEPTH}")
        if len(self.nodes) >= MAX_MODULES:
            raise self._refusal(path, f"there are more than {MAX_MODULES} modules")
        self.effort.spend(VALUE + len(path))
        self.nodes[path] = self._describe(record)
        prefix = f"{path}." if path else ""
        self._collect(record.state, prefix, path)
        for name, child in self._named(record.state["_modules"], path):
            if child is not None:
                self.visit(child, prefix + name, (*within, id(record)))

    def _describe(self, record: PersistentRecord | Record) -> ModuleNode:
        if id(record) not in self.described:
            persistent = isinstance(record, PersistentRecord)
            name = record.class_name if persistent else record.name
            arguments = record.state.get("_init_args") if persistent else ()
            keywords = record.state.get("_init_kwargs") if persistent else {}
            public = {
                key: value
                for key, value in record.state.items()
                if isinstance(key, str) and not key.startswith("_")
            }
            positional = self._plain_only({"": arguments}).get("")
            self.described[id(record)] = ModuleNode(
                class_name=name.rpartition(".")[2],
                attributes=self._plain_only(public),
                init_arguments=tuple(positional) if isinstance(positional, list | tuple) else (),
                init_keywords=self._plain_only(_mapping(keywords) or {}),
            )
        return self.described[id(record)]

    def _plain_only(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        kept = {}
        for name, value in values.items():
            if not isinstance(name, str):
                continue
            try:
                kept[name] = _plain(value, 0, self.effort, False)
            except _NotPlain:  # a submodule kept twice, a function: nothing that describes it
                continue
        return kept

    def _collect(self, state: dict[Any, Any], prefix: str, path: str) -> None:
        passing = state.get("_non_persistent_buffers_set", ())
        if not isinstance(passing, list | tuple | set | frozenset):
            raise self._refusal(path, "its set of non-persistent buffers is not a set")
        self.effort.spend(VALUE * len(passing))
        passing = {name for name in passing if isinstance(name, str)}
        parameters = self._named(state["_parameters"], path)
        buffers = self._named(state.get("_buffers", {}), path)
        tensors = [*parameters, *((name, x) for name, x in buffers if name not in passing)]
        for name, tensor in tensors:
            if isinstance(tensor, TensorRecord):
                self.tensors[prefix + name] = tensor.tensor()
            elif tensor is not None:
                raise self._refusal(
                    prefix + name, f"it is stored as {_described(tensor)}, not as a tensor"
                )

    def _named(self, mapping: Any, path: str) -> Iterator[tuple[str, Any]]:
        for name, value in (_mapping(mapping) or {}).items():
            if not isinstance(name, str) or not name or "." in name:
                raise self._refusal(path, "a part of it has a name that no network can have")
            self.effort.spend(VALUE + len(path) + len(name))
            yield name, value

    def _refusal(self, path: str, reason: str) -> UnsafeFileError:
        return UnsafeFileError(
            f"{self.where}: {path[:200] or 'the network'}: {reason}; no real network does this. "
            "Take the file from its publisher again."
        )
