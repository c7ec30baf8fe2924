"""Files of torch.save, zip archives and older ones, read without running what is in them."""

import io
import zipfile
from pathlib import Path
from typing import Any

from latentseg.errors import CorruptFileError, UnsafeFileError
from latentseg.weights.pickles import (
    Reading,
    Source,
    Storages,
    Unpickler,
    explained,
    opened,
    read_stream,
    shown,
)
from latentseg.weights.records import Contents

ZIP = b"PK\x03\x04"
CHUNK = 2**20  # zipfile copies what is read: never more than this at a time
ENCRYPTED = 0x1


def read_torch(path: Path | str) -> Contents:
    """Reads a file of torch.save; objects of classes that are not torch's become records.

    Tensors come as TensorRecord, arrays as ArrayRecord, whole networks and configuration objects
    as Record, everything else as it is. All tensors are read to the CPU.

    Raises:
        InputError: there is no such file.
        UnsafeFileError: it is a program (TorchScript), or asks for what no network file needs.
        CorruptFileError: it is damaged, or not a file of torch.save.
    """
    with opened(path) as (stream, size), explained(path):
        reading = Reading(size)
        is_zip = stream.read(len(ZIP)) == ZIP
        stream.seek(0)
        if is_zip:
            return reading.contents(_read_zip(stream, size, reading))
        return reading.contents(read_stream(Source(stream, size), reading))


def _read_zip(stream: io.BufferedReader, size: int, reading: Reading) -> Any:
    with zipfile.ZipFile(stream) as archive:
        members = _checked_members(archive, size)
        pickles = [name for name in members if name.endswith("/data.pkl") and name.count("/") == 1]
        if len(pickles) != 1:
            raise CorruptFileError(
                f"a file of torch.save has one data.pkl, this has {len(pickles)}"
            )
        folder = pickles[0].removesuffix("data.pkl")
        if any(name.startswith((f"{folder}code/", f"{folder}constants.pkl")) for name in members):
            raise UnsafeFileError("it is a TorchScript program, not a file of weights")
        order = members.get(f"{folder}byteorder")
        if order is not None and bytes(_content(archive, order)) != b"little":
            raise UnsafeFileError("its numbers are not little-endian")
        content = _content(archive, members[pickles[0]])
        source, storages = Source(bytes(content), len(content), "data.pkl"), Storages(size)
        tree = Unpickler(source, reading, encoding="utf-8", outside=storages.named).load()
        for key, storage in storages.by_key.items():
            member = members.get(f"{folder}data/{key}")
            if member is None or member.file_size != storage.n_bytes:
                raise CorruptFileError(f"storage {key} is missing, or not as long as was said")
            storage.fill(_content(archive, member))
        return tree


def _checked_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    members: dict[str, zipfile.ZipInfo] = {}
    for member in archive.infolist():
        name = member.filename
        if name in members:
            raise UnsafeFileError(f"the archive has {shown(name)} twice")
        if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & ENCRYPTED:
            raise UnsafeFileError(f"{shown(name)} is compressed or encrypted, as torch never does")
        if member.file_size != member.compress_size or member.file_size > size:
            raise CorruptFileError(f"{shown(name)} is larger than the file")
        if member.CRC == 0:  # torch.save can be told to leave the checksums out
            member.CRC = None  # pyright: ignore[reportAttributeAccessIssue]
        members[name] = member
    return members


def _content(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytearray:
    content, position = bytearray(member.file_size), 0
    with archive.open(member) as stream:
        while chunk := stream.read(CHUNK):
            content[position : position + len(chunk)] = chunk
            position += len(chunk)
    return content
