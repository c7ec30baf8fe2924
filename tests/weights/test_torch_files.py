"""Files of torch.save are read as data: official layouts bit for bit, hostile ones refused."""

import argparse
import io
import pickle
import random
import struct
import sys
import time
import tracemalloc
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError, UnsafeFileError
from latentseg.weights.pickles import read_pickle
from latentseg.weights.records import (
    Contents,
    Record,
    TensorRecord,
    is_module,
    value_of,
    walk_modules,
)
from latentseg.weights.torch_files import read_torch
from tests.weights.pickle_fixtures import (
    GOLDEN,
    SOURCE,
    archive,
    call,
    floats,
    group,
    inner,
    mapping,
    modules,
    named,
    network_class,
    number,
    persistent_bytes,
    storage,
    stream,
    system_call,
    tensor,
    text,
    whole,
)

REFUSALS = (UnsafeFileError, CorruptFileError)
FORMATS = {"zip": True, "legacy": False}
FOREIGN = {"torch_utils", "dnnlib", "training", "R3GAN", "models"}


@pytest.fixture(scope="module")
def read(tmp_path_factory) -> Callable[[bytes], Contents]:
    path = tmp_path_factory.mktemp("files") / "weights.pt"

    def read_bytes(content: bytes) -> Contents:
        path.write_bytes(content)
        return read_torch(path)

    return read_bytes


def saved(tree: Any, format: str) -> bytes:
    content = io.BytesIO()
    with warnings.catch_warnings():
        # Of torch, which looks for the source of classes that have none, for old files only.
        warnings.simplefilter("ignore", UserWarning)
        torch.save(tree, content, _use_new_zipfile_serialization=FORMATS[format])
    return content.getvalue()


def assert_same(read: Any, expected: Any) -> int:
    """Compares what was read with what torch.load gives; the number of tensors that are equal."""
    if isinstance(expected, Tensor):
        assert isinstance(read, TensorRecord)
        values = read.tensor()
        assert values.dtype == expected.dtype
        assert values.shape == expected.shape
        assert values.stride() == expected.stride()
        assert torch.equal(values, expected)
        return 1
    if isinstance(expected, dict):
        assert list(read) == list(expected)
        return sum(assert_same(read[key], value) for key, value in expected.items())
    if isinstance(expected, list | tuple):
        assert len(read) == len(expected)
        return sum(assert_same(a, b) for a, b in zip(read, expected, strict=True))
    assert read == expected
    return 0


# --- Golden files ---------------------------------------------------------------------------------

ENDINGS = {".pkl", ".pt", ".pth", ".bin", ".model", ".ckpt"}
GOLDEN_FILES = sorted(
    path.relative_to(GOLDEN).as_posix() for path in GOLDEN.rglob("*") if path.suffix in ENDINGS
)
# Files with classes that torch.load refuses: what they hold, by class.
WITH_CLASSES = {
    "biggan/ajbrock128/state_dict_best0.pth": "torch.nn.modules.activation.ReLU",
    "biggan/ajbrock32/state_dict_best0.pth": "torch.nn.modules.activation.ReLU",
    "progan/scales2-legacy-alpha/celebaHQ_s2_i96000.pt": "models.utils.config.BaseConfig",
    "progan/scales3/celebaHQ_s3_i96000.pt": "models.utils.config.BaseConfig",
    "rosinality-stylegan2/training32/010000.pt": "argparse.Namespace",
}


def test_all_golden_files_are_there() -> None:
    assert len(GOLDEN_FILES) >= 40
    assert set(GOLDEN_FILES) > WITH_CLASSES.keys()


@pytest.mark.parametrize("name", [name for name in GOLDEN_FILES if not name.endswith(".pkl")])
def test_golden_torch_file_is_read_like_torch_does(name) -> None:
    contents = read_torch(GOLDEN / name)
    if name in WITH_CLASSES:
        assert WITH_CLASSES[name] in contents.names
        with pytest.raises(pickle.UnpicklingError):
            torch.load(GOLDEN / name, weights_only=True)
    else:
        assert assert_same(contents.tree, torch.load(GOLDEN / name, weights_only=True)) >= 20


@pytest.mark.parametrize("name", [name for name in GOLDEN_FILES if name.endswith(".pkl")])
def test_golden_network_is_found_in_its_pickle(name) -> None:
    before = set(sys.modules)
    contents = read_pickle(GOLDEN / name)
    walked = walk_modules(contents.tree["G_ema"], name)
    assert walked.nodes[""].class_name in ("Generator", "SuperresGenerator")
    assert len(walked.tensors) >= 30
    assert all(values.isfinite().all() for values in walked.tensors.values())
    assert set(sys.modules) == before
    assert not {module.partition(".")[0] for module in before} & FOREIGN
    embedded = "torch_utils.persistence._reconstruct_persistent_obj" in contents.names
    assert embedded == bool(contents.sources)


def test_golden_file_with_foreign_classes_gives_weights_and_configuration() -> None:
    tree = read_torch(GOLDEN / "rosinality-stylegan2/training32/010000.pt").tree
    assert isinstance(tree["args"], Record)
    assert value_of(tree["args"].state)["size"] == 32
    assert all(isinstance(record, TensorRecord) for record in tree["g_ema"].values())


# --- Layouts --------------------------------------------------------------------------------------


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.int32,
        torch.int16,
        torch.int8,
        torch.uint8,
        torch.bool,
    ],
)
def test_tensors_of_every_type(read, format, dtype) -> None:
    torch.manual_seed(0)
    values = torch.randn(4, 5).mul(3).to(dtype)
    tree = {
        "all": values,
        "turned": values.t(),
        "part": values[1:3, ::2],
        "none": values[:0],
        "one": values[2, 3],
        "parameter": nn.Parameter(values, requires_grad=dtype.is_floating_point),
    }
    expected = torch.load(io.BytesIO(saved(tree, format)), weights_only=True)
    assert assert_same(read(saved(tree, format)).tree, expected) == 6


@pytest.mark.parametrize("format", FORMATS)
def test_training_file_with_its_options(read, format) -> None:
    options = argparse.Namespace(size=32, mixing=0.9, path="faces", r1=None)
    tree = {"g_ema": nn.Linear(2, 3).state_dict(), "args": options, "step": 7}
    contents = read(saved(tree, format))
    record = contents.tree["args"]
    assert (record.module, record.name) == ("argparse", "Namespace")
    assert value_of(record.state) == vars(options)
    assert assert_same(contents.tree["g_ema"], tree["g_ema"]) == 2
    assert contents.names["argparse.Namespace"] == 1


@pytest.mark.parametrize("format", FORMATS)
def test_configuration_with_an_activation(read, format) -> None:
    contents = read(saved({"config": {"G_activation": nn.ReLU(inplace=True)}}, format))
    record = contents.tree["config"]["G_activation"]
    assert is_module(record)
    (node,) = walk_modules(record, "it").nodes.values()
    assert (node.class_name, node.attributes["inplace"]) == ("ReLU", True)


@pytest.mark.parametrize("format", FORMATS)
def test_configuration_object(read, format) -> None:
    class BaseConfig:
        pass

    config = BaseConfig()
    vars(config).update(dimLatentVector=512, depthOtherScales=[64, 32])
    with modules(models__utils__config={"BaseConfig": BaseConfig}):
        content = saved({"config": config, "avgG": {"weight": torch.ones(2)}}, format)
    tree = read(content).tree
    assert value_of(tree["config"].state) == vars(config)
    assert tree["avgG"]["weight"].tensor().tolist() == [1, 1]


@pytest.mark.parametrize("format", FORMATS)
def test_whole_module(read, format) -> None:
    network = network_class()()
    with modules(some__networks={"Generator": type(network)}):
        content = saved(network, format)
    contents = read(content)
    assert is_module(contents.tree)
    walked = walk_modules(contents.tree, "it")
    assert assert_same_state(walked.tensors, network.state_dict()) == 12
    assert (walked.nodes[""].class_name, walked.nodes[""].attributes["z_dim"]) == ("Generator", 8)


def assert_same_state(read: dict[str, Tensor], expected: dict[str, Tensor]) -> int:
    assert list(read) == list(expected)
    return sum(torch.equal(read[name], values) for name, values in expected.items())


def test_old_files_carry_the_source_of_network_classes(read) -> None:
    network = nn.Sequential(nn.Linear(2, 3), nn.ReLU())
    contents = read(saved(network, "legacy"))
    walked = walk_modules(contents.tree, "it")
    assert assert_same_state(walked.tensors, network.state_dict()) == 2
    assert [node.class_name for node in walked.nodes.values()] == ["Sequential", "Linear", "ReLU"]
    assert sorted(contents.sources.values()) == ["Linear", "ReLU", "Sequential"]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_protocols_in_zip_files(read, protocol) -> None:
    content = io.BytesIO()
    tree = {"weight": torch.arange(6.0).reshape(2, 3), "options": argparse.Namespace(a=1)}
    torch.save(tree, content, pickle_protocol=protocol)
    read_tree = read(content.getvalue()).tree
    assert torch.equal(read_tree["weight"].tensor(), tree["weight"])
    assert read_tree["options"].state == {"a": 1}


def test_zip_files_without_checksums(read) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        content = saved({"weight": torch.ones(3)}, "zip")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read(content).tree["weight"].tensor().tolist() == [1, 1, 1]


def test_devices_are_ignored(read) -> None:
    (tree,) = read(stream(group(tensor(storage(2))), {"0": floats(1, 2)})).tree
    assert tree.tensor().device.type == "cpu"
    assert tree.tensor().tolist() == [1, 2]


def test_stream_of_python_2(read) -> None:
    kind = b"U\x07storage"
    identifier = group(
        kind, named("torch", "FloatStorage"), b"U\x010", b"U\x03cpu", number(2), b"N"
    )
    record = read(stream(tensor(identifier + b"Q"), {"0": floats(3, 4)})).tree
    assert record.tensor().tolist() == [3, 4]


def test_tensors_of_a_file_share_memory_and_keep_it_when_the_file_goes(read) -> None:
    values = torch.arange(4.0)
    for format in FORMATS:
        tree = read(saved([values, values[1:]], format)).tree
        read(saved([values * 0], format))  # the file is replaced
        first, second = (record.tensor() for record in tree)
        second += 1
        assert first.tolist() == [0, 2, 3, 4]


def test_embedded_streams_in_a_torch_file(read) -> None:
    part = inner(stream(storage(2), {"0": floats(1, 2)}))
    tree = read(stream(group(tensor(part), tensor(storage(1), 0, (1,))), {"0": floats(5)})).tree
    assert [record.tensor().tolist() for record in tree] == [[1, 2], [5]]


def test_missing_files_are_input_errors(tmp_path) -> None:
    for path in (tmp_path / "none.pt", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(InputError, match="no such file"):
            read_torch(path)


# --- Attacks --------------------------------------------------------------------------------------

VALUES = floats(1, 2)
GOOD = {"data.pkl": whole(tensor(storage(2, extra=None))), "data/0": VALUES}


def torchscript() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for name in ("data.pkl", "constants.pkl", "code/__torch__.py", "version"):
            file.writestr(f"net/{name}", whole(b"N"))
    return content.getvalue()


def twice(name: str) -> bytes:
    content = io.BytesIO(archive(GOOD))
    with zipfile.ZipFile(content, "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr("net/" + name, VALUES)
    return content.getvalue()


def central(content: bytes, name: str, offset: int, value: bytes) -> bytes:
    """Changes a field of the directory entry of `name` at the end of a zip file."""
    at = content.rindex(b"PK\x01\x02", 0, content.rindex(name.encode())) + offset
    return content[:at] + value + content[at + len(value) :]


def many_of_one() -> bytes:
    """A zip whose 50 storages are all the same 1 MB of the file."""
    content = io.BytesIO()
    names = [f"net/data/{i:02}" for i in range(50)]
    tree = b"]" + b"".join(storage(2**18, key=name[-2:], extra=None) + b"a" for name in names)
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("net/data.pkl", whole(tree))
        file.writestr(names[0], bytes(2**20))
        for name in names[1:]:
            member = zipfile.ZipInfo(name)
            first = file.getinfo(names[0])
            member.header_offset, member.CRC = first.header_offset, first.CRC
            member.file_size = member.compress_size = first.file_size
            file.filelist.append(member)
            file.NameToInfo[name] = member
    return content.getvalue()


def zipped(tree: bytes, **members: bytes) -> bytes:
    return archive({"data.pkl": whole(tree), **members})


INERT: dict[str, Callable[[Path], bytes]] = {
    "zip with a call": lambda c: zipped(system_call(c)),
    "legacy with a call": lambda c: stream(system_call(c), {}),
    "source of a class": lambda c: stream(
        group(text("module"), named("os", "system"), text("a.py"), text(f"open({str(c)!r}, 'w')"))
        + b"Q"
        + group(text(f"touch {c}"))
        + b"R",
        {},
    ),
    "call beside weights": lambda c: stream(
        group(system_call(c), tensor(storage(2))), {"0": VALUES}
    ),
    "BUILD with a call": lambda c: zipped(
        call(named("argparse", "Namespace")) + mapping(run=system_call(c)) + b"b"
    ),
    "persistent source": lambda c: zipped(
        call(
            named("torch_utils.persistence", "_reconstruct_persistent_obj"),
            mapping(
                type=text("class"),
                module_src=text(f"open({str(c)!r}, 'w')"),
                class_name=text("G"),
                state=b"}",
            ),
        )
    ),
}
REFUSED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "TorchScript": (lambda c: torchscript(), "TorchScript program"),
    "compressed": (lambda c: archive(GOOD, compression=zipfile.ZIP_DEFLATED), "compressed"),
    "bomb": (
        lambda c: archive({**GOOD, "data/0": bytes(50_000_000)}, compression=zipfile.ZIP_DEFLATED),
        "compressed",
    ),
    "storage twice": (lambda c: twice("data/0"), "twice"),
    "pickle twice": (lambda c: twice("data.pkl"), "twice"),
    "two pickles": (
        lambda c: archive({"a/data.pkl": whole(b"N"), "b/data.pkl": whole(b"N")}, folder=""),
        "this has 2",
    ),
    "no pickle": (lambda c: archive({"data/0": VALUES}), "this has 0"),
    "pickle too deep": (lambda c: archive({"a/data.pkl": whole(b"N")}), "this has 0"),
    "foreign byte order": (lambda c: archive({**GOOD, "byteorder": b"big"}), "little-endian"),
    "encrypted": (
        lambda c: central(archive(GOOD), "net/data/0", 8, b"\x01\x00"),
        "compressed or encrypted",
    ),
    "storage claims more": (
        lambda c: central(archive(GOOD), "net/data/0", 20, struct.pack("<II", 2**31, 2**31)),
        "larger than the file",
    ),
    "storage claims a little more": (
        lambda c: central(archive(GOOD), "net/data/0", 20, struct.pack("<II", 12, 12)),
        "not as long",
    ),
    "storage shorter than said": (
        lambda c: archive({**GOOD, "data/0": floats(1)}),
        "not as long as was said",
    ),
    "storage longer than said": (
        lambda c: archive({**GOOD, "data/0": floats(1, 2, 3)}),
        "not as long as was said",
    ),
    "storage missing": (lambda c: archive({"data.pkl": GOOD["data.pkl"]}), "is missing"),
    "storage outside": (
        lambda c: zipped(storage(2, key="../x", extra=None), **{"data/../x": VALUES}),
        "has the name",
    ),
    "storages larger than the file": (
        lambda c: zipped(storage(2**30, extra=None), **{"data/0": VALUES}),
        "larger than itself",
    ),
    "storages over each other": (lambda c: many_of_one(), "larger than itself"),
    "wrong checksum": (lambda c: archive(GOOD).replace(VALUES, floats(1, 3)), "BadZipFile"),
    "zip without an end": (lambda c: archive(GOOD)[:-10], "BadZipFile"),
    "a view in a zip": (lambda c: zipped(tensor(storage(2, extra=group()))), "is a view"),
    "view beyond storage": (
        lambda c: zipped(tensor(storage(2, extra=None), 0, (10**9,)), **{"data/0": VALUES}),
        "does not fit",
    ),
    "persistent text": (lambda c: zipped(text("storage") + b"Q"), "not one of a storage"),
    "persistent of another kind": (
        lambda c: zipped(group(text("module"), *[b"N"] * 4) + b"Q"),
        "not one of a storage",
    ),
    "class in a zip": (
        lambda c: zipped(group(text("module"), named("os", "system"), b"N", b"N") + b"Q"),
        "not one of a storage",
    ),
    "class that is text": (
        lambda c: stream(group(text("module"), text("os.system"), b"N", b"N") + b"Q", {}),
        "not one of a class",
    ),
    "legacy that claims 4 GB": (
        lambda c: stream(tensor(storage(10**9)), {"0": VALUES}),
        "larger than itself",
    ),
    "legacy count": (
        lambda c: stream(storage(2), {"0": VALUES}, counts={"0": -1}),
        "another length",
    ),
    "legacy big-endian": (lambda c: stream(b"N", {}, little_endian=False), "little-endian"),
    "legacy magic": (lambda c: stream(b"N", {}, magic=1), "does not begin"),
    "legacy protocol": (lambda c: stream(b"N", {}, protocol=1000), "not known"),
    "plain pickle": (lambda c: whole(system_call(c)), "does not begin"),
    "system information": (
        lambda c: stream(b"N", {}).replace(b"little_endian", b"little_behind"),
        "little-endian",
    ),
    "payload in the magic": (
        lambda c: whole(tensor(storage(2))),
        "outside of the pickle",
    ),
    "inner stream in an inner stream": (
        lambda c: stream(inner(stream(inner(stream(b"N", {})), {})), {}),
        "not where one can be",
    ),
    "empty": (lambda c: b"", "bytes should follow"),
    "text": (lambda c: b"<!DOCTYPE html>\n<html>", "instruction"),
    "tar of torch 0.1": (lambda c: b"sys_info\0" + bytes(503), "damaged or not whole"),
}


def measured(content: bytes, read: Callable[[bytes], Contents]) -> Any:
    """Reads within a second of this process, and with little memory beside the file's own."""
    started = time.process_time()
    tracemalloc.start()
    try:
        return read(content)
    except REFUSALS as error:
        return error.with_traceback(None)
    finally:
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()
        assert time.process_time() - started < 1


@pytest.mark.parametrize("name", INERT)
def test_nothing_that_a_file_names_is_run(name, read, tmp_path) -> None:
    canary = tmp_path / "canary"
    contents = measured(INERT[name](canary), read)
    assert isinstance(contents, Contents), contents
    assert contents.names
    assert not canary.exists()


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_file_of_weights_needs_is_refused(name, read, tmp_path) -> None:
    attack, reason = REFUSED[name]
    canary = tmp_path / "canary"
    refusal = measured(attack(canary), read)
    assert isinstance(refusal, REFUSALS)
    assert "weights.pt" in str(refusal)
    assert reason in str(refusal)
    assert not canary.exists()


def test_attacks_differ_from_what_opens(read) -> None:
    assert read(archive(GOOD)).tree.tensor().tolist() == [1, 2]
    assert read(archive({**GOOD, "byteorder": b"little"})).tree.shape == (2,)
    assert read(stream(tensor(storage(2)), {"0": VALUES})).tree.tensor().tolist() == [1, 2]


# --- Damage ---------------------------------------------------------------------------------------

CUTS = 150
FLIPS = 250


def fixture(format: str) -> bytes:
    torch.manual_seed(0)
    weights = {"weight": torch.randn(6, 5), "bias": torch.randn(6).half()}
    return saved({"g_ema": weights, "args": argparse.Namespace(size=32, name="faces")}, format)


def seen(tree: Any) -> Any:
    weights = {name: record.tensor() for name, record in tree["g_ema"].items()}
    numbers = {name: (str(x.dtype), x.tolist()) for name, x in weights.items()}
    return numbers, value_of(tree["args"].state), tree["args"].name


@pytest.mark.parametrize("format", FORMATS)
def test_a_file_cut_short_is_refused(read, format) -> None:
    content = fixture(format)
    chance = random.Random(0)
    for length in [0, 1, 4, len(content) - 1, *chance.sample(range(len(content)), CUTS)]:
        with pytest.raises(CorruptFileError, match=r"weights\.pt"):
            read(content[:length])


def flipped(content: bytes, times: int):
    chance = random.Random(1)
    for _ in range(times):
        changed = bytearray(content)
        changed[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(changed)


def test_a_zip_with_a_flipped_bit_is_refused_or_reads_the_same(read) -> None:
    intact, refused = seen(read(fixture("zip")).tree), 0
    for content in flipped(fixture("zip"), FLIPS):
        try:
            assert seen(read(content).tree) == intact
        except REFUSALS as error:
            refused += "weights.pt" in str(error)
    assert 0 < refused < FLIPS


def touch(tree: Any) -> None:
    """Asks everything in a small tree for its values."""
    if isinstance(tree, TensorRecord):
        assert tree.tensor().shape == tree.shape
    elif isinstance(tree, dict):
        for value in tree.values():
            touch(value)
    elif isinstance(tree, list | tuple):
        for value in tree:
            touch(value)
    elif isinstance(tree, Record):
        touch(tree.state)


def test_a_legacy_file_with_a_flipped_bit_is_refused_or_has_other_values(read) -> None:
    refused = 0
    for content in flipped(fixture("legacy"), FLIPS):
        try:
            touch(read(content).tree)
        except REFUSALS as error:
            refused += "weights.pt" in str(error)
    assert 0 < refused < FLIPS


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(start=st.sampled_from([b"", b"PK\x03\x04", stream(b"N", {})[:60]]), rest=st.binary())
def test_random_bytes(read, start, rest) -> None:
    with pytest.raises(REFUSALS, match=r"weights\.pt"):
        read(start + rest)


FILES = [fixture("zip"), fixture("legacy"), archive(GOOD)]


@settings(max_examples=200, deadline=None, database=None, derandomize=True)
@given(
    which=st.integers(0, len(FILES) - 1),
    edits=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=4)), min_size=1, max_size=4),
)
def test_random_changes(read, which, edits) -> None:
    content = bytearray(FILES[which])
    for place, replacement in edits:
        position = int(place * len(content))
        content[position : position + len(replacement)] = replacement
    try:
        touch(read(bytes(content)).tree)
    except REFUSALS as error:
        refusal = str(error)
        assert "weights.pt" in refusal


def test_the_same_network_in_every_container(read, tmp_path) -> None:
    content, expected = persistent_bytes(4)
    (tmp_path / "a.pkl").write_bytes(content)
    tree = read_pickle(tmp_path / "a.pkl").tree
    assert assert_same_state(walk_modules(tree["G_ema"], "a").tensors, expected) == 2
    assert SOURCE in tree["G_ema"].source
