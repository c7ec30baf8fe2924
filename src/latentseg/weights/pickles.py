"""Pickles of unknown origin, read as data: nothing that they name is imported or run.

A pickle is a program whose instructions call what it names. Here every name stands for one of the
few functions below, which only take apart what is in the file, or for nothing: then an inert record
(`records`) takes its place. So a hostile file can at worst ask for memory and time, and both are
bounded by its size.

The torch files of before version 1.6, and the tensors within a plain pickle, are five pickles and
the numbers after them (`read_stream`); the zip files since then are opened by `torch_files`.
"""

import contextlib
import hashlib
import io
import os
import pickle
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from latentseg.errors import CorruptFileError, InputError, UnsafeFileError
from latentseg.files import open_regular
from latentseg.weights.records import (
    NOTHING,
    ArrayRecord,
    Contents,
    Global,
    PersistentRecord,
    Record,
    StorageRecord,
    TensorRecord,
)

MAX_INSTRUCTIONS = 10_000_000
MAX_LINE = 64 * 1024
MAX_NAME = 1000  # letters in the name of a class or function
MAX_KEY = 4096  # letters in the key of a dict
MAX_MEMO = 2**32
COPIES = 4  # how often the content of a file may be copied before it has become tensors and arrays
TORCH_MAGIC = 0x1950A86A20F9469CFC6C
TORCH_PROTOCOL = 1001

DTYPES = {name: x for name, x in vars(torch).items() if isinstance(x, torch.dtype)}
STORAGE_DTYPES = {
    ("torch", "FloatStorage"): torch.float32,
    ("torch", "DoubleStorage"): torch.float64,
    ("torch", "HalfStorage"): torch.float16,
    ("torch", "BFloat16Storage"): torch.bfloat16,
    ("torch", "LongStorage"): torch.int64,
    ("torch", "IntStorage"): torch.int32,
    ("torch", "ShortStorage"): torch.int16,
    ("torch", "CharStorage"): torch.int8,
    ("torch", "ByteStorage"): torch.uint8,
    ("torch", "BoolStorage"): torch.bool,
    ("torch.storage", "UntypedStorage"): torch.uint8,
}
ARRAY_DTYPE = re.compile(r"b1|[iu][1248]|f[248]|c(8|16)|[SU][0-9]{1,3}")
CODECS = {"latin1", "utf-8", "ascii"}


def read_pickle(path: Path | str) -> Contents:
    """Reads a plain pickle: NVIDIA's networks, TensorFlow's, what dill wrote.

    Plain values, lists and dicts come as they are tensors
    as TensorRecord, arrays as ArrayRecord, numpy scalars as Python numbers, NVIDIA's persistent
    objects as PersistentRecord, and objects of every other class as Record. The networks of a
    TensorFlow file are Records named "dnnlib.tflib.network.Network" whose state is a dict with
    static_kwargs, components (more of them) and variables, a list of (name, ArrayRecord).

    Raises:
        InputError: there is no such file, or it is a torch file.
        UnsafeFileError: it asks for what no network file needs.
        CorruptFileError: it is damaged.
    """
    with opened(path) as (stream, size), explained(path):
        reading = Reading(size)
        tree = Unpickler(Source(stream, size), reading, encoding="latin1").load()
        if _is_magic(tree):
            raise InputError(f"{path}: a file of torch.save, not a plain pickle. Use read_torch.")
        return reading.contents(tree)


@contextlib.contextmanager
def opened(path: Path | str) -> Iterator[tuple[io.BufferedReader, int]]:
    """Opens a file for reading, with its size in bytes.

    Raises:
        InputError: there is no such file, or it may not be read.
    """
    if not os.path.isfile(path):  # unlike Path.is_file, never raises on a hostile name
        raise InputError(f"{path}: there is no such file.")
    try:
        with open_regular(path) as stream:
            yield stream, os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}).") from error


@contextlib.contextmanager
def explained(path: Path | str) -> Iterator[None]:
    """Puts the name of the file before every error, and what to do after it."""
    try:
        yield
    except InputError:
        raise
    except UnsafeFileError as error:
        raise UnsafeFileError(
            f"{path}: {error}. latentseg reads data and never runs what a file names: take the "
            "file from its publisher again, or have it saved as safetensors."
        ) from error
    except Exception as error:  # damage has many faces: dozens of types, from many libraries
        raise CorruptFileError(
            f"{path}: damaged or not whole: {_reason(error)}. Get the file again."
        ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, CorruptFileError):
        return str(error)
    if isinstance(error, pickle.UnpicklingError | ValueError | OSError):
        return f"{type(error).__name__}, {shown(str(error))}"
    return type(error).__name__  # other messages may contain a whole object of the file


def shown(text: str) -> str:
    """Text from a file, fit for a message: short, and without control characters."""
    return ascii(text if len(text) <= 100 else text[:100] + "...")


class Source:
    """A stream from which nobody can take, or make room for, more than is there.

    Args:
        stream: Where the bytes come from, at its beginning; or the bytes themselves.
        size: How many there are.
        name: What it is called in messages; "" for the file itself.
    """

    def __init__(self, stream: io.BufferedReader | bytes, size: int, name: str = "") -> None:
        self.size = size
        self.left = size
        self._stream = io.BytesIO(stream) if isinstance(stream, bytes) else stream
        self._content = memoryview(stream) if isinstance(stream, bytes) else None
        self._name = name

    @property
    def place(self) -> str:
        """Where reading has come to, for messages."""
        return f"near byte {self.size - self.left}" + (f" of {self._name}" if self._name else "")

    def read(self, n: int) -> bytes:
        """The next `n` bytes; exactly so many.

        Raises:
            CorruptFileError: there are fewer.
        """
        if not 0 <= n <= self.left:
            self.require(n)
        self.left -= n
        data = self._stream.read(n)
        if len(data) != n:
            raise CorruptFileError("the file became shorter while it was read")
        return data

    def read_numbers(self, n: int) -> bytearray | memoryview:
        """The next `n` bytes: memory of their own, or a view where the source is in memory.

        Raises:
            CorruptFileError: there are fewer.
        """
        self.require(n)
        start = self.size - self.left
        self.left -= n
        if self._content is not None:
            self._stream.seek(start + n)
            return self._content[start : start + n]
        data = bytearray(n)
        if self._stream.readinto(data) != n:
            raise CorruptFileError("the file became shorter while it was read")
        return data

    def readline(self) -> bytes:
        """The next line, with its end.

        Raises:
            CorruptFileError: it does not end within 64 kB.
        """
        line = self._stream.readline(min(MAX_LINE, self.left))
        if not line.endswith(b"\n"):
            raise CorruptFileError("a line does not end")
        self.left -= len(line)
        return line

    def require(self, n: int) -> None:
        """Refuses if fewer than `n` bytes are left, and takes none.

        Raises:
            CorruptFileError: there are fewer.
        """
        if not 0 <= n <= self.left:
            raise CorruptFileError(f"{n} more bytes should follow, there are {self.left}")


class Reading:
    """What one file has asked for so far, in all the pickles inside it together.

    Args:
        size: Of the file in bytes; what its instructions may copy is measured by it.
    """

    def __init__(self, size: int) -> None:
        self.instructions = 0
        self.names: dict[str, int] = {}
        self._room = COPIES * size
        self._globals: dict[tuple[str, str], Global] = {}
        self._digests: dict[int, tuple[str, str]] = {}
        self._classes: dict[str, set[str]] = {}

    def charge(self, n: int) -> None:
        """Accounts for `n` bytes or items that an instruction copies.

        Raises:
            UnsafeFileError: the file copies the same content over and over.
        """
        self._room -= n
        if self._room < 0:
            raise UnsafeFileError("the file unfolds to many times its size")

    def name(self, module: str, name: str) -> Global:
        """Counts that the file asks for a class or function."""
        found = self._globals.get((module, name))
        if found is None:
            found = self._globals[module, name] = Global(module, name)
        full = f"{module}.{name}"
        self.names[full] = self.names.get(full, 0) + 1
        return found

    def digest(self, source: str, class_name: str) -> str:
        """The sha256 of program text in the file, noted down with the class it came with."""
        if id(source) not in self._digests:  # hundreds of modules share one text
            encoded = source.encode("utf-8", "surrogatepass")
            self._digests[id(source)] = source, hashlib.sha256(encoded).hexdigest()
        digest = self._digests[id(source)][1]
        self._classes.setdefault(digest, set()).add(class_name)
        return digest

    def contents(self, tree: Any) -> Contents:
        """The result, once all is read."""
        sources = {digest: ", ".join(sorted(names)) for digest, names in self._classes.items()}
        return Contents(tree, dict(sorted(self.names.items())), sources)


class Storages:
    """The storages that a torch stream names before their numbers come.

    Args:
        room: Bytes that all of them may have together.
    """

    def __init__(self, room: int) -> None:
        self.by_key: dict[str, StorageRecord] = {}
        self._room = room

    def named(self, identifier: Any) -> StorageRecord:
        """The storage of a persistent id: ("storage", type, key, location, count[, view]).

        The location, which is a device, is ignored.

        Raises:
            UnsafeFileError: it is not such an id, is a view, or contradicts an earlier one.
            CorruptFileError: there are more numbers than the stream has bytes.
        """
        if type(identifier) is not tuple or len(identifier) not in (5, 6):
            raise UnsafeFileError("a persistent id is not one of a storage")
        kind, tag, key, _, count = identifier[:5]
        if kind not in ("storage", b"storage") or type(tag) is not Global or type(key) is not str:
            raise UnsafeFileError("a persistent id is not one of a storage")
        dtype = STORAGE_DTYPES.get((tag.module, tag.name))
        if dtype is None:
            raise UnsafeFileError(f"storages of type {shown(tag.name)} are not known")
        if not re.fullmatch(r"[A-Za-z0-9_]{1,100}", key):
            raise UnsafeFileError(f"a storage has the name {shown(key)}")
        if type(count) is not int or count < 0:
            raise UnsafeFileError("a storage has no proper number of elements")
        if identifier[5:] not in ((), (None,)):
            raise UnsafeFileError("a storage is a view of another one")
        if key not in self.by_key:
            storage = StorageRecord(key, dtype, count)
            self._room -= storage.n_bytes
            if self._room < 0:
                raise CorruptFileError("its tensors are larger than itself")
            self.by_key[key] = storage
        known = self.by_key[key]
        if (known.dtype, known.count) != (dtype, count):
            raise UnsafeFileError(f"storage {key} is described in two ways")
        return known


def read_stream(source: Source, reading: Reading, *, inner: bool = False) -> Any:
    """Reads a torch stream of before version 1.6: five pickles, then the numbers of all storages.

    Args:
        source: The stream.
        reading: Of the file that it is, or that it is in.
        inner: It is a part of a pickle.

    Raises:
        UnsafeFileError: it asks for what no network file needs.
        CorruptFileError: it is not such a stream, or damaged.
    """
    storages = Storages(source.size)

    def outside(identifier: Any) -> Any:
        if type(identifier) is tuple and identifier[:1] in (("module",), (b"module",)):
            return _class_with_source(identifier, reading)
        return storages.named(identifier)

    def load(outside: Callable[[Any], Any] | None = None) -> Any:
        return Unpickler(source, reading, encoding="utf-8", outside=outside, inner=inner).load()

    if not _is_magic(load()):
        raise CorruptFileError("it does not begin like a file of torch.save")
    protocol = load()
    if type(protocol) is not int or protocol != TORCH_PROTOCOL:
        raise CorruptFileError("it is written in a way of torch.save that is not known")
    machine = load()
    if type(machine) is not dict or machine.get("little_endian") is not True:
        raise UnsafeFileError("its numbers are not little-endian")
    tree = load(outside)
    keys = load()
    if type(keys) is not list or any(type(key) is not str for key in keys):
        raise CorruptFileError("the list of its storages is not a list of names")
    if len(keys) != len(storages.by_key) or set(keys) != set(storages.by_key):
        raise CorruptFileError("the list of its storages is not that of the storages it uses")
    for key in keys:
        storage = storages.by_key[key]
        count = int.from_bytes(source.read(8), "little", signed=True)
        if count != storage.count:
            raise CorruptFileError(f"storage {key} has another length than was said")
        storage.fill(source.read_numbers(storage.n_bytes))
    return tree


def _class_with_source(identifier: tuple[Any, ...], reading: Reading) -> Global:
    """The class in the id ("module", class, file, source) that old files give to networks."""
    if len(identifier) != 4 or type(identifier[1]) is not Global:
        raise UnsafeFileError("a persistent id is not one of a class")
    if type(identifier[3]) is str:
        reading.digest(identifier[3], identifier[1].name)
    return identifier[1]


def _is_magic(tree: Any) -> bool:
    return type(tree) is int and tree == TORCH_MAGIC


class Unpickler(pickle._Unpickler):
    """Follows the instructions of one pickle without importing, calling or changing anything else.

    The C unpickler would allocate what a few bytes ask for, and its instructions cannot be
    replaced one by one.

    Args:
        source: Where the pickle begins; is left where it ends.
        reading: Of the file.
        encoding: Of the text that Python 2 wrote.
        outside: Gives what stands outside of the pickle under an id; None where nothing may.
        inner: The pickle is part of a torch stream that is itself inside a pickle.
    """

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)
    memo: dict[int, Any]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        source: Source,
        reading: Reading,
        *,
        encoding: str,
        outside: Callable[[Any], Any] | None = None,
        inner: bool = False,
    ) -> None:
        super().__init__(source, encoding=encoding)
        self.source = source
        self.reading = reading
        self.inner = inner
        self._outside = outside
        self._latest = ""  # the name that was last asked for or called

    def load(self) -> Any:
        """Follows the instructions to the end and gives the object.

        Raises:
            UnsafeFileError: the pickle asks for what no network file needs.
            CorruptFileError: it is damaged.
        """
        try:
            return self._follow()
        except UnsafeFileError as error:
            raise UnsafeFileError(f"{self._place()}: {error}") from error
        except Exception as error:
            raise CorruptFileError(f"{self._place()}: {_reason(error)}") from error

    def _place(self) -> str:
        return self.source.place + (f", at {shown(self._latest)}" if self._latest else "")

    def _follow(self) -> Any:
        read, dispatch, reading = self.source.read, self.dispatch, self.reading
        self.read, self.readline = read, self.source.readline
        self.metastack: list[list[Any]] = []
        self.stack: list[Any] = []
        self.append = self.stack.append
        while True:
            instruction = read(1)
            if instruction == pickle.STOP:
                return self.stack.pop()
            reading.instructions += 1
            if reading.instructions > MAX_INSTRUCTIONS:
                raise UnsafeFileError(f"there are more than {MAX_INSTRUCTIONS} instructions")
            follow = dispatch.get(instruction[0])
            if follow is None:
                raise CorruptFileError("what is there is no instruction")
            follow(self)

    def find_class(self, module: str, name: str) -> Any:
        """The class or function of that name: not itself, but what stands for it."""
        if len(module) + len(name) > MAX_NAME:
            raise UnsafeFileError("a class or function has a name of more than 1000 letters")
        self._latest = f"{module}.{name}"
        found = self.reading.name(module, name)
        return DTYPES.get(name, found) if module == "torch" else found

    def persistent_load(self, pid: Any) -> Any:
        """What stands outside of the pickle under this id."""
        if self._outside is None:
            raise UnsafeFileError("an object outside of the pickle is asked for")
        return self._outside(pid)

    def get_extension(self, code: int) -> None:
        """Refuses objects that are registered with the Python that runs."""
        raise UnsafeFileError(f"the registered object number {code} is asked for")

    def call(self, function: Any, arguments: Any, keywords: Any = None) -> Any:
        """What stands for the result of calling `function`, which came from the file."""
        if type(arguments) is not tuple:
            raise UnsafeFileError("a function is called with what are no arguments")
        if type(function) not in (Global, Record):
            raise UnsafeFileError(f"a {type(function).__name__} is called like a function")
        self._latest = f"{function.module}.{function.name}"
        meaning = MEANINGS.get((function.module, function.name))
        if meaning is None or type(function) is Record:
            return Record(function.module, function.name, arguments, keywords or NOTHING)
        if keywords:
            raise UnsafeFileError("it is called with arguments by name")
        return meaning(self, arguments)

    def _instantiate(self, klass: Any, args: list[Any]) -> None:
        self.append(self.call(klass, tuple(args)))

    def _frame(self) -> None:
        # A frame only says how far one may read ahead. Without reading ahead, every byte goes
        # through the source, with its limits.
        self.source.require(int.from_bytes(self.read(8), "little"))

    def _bytearray8(self) -> None:
        self.append(self.read(int.from_bytes(self.read(8), "little")))

    def _put(self) -> None:
        index = int(self.readline()[:-1])
        if not 0 <= index < MAX_MEMO:  # larger ones can be chosen so that all collide in a dict
            raise UnsafeFileError("an object is given an impossible number")
        self.memo[index] = self.stack[-1]

    def _reduce(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def _newobj(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = self.call(self.stack[-1], arguments)

    def _newobj_ex(self) -> None:
        keywords, arguments = self.stack.pop(), self.stack.pop()
        if type(keywords) is not dict:
            raise UnsafeFileError("a function is called with what are no arguments")
        self.stack[-1] = self.call(self.stack[-1], arguments, keywords)

    def _build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) is Record:
            target.state = state
        elif type(target) is ArrayRecord:
            _fill_array(self, target, state)
        elif type(target) is _Dtype:
            target.take(state)
        elif type(target) not in (dict, PersistentRecord):
            # The state of a dict is ignored: a state dict carries versions of its modules there.
            raise UnsafeFileError(f"a {type(target).__name__} is to be changed")

    def _append(self) -> None:
        item = self.stack.pop()
        self._extend([item])

    def _appends(self) -> None:
        self._extend(self.pop_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) not in (list, Record):
            raise UnsafeFileError(f"something is appended to a {type(target).__name__}")
        target.extend(items)

    def _setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set_entries([key, value])

    def _setitems(self) -> None:
        self._set_entries(self.pop_mark())

    def _set_entries(self, items: list[Any]) -> None:
        target, entries = self.stack[-1], _paired(items)
        if type(target) is dict:
            target.update(entries)
        elif type(target) is Record:
            target.set_entries(entries)
        else:
            raise UnsafeFileError(f"something is set in a {type(target).__name__}")

    def _additems(self) -> None:
        items, target = self.pop_mark(), self.stack[-1]
        if type(target) is set:
            target.update(_checked_keys(items))
        elif type(target) is Record:
            target.extend(items)
        else:
            raise UnsafeFileError(f"something is added to a {type(target).__name__}")

    def _dict(self) -> None:
        items = self.pop_mark()  # which changes where `append` appends
        self.append(_paired(items))

    def _frozenset(self) -> None:
        items = self.pop_mark()
        self.append(frozenset(_checked_keys(items)))


REPLACED: dict[bytes, Callable[[Unpickler], None]] = {
    pickle.FRAME: Unpickler._frame,
    pickle.BYTEARRAY8: Unpickler._bytearray8,
    pickle.PUT: Unpickler._put,
    pickle.REDUCE: Unpickler._reduce,
    pickle.NEWOBJ: Unpickler._newobj,
    pickle.NEWOBJ_EX: Unpickler._newobj_ex,
    pickle.BUILD: Unpickler._build,
    pickle.APPEND: Unpickler._append,
    pickle.APPENDS: Unpickler._appends,
    pickle.SETITEM: Unpickler._setitem,
    pickle.SETITEMS: Unpickler._setitems,
    pickle.ADDITEMS: Unpickler._additems,
    pickle.DICT: Unpickler._dict,
    pickle.FROZENSET: Unpickler._frozenset,
}
Unpickler.dispatch.update({code[0]: follow for code, follow in REPLACED.items()})


def _paired(items: list[Any]) -> dict[Any, Any]:
    return dict(zip(_checked_keys(items[::2]), items[1::2], strict=True))


def _checked_keys(keys: list[Any]) -> list[Any]:
    """Refuses keys of a dict or set whose hash or comparison a file could make slow.

    Hashes of numbers and tuples are known beforehand, so a file could choose thousands that
    collide; the hash of nested tuples goes down all levels, and could exhaust the stack.
    """
    for key in keys:
        if not (
            _is_key(key) or (type(key) is tuple and len(key) <= 16 and all(map(_is_text, key)))
        ):
            raise UnsafeFileError(f"this {type(key).__name__} cannot be a key")
    return keys


def _is_text(key: Any) -> bool:
    return type(key) in (str, bytes) and len(key) <= MAX_KEY


def _is_key(key: Any) -> bool:
    if type(key) is int:
        return key.bit_length() <= 64
    return key is None or type(key) in KEY_TYPES or _is_text(key)


KEY_TYPES = (
    bool,
    float,
    torch.dtype,
    Global,
    Record,
    PersistentRecord,
    TensorRecord,
    ArrayRecord,
    StorageRecord,
)


def _dict_of(unpickler: Unpickler, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    """A dict from pairs, as Python 2 and protocol 0 write them, or an empty one."""
    if not arguments:
        return {}
    (pairs,) = arguments
    if type(pairs) is dict:
        unpickler.reading.charge(len(pairs))
        return dict(pairs)
    if type(pairs) not in (list, tuple):
        raise UnsafeFileError("a dict is made from what are no pairs")
    unpickler.reading.charge(len(pairs))
    if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise UnsafeFileError("a dict is made from what are no pairs")
    return _paired([part for pair in pairs for part in pair])


def _default_dict(unpickler: Unpickler, arguments: tuple[Any, ...]) -> dict[Any, Any]:
    return _dict_of(unpickler, arguments[1:])


def _items_of(unpickler: Unpickler, arguments: tuple[Any, ...]) -> list[Any] | tuple[Any, ...]:
    (items,) = arguments or ((),)
    if not isinstance(items, list | tuple):
        raise UnsafeFileError("it is made from something else than a list of the file")
    unpickler.reading.charge(len(items))
    return items


def _set_of(unpickler: Unpickler, arguments: tuple[Any, ...]) -> set[Any]:
    return set(_checked_keys(list(_items_of(unpickler, arguments))))


def _frozenset_of(unpickler: Unpickler, arguments: tuple[Any, ...]) -> frozenset[Any]:
    return frozenset(_set_of(unpickler, arguments))


def _tuple_of(unpickler: Unpickler, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(_items_of(unpickler, arguments))


def _bytes_of(unpickler: Unpickler, arguments: tuple[Any, ...]) -> bytes:
    (content,) = arguments or (b"",)
    if type(content) is not bytes:
        raise UnsafeFileError("it is made from something else than bytes of the file")
    return content


def _encoded(unpickler: Unpickler, arguments: tuple[Any, ...]) -> bytes:
    """Bytes, as protocols 0 to 2 write them."""
    text, codec = arguments
    if type(text) is not str or type(codec) is not str or codec not in CODECS:
        raise UnsafeFileError("something else than text is encoded, or in another way than known")
    unpickler.reading.charge(len(text))
    return text.encode(codec)


def _no_device(unpickler: Unpickler, arguments: tuple[Any, ...]) -> str:
    return "cpu"


def _persistent(unpickler: Unpickler, arguments: tuple[Any, ...]) -> PersistentRecord:
    (meta,) = arguments
    if type(meta) is not dict or meta.get("type") != "class":
        raise UnsafeFileError("a persistent object is not described as one")
    source, name = meta.get("module_src"), meta.get("class_name")
    if type(source) is not str or type(name) is not str or len(name) > MAX_NAME:
        raise UnsafeFileError("a persistent object comes without its class or its source")
    digest = unpickler.reading.digest(source, name)
    return PersistentRecord(name, meta.get("version"), meta.get("state"), source, digest)


def _inner_storage(unpickler: Unpickler, arguments: tuple[Any, ...]) -> Any:
    """What a torch stream within the pickle holds; a storage, in honest files."""
    (content,) = arguments
    if type(content) is not bytes or unpickler.inner:
        raise UnsafeFileError("a torch stream is not where one can be")
    if content.startswith(b"PK"):
        raise UnsafeFileError("a zip file is in the place of a torch stream")
    unpickler.reading.charge(len(content))
    source = Source(content, len(content), "the torch stream inside")
    return read_stream(source, unpickler.reading, inner=True)


def _tensor(unpickler: Unpickler, arguments: tuple[Any, ...]) -> TensorRecord:
    storage, offset, shape, stride = arguments[:4]
    if type(storage) is not StorageRecord:
        raise UnsafeFileError(f"a tensor is made from a {type(storage).__name__}, not a storage")
    return TensorRecord(storage, offset, shape, stride)


def _parameter(unpickler: Unpickler, arguments: tuple[Any, ...]) -> TensorRecord:
    if type(arguments[0]) is not TensorRecord:
        raise UnsafeFileError(f"a parameter is made from a {type(arguments[0]).__name__}")
    return arguments[0]


class _Dtype:
    """The type of the elements of a numpy array, until an array is made."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._order = "="
        self._is_structured = False

    @property
    def has_objects(self) -> bool:
        """Whether the elements are Python objects."""
        return self._name in ("O", "O8", "O4")

    def take(self, state: Any) -> None:
        """Takes the byte order from the state (version, order, subtype, names, fields, ...)."""
        if type(state) is not tuple or len(state) < 5 or state[1] not in ("<", ">", "=", "|"):
            raise UnsafeFileError("the type of an array is not described as one")
        self._order = "=" if state[1] == "|" else state[1]
        self._is_structured = any(part is not None for part in state[2:5])

    def numpy(self) -> np.dtype:
        """The type.

        Raises:
            UnsafeFileError: it is not one of plain numbers, bytes or text.
        """
        if self._is_structured or not ARRAY_DTYPE.fullmatch(self._name):
            raise UnsafeFileError(f"arrays of type {shown(self._name)} are not read")
        return np.dtype(self._order + self._name)


def _dtype(unpickler: Unpickler, arguments: tuple[Any, ...]) -> _Dtype:
    name = arguments[0]
    if type(name) is not str or len(name) > 32:
        raise UnsafeFileError("the type of an array is not described as one")
    return _Dtype(name)


def _numbers_of(unpickler: Unpickler, raw: Any) -> bytes:
    # Python 2 wrote bytes as text.
    data = raw.encode("latin1") if type(raw) is str else raw
    if type(data) is not bytes:
        raise UnsafeFileError(f"an array is made from a {type(raw).__name__}, not from bytes")
    unpickler.reading.charge(len(data))
    return data


def _scalar(unpickler: Unpickler, arguments: tuple[Any, ...]) -> Any:
    """A numpy scalar as a Python number or text."""
    dtype, raw = arguments
    if type(dtype) is not _Dtype:
        raise UnsafeFileError("a number has no type")
    return np.frombuffer(_numbers_of(unpickler, raw), dtype.numpy()).reshape(()).item()


def _empty_array(unpickler: Unpickler, arguments: tuple[Any, ...]) -> ArrayRecord:
    return ArrayRecord()


def _dill_array(unpickler: Unpickler, arguments: tuple[Any, ...]) -> ArrayRecord:
    """An array as dill writes it: function, its arguments, state, attributes."""
    function, _, state = arguments[:3]
    if type(function) is not Global or MEANINGS.get((function.module, function.name)) is not (
        _empty_array
    ):
        raise UnsafeFileError("an array is made by an unknown function")
    array = ArrayRecord()
    _fill_array(unpickler, array, state)
    return array


def _fill_array(unpickler: Unpickler, array: ArrayRecord, state: Any) -> None:
    """Gives an array its state (version, shape, type, Fortran order, content)."""
    if type(state) is not tuple or len(state) != 5:
        raise UnsafeFileError("an array is not described as one")
    _, shape, dtype, is_fortran, content = state
    if type(dtype) is not _Dtype or type(shape) is not tuple:
        raise UnsafeFileError("an array is not described as one")
    if not dtype.has_objects:
        order = "F" if is_fortran is True else "C"
        _fill(array, shape, order, dtype, _numbers_of(unpickler, content))
    elif type(content) is list:
        array.fill_with_objects(shape, content)
    else:
        raise UnsafeFileError("an array of objects comes without their list")


def _array_of_buffer(unpickler: Unpickler, arguments: tuple[Any, ...]) -> ArrayRecord:
    """An array of protocol 5: content, type, shape, order[, axes]."""
    content, dtype, shape, order = arguments[:4]
    if type(dtype) is not _Dtype or type(shape) is not tuple or order not in ("C", "F", "K"):
        raise UnsafeFileError("an array is not described as one")
    array, data = ArrayRecord(), _numbers_of(unpickler, content)
    axes = arguments[4] if len(arguments) > 4 else None
    if order == "K" and axes is not None:
        array.fill(shape, axes, dtype.numpy(), data)
    else:
        _fill(array, shape, order, dtype, data)
    return array


def _fill(
    array: ArrayRecord, shape: tuple[int, ...], order: str, dtype: _Dtype, data: bytes
) -> None:
    axes = tuple(range(len(shape)))
    if order == "F":
        array.fill(shape[::-1], axes[::-1], dtype.numpy(), data)
    else:
        array.fill(shape, axes, dtype.numpy(), data)


Meaning = Callable[[Unpickler, tuple[Any, ...]], Any]


def _in_modules(modules: Iterable[str], meanings: dict[str, Meaning]) -> dict[Any, Meaning]:
    return {(module, name): call for module in modules for name, call in meanings.items()}


NUMPY = ("numpy.core", "numpy._core")  # before and since numpy 2
MEANINGS: dict[tuple[str, str], Meaning] = {
    ("collections", "OrderedDict"): _dict_of,
    ("collections", "defaultdict"): _default_dict,
    ("dnnlib.util", "EasyDict"): _dict_of,
    ("dnnlib", "EasyDict"): _dict_of,
    ("torch", "Size"): _tuple_of,
    ("torch", "device"): _no_device,
    ("torch._utils", "_rebuild_tensor"): _tensor,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _inner_storage,
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("numpy", "dtype"): _dtype,
    ("numpy", "ndarray"): _empty_array,
    ("dill._dill", "_create_array"): _dill_array,
    ("_codecs", "encode"): _encoded,
    **_in_modules(
        [f"{package}.multiarray" for package in NUMPY],
        {"_reconstruct": _empty_array, "scalar": _scalar},
    ),
    **_in_modules([f"{package}.numeric" for package in NUMPY], {"_frombuffer": _array_of_buffer}),
    **_in_modules(
        ["builtins", "__builtin__"],
        {
            "set": _set_of,
            "frozenset": _frozenset_of,
            "bytearray": _bytes_of,
            "bytes": _bytes_of,  # protocols 0 to 2 write empty bytes so
        },
    ),
}
