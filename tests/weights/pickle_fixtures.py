"""Pickles written for tests: instruction by instruction, and by classes that exist for a moment."""

import contextlib
import io
import pickle
import struct
import sys
import types
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAGIC = 0x1950A86A20F9469CFC6C
SOURCE = "WIDTH = 4  # stands where the files of networks carry their program"
GOLDEN = Path(__file__).parent.parent / "data" / "golden"


# --- Instructions ---------------------------------------------------------------------------------


def named(module: str, name: str) -> bytes:
    return b"c" + module.encode() + b"\n" + name.encode() + b"\n"


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def raw(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def number(value: int) -> bytes:
    content = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


def group(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + group(*arguments) + b"R"


def listed(*items: bytes) -> bytes:
    return b"]" + b"".join(item + b"a" for item in items)


def mapping(**items: bytes) -> bytes:
    return b"}" + b"".join(text(key) + value + b"s" for key, value in items.items())


def whole(*instructions: bytes) -> bytes:
    return b"\x80\x02" + b"".join(instructions) + b"."


def system_call(canary: Path) -> bytes:
    return call(named("os", "system"), text(f"touch {canary}"))


# --- Torch streams --------------------------------------------------------------------------------


def storage(
    count: int, key: str = "0", kind: str = "FloatStorage", extra: bytes | None = b"N"
) -> bytes:
    parts = [text("storage"), named("torch", kind), text(key), text("cuda:0"), number(count)]
    return group(*parts, *([extra] if extra is not None else [])) + b"Q"


def stream(
    tree: bytes,
    storages: Mapping[str, bytes],
    *,
    magic: int = MAGIC,
    protocol: int = 1001,
    little_endian: bool = True,
    counts: Mapping[str, int] | None = None,
) -> bytes:
    """A torch stream of before version 1.6; `storages` are float32 numbers by key."""
    head = [magic, protocol, {"little_endian": little_endian, "protocol_version": protocol}]
    content = b"".join(pickle.dumps(part, 2) for part in head) + whole(tree)
    content += pickle.dumps(list(storages), 2)
    for key, numbers in storages.items():
        count = (counts or {}).get(key, len(numbers) // 4)
        content += struct.pack("<q", count) + numbers
    return content


def inner(content: bytes) -> bytes:
    return call(named("torch.storage", "_load_from_bytes"), raw(content))


def floats(*values: float) -> bytes:
    return struct.pack(f"<{len(values)}f", *values)


TWO_FLOATS = inner(stream(storage(2), {"0": floats(1, 2)}))


def tensor(
    where: bytes = TWO_FLOATS,
    offset: int = 0,
    shape: tuple[int, ...] = (2,),
    stride: tuple[int, ...] = (1,),
) -> bytes:
    sizes, steps = (group(*map(number, numbers)) for numbers in (shape, stride))
    rebuild = named("torch._utils", "_rebuild_tensor_v2")
    return call(rebuild, where, number(offset), sizes, steps, b"\x89", b"}")


def archive(
    members: Mapping[str, bytes], *, compression: int = zipfile.ZIP_STORED, folder: str = "net/"
) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", compression) as file:
        for name, data in members.items():
            file.writestr(folder + name, data)
    return content.getvalue()


# --- Networks whose classes exist only while they are written -------------------------------------


@contextlib.contextmanager
def modules(**contents: Mapping[str, Any]) -> Iterator[None]:
    """Makes modules of these contents importable; "__" in a name stands for a dot."""
    added = []
    try:
        for name, content in contents.items():
            parts = name.split("__")
            for end in range(1, len(parts) + 1):
                path = ".".join(parts[:end])
                if path not in sys.modules:
                    sys.modules[path] = types.ModuleType(path)
                    added.append(path)
            for key, value in content.items():
                value.__module__, value.__qualname__ = ".".join(parts), key
                setattr(sys.modules[".".join(parts)], key, value)
        yield
    finally:
        for path in added:
            del sys.modules[path]


def network_class() -> type[nn.Module]:
    """A new class, so that a test may put it into any module."""

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.z_dim = 8
            self.widths = [4, 3]
            self.mapping = nn.Linear(8, 4)
            self.blocks = nn.ModuleList([nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)])
            self.tied = self.mapping
            self.register_buffer("w_avg", torch.randn(4).half())
            self.register_buffer("grid", torch.ones(2), persistent=False)

    return Generator


def persistent_bytes(protocol: int) -> tuple[bytes, dict[str, Tensor]]:
    """A pickle laid out like NVIDIA's, and the state dict of its G_ema."""

    class EasyDict(dict[str, Any]):
        pass

    def _reconstruct_persistent_obj(meta: Any) -> None:
        raise NotImplementedError

    class Persistent(nn.Module):
        def __reduce__(self) -> tuple[Any, ...]:
            meta = {
                "type": "class",
                "version": 6,
                "module_src": SOURCE,
                "class_name": type(self).__name__,
                "state": dict(self.__dict__),
            }
            return _reconstruct_persistent_obj, (meta,), None

    class Layer(Persistent):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 4).t())
            self.up = 2
            self.size = torch.randn(3).numpy()
            self._init_args = (3,)
            self._init_kwargs = EasyDict(activation="lrelu", filter=[1, 3, 3, 1])

    class Generator(Persistent):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.synthesis = Layer()
            self.gain = torch.randn(1).numpy()[0]
            self.register_buffer("w_avg", torch.randn(5))
            self.register_buffer("grid", torch.ones(2), persistent=False)
            self._init_args = ()
            self._init_kwargs = EasyDict(z_dim=8)

    network = Generator()
    tree = {"G_ema": network, "D": None, "training_set_kwargs": EasyDict(path="faces.zip")}
    with modules(
        dnnlib__util={"EasyDict": EasyDict},
        torch_utils__persistence={"_reconstruct_persistent_obj": _reconstruct_persistent_obj},
    ):
        return pickle.dumps(tree, protocol), network.state_dict()
