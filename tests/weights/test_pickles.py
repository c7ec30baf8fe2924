"""Pickles are read as data: every layout of network files, and what hostile files attempt."""

import contextlib
import math
import pickle
import pickletools
import random
import sys
import time
import tracemalloc
import warnings
import zlib
from collections import OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from latentseg.errors import CorruptFileError, InputError, UnsafeFileError
from latentseg.weights import pickles
from latentseg.weights.pickles import MEANINGS, REPLACED, Unpickler, read_pickle
from latentseg.weights.records import (
    ArrayRecord,
    Contents,
    Global,
    PersistentRecord,
    Record,
    StorageRecord,
    TensorRecord,
    is_module,
    value_of,
    walk_modules,
)
from tests.weights.pickle_fixtures import (
    SOURCE,
    TWO_FLOATS,
    archive,
    call,
    floats,
    group,
    inner,
    listed,
    mapping,
    modules,
    named,
    network_class,
    number,
    persistent_bytes,
    raw,
    storage,
    stream,
    system_call,
    tensor,
    text,
    whole,
)

REFUSALS = (UnsafeFileError, CorruptFileError)
PROTOCOLS = (2, 4, 5)


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Contents]:
    def read_bytes(content: bytes) -> Contents:
        path = tmp_path / "network.pkl"
        path.write_bytes(content)
        return read_pickle(path)

    return read_bytes


@pytest.fixture
def tree_of(read) -> Callable[[bytes], Any]:
    return lambda content: read(content).tree


def visit(tree: Any) -> int:
    """Asks everything in a tree for all that it can give; the number of things that answered."""
    waiting, seen = [tree], {}
    while waiting:
        x = waiting.pop()
        if id(x) in seen:
            continue
        seen[id(x)] = x
        for ask in (value_of, lambda x: walk_modules(x, "it"), is_module, repr_of_record):
            with contextlib.suppress(*REFUSALS):
                ask(x)
        if isinstance(x, dict):
            waiting += [*x.keys(), *x.values()]
        elif isinstance(x, list | tuple | set | frozenset):
            waiting += x
        elif isinstance(x, Record):
            waiting += [x.arguments, x.keywords, x.state, list(x.items), dict(x.entries)]
        elif isinstance(x, PersistentRecord):
            waiting += [x.state, x.source, x.version]
    return len(seen)


def repr_of_record(x: Any) -> None:
    if isinstance(x, Record | TensorRecord | ArrayRecord | PersistentRecord):
        assert len(repr(x)) < 1000


# --- The base class -------------------------------------------------------------------------------


def test_python_still_has_the_unpickler_that_is_replaced_in_parts() -> None:
    base = pickle._Unpickler
    assert issubclass(Unpickler, base)
    codes = {opcode.code.encode("latin1")[0] for opcode in pickletools.opcodes}
    assert set(base.dispatch) == set(Unpickler.dispatch) == codes
    assert {code[0] for code in REPLACED} <= set(base.dispatch)
    for code, follow in Unpickler.dispatch.items():
        assert (follow is base.dispatch[code]) == (bytes([code]) not in REPLACED)
    for method in ("find_class", "persistent_load", "get_extension", "_instantiate", "pop_mark"):
        assert callable(getattr(base, method))


def test_instructions_left_to_python_call_only_what_is_replaced() -> None:
    # A new version of Python that makes another instruction call or change objects shows here.
    calling = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD", "APPEND", "APPENDS", "SETITEM"}
    calling |= {"SETITEMS", "ADDITEMS", "DICT", "FROZENSET", "PUT", "FRAME", "BYTEARRAY8"}
    assert {getattr(pickle, name) for name in calling} == set(REPLACED)


# --- Plain values ---------------------------------------------------------------------------------

PLAIN = {
    "numbers": [0, -1, 255, 2**40, -(2**70), 1.5, math.inf, True, None],
    "text": ["", "größe", "\ud800", b"\x00\xff", b"", bytearray(b"ab")],
    "nested": ({"a": [1, (2, 3), {4}]}, frozenset({"x"}), OrderedDict(b=2, a=1)),
    "default": defaultdict(list, {"a": [1]}),
    "keys": {1: "a", 2.5: "b", None: "c", ("d", "e"): "f", b"g": "h", False: "i"},
    "size": torch.Size([2, 3]),
}


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_are_read_as_python_reads_them(tree_of, protocol) -> None:
    assert tree_of(pickle.dumps(PLAIN, protocol)) == PLAIN


def test_text_of_python_2_becomes_text(tree_of) -> None:
    assert tree_of(b"U\x02\xe4\xf6.") == "äö"
    assert tree_of(b"S'caf\\xe9'\n.") == "café"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_torch_types_devices_and_sizes(tree_of, protocol) -> None:
    tree = [torch.float16, torch.bfloat16, torch.device("cuda:1"), torch.Size([4])]
    assert tree_of(pickle.dumps(tree, protocol)) == [torch.float16, torch.bfloat16, "cpu", (4,)]


ARRAYS = {
    "float32": np.arange(6, dtype=np.float32).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(24.0).reshape(2, 3, 4)),
    "other order": np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2),
    "strided": np.arange(10, dtype=np.int16)[::3],
    "big-endian": np.arange(4, dtype=">i8"),
    "bool": np.array([True, False]),
    "empty": np.zeros((0, 3), np.float16),
    "no dimension": np.array(2.5),
    "bytes": np.array([b"ab", b"c"]),
    "text": np.array(["äb", "c"]),
    "complex": np.array([1 + 2j], np.complex64),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("numpy_1", [False, True])
@pytest.mark.parametrize("name", ARRAYS)
def test_numpy_arrays_of_every_layout(tree_of, name, protocol, numpy_1) -> None:
    array = ARRAYS[name]
    content = pickle.dumps(array, protocol)
    if numpy_1:
        content = as_numpy_1_wrote(content)
        assert b"numpy._core" not in content
    record = tree_of(content)
    assert isinstance(record, ArrayRecord)
    assert record.shape == array.shape
    read = record.array()
    assert read.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, array)
    assert read.flags.writeable or read.size == 0
    assert value_of(record) is read


def as_numpy_1_wrote(content: bytes) -> bytes:
    """The same pickle with the names of numpy 1: numpy.core instead of numpy._core."""
    content = content.replace(b"cnumpy._core", b"cnumpy.core")
    for module in (b".multiarray", b".numeric"):
        new, old = b"numpy._core" + module, b"numpy.core" + module
        content = content.replace(
            b"\x8c" + bytes([len(new)]) + new, b"\x8c" + bytes([len(old)]) + old
        )
    if content[2:3] == b"\x95":  # the length of the frame that begins the pickle
        content = content[:3] + (len(content) - 11).to_bytes(8, "little") + content[11:]
    return content


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_numpy_scalars_become_python_values(tree_of, protocol) -> None:
    scalars = [np.float32(0.5), np.int64(-3), np.bool_(True), np.str_("ab"), np.float16(2)]
    expected = [0.5, -3, True, "ab", 2.0]
    read = tree_of(pickle.dumps(scalars, protocol))
    assert read == expected
    assert [type(x) for x in read] == [type(x) for x in expected]


def test_array_of_objects_stays_a_list(tree_of, tmp_path) -> None:
    canary = tmp_path / "canary"
    array = np.array([{"a": 1}, None], dtype=object)
    record = tree_of(pickle.dumps(array, 4))
    assert record.dtype is None
    assert value_of(record) == [{"a": 1}, None]
    with pytest.raises(UnsafeFileError, match="objects"):
        record.array()
    dtype = call(named("numpy", "dtype"), text("O8"))
    state = group(number(1), group(number(1)), dtype, b"\x89", listed(system_call(canary)))
    made = call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"))
    (item,) = tree_of(whole(made, state, b"b")).items
    assert isinstance(item, Record)
    assert not canary.exists()


# --- Layouts of network files ---------------------------------------------------------------------


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_persistent_network(read, protocol) -> None:
    content, expected = persistent_bytes(protocol)
    contents = read(content)
    network = contents.tree["G_ema"]
    assert isinstance(network, PersistentRecord)
    assert is_module(network)
    assert (network.class_name, network.version, network.source) == ("Generator", 6, SOURCE)
    walked = walk_modules(network, "it")
    assert_equal(walked.tensors, expected)
    assert walked.nodes.keys() == {"", "synthesis"}
    layer = walked.nodes["synthesis"]
    assert layer.class_name == "Layer"
    assert layer.attributes.keys() == {"training", "up", "size"}
    assert layer.attributes["size"].dtype == np.float32
    assert layer.init_arguments == (3,)
    assert layer.init_keywords == {"activation": "lrelu", "filter": [1, 3, 3, 1]}
    assert isinstance(walked.nodes[""].attributes["gain"], float)
    assert contents.tree["training_set_kwargs"] == {"path": "faces.zip"}
    assert contents.sources == {network.source_sha256: "Generator, Layer"}
    assert contents.names["torch_utils.persistence._reconstruct_persistent_obj"] >= 1
    assert b"NVIDIA" not in content
    assert b"Copyright" not in content


def assert_equal(read: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(read) == list(expected)
    for name, values in expected.items():
        assert read[name].dtype == values.dtype
        assert read[name].stride() == values.stride()
        assert torch.equal(read[name], values)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_network_of_unknown_classes(read, protocol) -> None:
    network = network_class()()
    with modules(training__networks={"Generator": type(network)}):
        contents = read(pickle.dumps({"G_ema": network}, protocol))
    record = contents.tree["G_ema"]
    assert (record.module, record.name) == ("training.networks", "Generator")
    walked = walk_modules(record, "it")
    assert_equal(walked.tensors, dict(network.state_dict()))
    names = {path: node.class_name for path, node in walked.nodes.items()}
    assert names == {
        "": "Generator",
        "mapping": "Linear",
        "blocks": "ModuleList",
        "blocks.0": "Conv2d",
        "blocks.1": "BatchNorm2d",
        "tied": "Linear",
    }
    assert walked.nodes[""].attributes == {"training": True, "z_dim": 8, "widths": [4, 3]}
    assert walked.nodes["blocks.0"].attributes["kernel_size"] == (3, 3)
    assert walked.nodes[""].init_keywords == {}
    assert not {"training", "training.networks"} & set(sys.modules)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_networks_of_tensorflow(tree_of, protocol) -> None:
    class Network:
        def __init__(self, state: dict[str, Any]) -> None:
            self.state = state

        def __getstate__(self) -> dict[str, Any]:
            return self.state

    weight = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4)
    mapping_part = Network({"variables": [("Dense0/weight", weight[0, 0])], "components": {}})
    state = {
        "version": 5,
        "static_kwargs": {"resolution": 32, "resample_kernel": [1, 3, 3, 1]},
        "components": {"mapping": mapping_part},
        "build_module_src": SOURCE,
        "variables": [("4x4/Conv/weight", weight), ("lod", np.float32(0))],
    }
    with modules(dnnlib__tflib__network={"Network": Network}):
        content = pickle.dumps((Network(state), Network(state), Network(state)), protocol)
    _, _, network = tree_of(content)
    assert (network.module, network.name) == ("dnnlib.tflib.network", "Network")
    assert value_of(network.state["static_kwargs"]) == state["static_kwargs"]
    variables = dict(value_of(network.state["variables"]))
    np.testing.assert_array_equal(variables["4x4/Conv/weight"], weight)
    assert variables["lod"] == 0
    inside = dict(value_of(network.state["components"]["mapping"].state["variables"]))
    np.testing.assert_array_equal(inside["Dense0/weight"], weight[0, 0])


def test_dill_builds_types_through_functions(tree_of) -> None:
    function = call(named("dill._dill", "_load_type"), text("OrderedDict"))
    parameters = call(function) + text("weight") + tensor() + b"s"
    state = mapping(_modules=call(function), _parameters=parameters, _buffers=b"}")
    network = call(named("torch.nn.modules.sparse", "Embedding")) + state + b"b"
    walked = walk_modules(tree_of(whole(mapping(embed=network)))["embed"], "it")
    assert walked.tensors["weight"].tolist() == [1, 2]
    assert walked.nodes[""].class_name == "Embedding"


def test_arrays_of_dill(tree_of) -> None:
    reconstruct, array = named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray")
    dtype = call(named("numpy", "dtype"), text("i8"), b"\x89", b"\x88")
    state = group(number(1), group(number(1)), dtype, b"\x89", raw((7).to_bytes(8, "little")))
    made = [reconstruct, group(array, group(number(0)), raw(b"b")), state, b"N"]
    assert tree_of(whole(call(named("dill._dill", "_create_array"), *made))).array() == [7]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_configuration_objects_are_records(tree_of, protocol) -> None:
    class BaseConfig:
        def __init__(self) -> None:
            self.depthScale0 = 512

    with modules(models__utils__config={"BaseConfig": BaseConfig}):
        content = pickle.dumps(BaseConfig(), protocol)
    record = tree_of(content)
    assert (record.module, record.name) == ("models.utils.config", "BaseConfig")
    assert record.state == {"depthScale0": 512}
    assert not is_module(record)


def test_unknown_list_and_dict_classes_keep_their_content(tree_of) -> None:
    made = call(named("some.place", "List")) + b"(K\x01K\x02e" + b"K\x03a"
    assert tree_of(whole(made)).items == [1, 2, 3]
    made = call(named("some.place", "Dict")) + text("a") + b"K\x01s(" + text("b") + b"K\x02u"
    assert tree_of(whole(made)).entries == {"a": 1, "b": 2}
    made = named("some.place", "Keyword") + group(b"K\x01") + mapping(width=b"K\x02") + b"\x92"
    record = tree_of(whole(made))
    assert (record.arguments, record.keywords) == ((1,), {"width": 2})


def test_tensors_that_share_a_storage_share_memory(tree_of) -> None:
    half = call(
        named("torch._utils", "_rebuild_tensor"),
        b"h\x01",
        number(1),
        group(number(1)),
        group(number(1)),
    )
    first, second = tree_of(whole(TWO_FLOATS, b"q\x010", group(tensor(b"h\x01"), half)))
    assert first.tensor().tolist() == [1, 2]
    second.tensor()[0] = 5
    assert first.tensor().tolist() == [1, 5]
    assert first.tensor().data_ptr() == first.tensor().data_ptr()


def test_missing_files_and_folders_are_input_errors(tmp_path) -> None:
    for path in (tmp_path / "none.pkl", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(InputError, match="no such file"):
            read_pickle(path)


def test_a_torch_file_is_sent_to_its_reader(read) -> None:
    with pytest.raises(InputError, match="read_torch"):
        read(stream(b"N", {}))


# --- Attacks --------------------------------------------------------------------------------------


def reduce_to(module: str, name: str) -> Callable[[Path], bytes]:
    return lambda canary: whole(call(named(module, name), text(f"touch {canary}")))


def writing(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def getattr_chain(canary: Path) -> bytes:
    attribute = named("builtins", "getattr")
    module = call(named("builtins", "__import__"), text("os"))
    return whole(call(call(attribute, module, text("system")), text(f"touch {canary}")))


def attributed(source: bytes) -> bytes:
    meta = mapping(
        type=text("class"),
        version=b"K\x06",
        module_src=source,
        class_name=text("Generator"),
        state=mapping(_modules=b"}", _parameters=b"}", _buffers=b"}"),
    )
    return call(named("torch_utils.persistence", "_reconstruct_persistent_obj"), meta)


def array_of(dtype: bytes, shape: tuple[int, ...], content: bytes) -> bytes:
    made = call(named("numpy.core.multiarray", "_reconstruct"), named("numpy", "ndarray"))
    state = group(number(1), group(*map(number, shape)), dtype, b"\x89", content)
    return made + state + b"b"


def dtype_of(name: str, state: bytes = b"") -> bytes:
    return call(named("numpy", "dtype"), text(name), b"\x89", b"\x88") + state


NESTED = 200_000
LAUGHS = b"](K\x01K\x02e" + b"".join(b"q\x00](" + b"h\x00" * 10 + b"e" for _ in range(60))
# What a file may say without any effect: it opens, nothing runs, and records are left.
INERT: dict[str, Callable[[Path], bytes]] = {
    "os.system": reduce_to("os", "system"),
    "posix.system": reduce_to("posix", "system"),
    "nt.system": reduce_to("nt", "system"),
    "subprocess.Popen": reduce_to("subprocess", "Popen"),
    "builtins.eval": lambda c: whole(call(named("builtins", "eval"), text(writing(c)))),
    "builtins.exec": lambda c: whole(call(named("__builtin__", "exec"), text(writing(c)))),
    "builtins.open": lambda c: whole(call(named("builtins", "open"), text(str(c)), text("w"))),
    "getattr": getattr_chain,
    "bare name": lambda c: whole(named("builtins", "getattr")),
    "dotted name": lambda c: whole(
        text("os"), text("path.os.system"), b"\x93", group(text(f"touch {c}")), b"R"
    ),
    "INST": lambda c: b"(" + text(f"touch {c}") + b"ios\nsystem\n.",
    "OBJ": lambda c: b"(" + named("os", "system") + text(f"touch {c}") + b"o.",
    "NEWOBJ": lambda c: whole(named("os", "system"), group(text(f"touch {c}")), b"\x81"),
    "NEWOBJ_EX": lambda c: whole(named("os", "system"), group(text(f"touch {c}")), b"}", b"\x92"),
    "BUILD": lambda c: whole(
        call(named("argparse", "Namespace")), mapping(__setstate__=named("os", "system")), b"b"
    ),
    "import": lambda c: whole(named("canary_module", "anything"), b")R"),
    "torch.load": lambda c: whole(call(named("torch", "load"), text(str(c)))),
    "torch.hub": lambda c: whole(call(named("torch.hub", "load"), text("a/b"))),
    "numpy.load": lambda c: whole(call(named("numpy", "load"), text(str(c)))),
    "dill code": lambda c: whole(
        call(call(named("dill._dill", "_load_type"), text("CodeType")), number(0))
    ),
    "module_src": lambda c: whole(attributed(text(writing(c)))),
    "inner stream unused": lambda c: whole(inner(stream(system_call(c), {}))),
    "object array": lambda c: whole(array_of(dtype_of("O8"), (1,), listed(system_call(c)))),
    "memo index": lambda c: whole(b"Nr\xff\xff\xff\xff"),
    "range": lambda c: whole(call(named("builtins", "range"), number(10**12))),
    "complex": lambda c: whole(call(named("builtins", "complex"), number(1))),
    "nested lists": lambda c: whole(b"]" * NESTED, b"a" * (NESTED - 1)),
    "nested tuples": lambda c: whole(b")", b"\x85" * NESTED),
    "nested records": lambda c: whole(
        named("a", "b"), b"q\x000)", b"q\x010h\x00h\x01R\x85" * (NESTED // 4)
    ),
    "billion laughs": lambda c: whole(LAUGHS),
    "recursive list": lambda c: whole(b"]q\x00h\x00a"),
    "recursive dict": lambda c: whole(b"}q\x00", text("a"), b"h\x00s"),
    "state of a dict": lambda c: whole(
        call(named("collections", "OrderedDict")), mapping(items=named("os", "system")), b"b"
    ),
    "big number": lambda c: whole(b"\x8b" + (100_000).to_bytes(4, "little") + b"\x7f" * 100_000),
    "many marks": lambda c: whole(b"(" * 200_000, b"N"),
}


def huge(instruction: bytes, width: int) -> Callable[[Path], bytes]:
    size = 2 ** (8 * width - 2)
    return lambda canary: b"\x80\x05" + instruction + size.to_bytes(width, "little") + b"ab."


def colliding() -> bytes:
    # Python's hash of all of these is 0.
    return b"}(" + b"".join(number(i * (2**61 - 1)) + b"N" for i in range(1, 20_000)) + b"u"


# What a file may not say.
REFUSED: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "inner stream as storage": (
        lambda c: whole(tensor(inner(stream(system_call(c), {})))),
        "not a storage",
    ),
    "inner zip": (
        lambda c: whole(inner(archive({"data.pkl": whole(system_call(c))}))),
        "zip file",
    ),
    "inner pickle": (lambda c: whole(inner(whole(system_call(c)))), "does not begin"),
    "inner in inner": (
        lambda c: whole(inner(stream(inner(stream(b"N", {})), {}))),
        "not where one can be",
    ),
    "inner text": (
        lambda c: whole(call(named("torch.storage", "_load_from_bytes"), text("a"))),
        "not where one can be",
    ),
    "view beyond storage": (lambda c: whole(tensor(shape=(10**9,))), "does not fit"),
    "offset beyond storage": (lambda c: whole(tensor(offset=1)), "does not fit"),
    "stride beyond storage": (lambda c: whole(tensor(stride=(2,))), "does not fit"),
    "stride of none": (lambda c: whole(tensor(shape=(10**9,), stride=(0,))), "does not fit"),
    "negative offset": (lambda c: whole(tensor(offset=-1)), "begins before"),
    "negative stride": (lambda c: whole(tensor(stride=(-1,))), "strides"),
    "negative size": (lambda c: whole(tensor(shape=(-1,))), "impossible shape"),
    "missing stride": (lambda c: whole(tensor(shape=(1, 2))), "strides"),
    "impossible shape": (
        lambda c: whole(tensor(shape=(2**62, 2**62, 0), stride=(1, 1, 1))),
        "impossible shape",
    ),
    "shape of text": (
        lambda c: whole(
            call(
                named("torch._utils", "_rebuild_tensor"),
                TWO_FLOATS,
                number(0),
                text("ab"),
                group(number(1)),
            )
        ),
        "impossible shape",
    ),
    "BUILD on a tensor": (
        lambda c: whole(tensor(), group(TWO_FLOATS, number(0), group(number(10**9))), b"b"),
        "is to be changed",
    ),
    "SETITEMS on a tensor": (lambda c: whole(tensor(), b"(K\x00K\x01u"), "is set in"),
    "SETITEM on a tensor": (lambda c: whole(tensor(), b"K\x00K\x01s"), "is set in"),
    "APPENDS on a tensor": (lambda c: whole(tensor(), b"(K\x00e"), "is appended"),
    "BUILD on a storage": (lambda c: whole(TWO_FLOATS, b"}b"), "is to be changed"),
    "BUILD on a function of ours": (
        lambda c: whole(
            named("torch._utils", "_rebuild_tensor_v2"),
            group(b"N", mapping(__defaults__=group(number(1)))),
            b"b",
        ),
        "is to be changed",
    ),
    "parameter of a name": (
        lambda c: whole(call(named("torch._utils", "_rebuild_parameter"), named("os", "system"))),
        "parameter is made from",
    ),
    "bytearray of a number": (
        lambda c: whole(call(named("builtins", "bytearray"), number(2**31 - 1))),
        "something else than bytes",
    ),
    "bytes of a number": (
        lambda c: whole(call(named("builtins", "bytes"), number(2**31 - 1))),
        "something else than bytes",
    ),
    "set of a range": (
        lambda c: whole(
            call(named("builtins", "set"), call(named("builtins", "range"), number(3 * 10**7)))
        ),
        "something else than a list",
    ),
    "size of a number": (
        lambda c: whole(call(named("torch", "Size"), number(10**9))),
        "something else than a list",
    ),
    "dict of a number": (
        lambda c: whole(call(named("collections", "OrderedDict"), number(10**9))),
        "no pairs",
    ),
    "zlib": (
        lambda c: whole(
            call(named("_codecs", "encode"), raw(zlib.compress(bytes(10**6))), text("zlib"))
        ),
        "is encoded",
    ),
    "another codec": (
        lambda c: whole(call(named("_codecs", "encode"), text("a"), text("rot13"))),
        "is encoded",
    ),
    "text encoded over and over": (
        lambda c: whole(
            text("x" * 10**5),
            b"q\x00]" + (call(named("_codecs", "encode"), b"h\x00", text("ascii")) + b"a") * 2000,
        ),
        "many times its size",
    ),
    "list copied over and over": (
        lambda c: whole(
            listed(*[b"N"] * 10**4),
            b"q\x00]" + (call(named("torch", "Size"), b"h\x00") + b"a") * 2000,
        ),
        "many times its size",
    ),
    "storage read over and over": (
        lambda c: whole(
            raw(stream(storage(10**5), {"0": bytes(4 * 10**5)})),
            b"q\x00]" + (call(named("torch.storage", "_load_from_bytes"), b"h\x00") + b"a") * 2000,
        ),
        "many times its size",
    ),
    "array read over and over": (
        lambda c: whole(
            raw(bytes(10**6)),
            b"q\x00",
            dtype_of("u1"),
            b"q\x01]" + (array_of(b"h\x01", (10**6,), b"h\x00") + b"a") * 2000,
        ),
        "many times its size",
    ),
    "PUT": (lambda c: b"Np18446744073709551616\n.", "impossible number"),
    "negative PUT": (lambda c: b"Np-1\n.", "impossible number"),
    "colliding keys": (lambda c: whole(colliding()), "cannot be a key"),
    "tuple of numbers as key": (lambda c: whole(b"}", group(b"K\x01"), b"Ns"), "cannot be a key"),
    "nested tuple as key": (lambda c: whole(b"})", b"\x85" * NESTED, b"Ns"), "cannot be a key"),
    "nested tuple in a set": (
        lambda c: b"\x80\x04\x8f()" + b"\x85" * NESTED + b"\x90.",
        "cannot be a key",
    ),
    "nested tuple in a frozenset": (
        lambda c: b"\x80\x04()" + b"\x85" * NESTED + b"\x91.",
        "cannot be a key",
    ),
    "nested tuple in DICT": (lambda c: b"()" + b"\x85" * NESTED + b"Nd.", "cannot be a key"),
    "long key": (lambda c: whole(b"}", text("a" * 5000), b"Ns"), "cannot be a key"),
    "list as key": (lambda c: whole(b"}]Ns"), "cannot be a key"),
    "BINBYTES": (huge(b"B", 4), "bytes should follow"),
    "BINBYTES8": (huge(b"\x8e", 8), "bytes should follow"),
    "BYTEARRAY8": (huge(b"\x96", 8), "bytes should follow"),
    "BINUNICODE": (huge(b"X", 4), "bytes should follow"),
    "BINUNICODE8": (huge(b"\x8d", 8), "bytes should follow"),
    "BINSTRING": (huge(b"T", 4), "bytes should follow"),
    "FRAME": (huge(b"\x95", 8), "bytes should follow"),
    "LONG4": (huge(b"\x8b", 4), "bytes should follow"),
    "negative LONG4": (lambda c: b"\x80\x02\x8b\xff\xff\xff\xffab.", "negative"),
    "negative BINSTRING": (lambda c: b"T\xff\xff\xff\xffab.", "negative"),
    "line without end": (lambda c: b"I" + b"1" * 10**6 + b"\n.", "line does not end"),
    "digits": (lambda c: b"L" + b"9" * 60_000 + b"L\n.", "ValueError"),
    "EXT1": (lambda c: b"\x80\x02\x82\x01.", "registered object"),
    "EXT2": (lambda c: b"\x80\x02\x83\x01\x00.", "registered object"),
    "EXT4": (lambda c: b"\x80\x02\x84\x01\x00\x00\x00.", "registered object"),
    "PERSID": (lambda c: b"P0\n.", "outside of the pickle"),
    "BINPERSID": (lambda c: whole(storage(2)), "outside of the pickle"),
    "NEXT_BUFFER": (lambda c: b"\x80\x05\x97.", "out-of-band"),
    "READONLY_BUFFER": (lambda c: b"\x80\x05N\x98.", "TypeError"),
    "call of text": (lambda c: whole(text("os.system"), b")R"), "called like a function"),
    "call of a number": (lambda c: whole(b"K\x01)\x81"), "called like a function"),
    "call of a dtype": (lambda c: whole(named("torch", "float32"), b")R"), "called like"),
    "call with text": (lambda c: whole(named("a", "b"), text("c"), b"R"), "no arguments"),
    "keywords that are none": (lambda c: whole(named("a", "b"), b"))\x92"), "no arguments"),
    "keywords for a known function": (
        lambda c: whole(named("collections", "OrderedDict"), b")", mapping(a=b"N"), b"\x92"),
        "by name",
    ),
    "too few arguments": (
        lambda c: whole(call(named("torch._utils", "_rebuild_tensor_v2"), TWO_FLOATS)),
        "ValueError",
    ),
    "long name": (lambda c: whole(text("a" * 2000), text("b"), b"\x93"), "1000 letters"),
    "object scalar": (
        lambda c: whole(
            call(named("numpy.core.multiarray", "scalar"), dtype_of("O8"), system_call(c))
        ),
        "not from bytes",
    ),
    "object scalar of bytes": (
        lambda c: whole(
            call(named("numpy.core.multiarray", "scalar"), dtype_of("O8"), raw(bytes(8)))
        ),
        "are not read",
    ),
    "array shorter than its shape": (
        lambda c: whole(array_of(dtype_of("f4"), (10**9,), raw(bytes(8)))),
        "has 8 bytes",
    ),
    "negative array": (
        lambda c: whole(array_of(dtype_of("f4"), (-2, -1), raw(bytes(8)))),
        "impossible shape",
    ),
    "array of objects as bytes": (
        lambda c: whole(array_of(dtype_of("O8"), (1,), raw(bytes(8)))),
        "without their list",
    ),
    "structured array with objects": (
        lambda c: whole(
            array_of(
                dtype_of(
                    "V8",
                    group(
                        number(3),
                        text("|"),
                        b"N",
                        group(text("a")),
                        mapping(a=group(dtype_of("O8"), number(0))),
                        number(8),
                    )
                    + b"b",
                ),
                (1,),
                raw(bytes(8)),
            )
        ),
        "are not read",
    ),
    "endless text in an array": (
        lambda c: whole(array_of(dtype_of("U99999999"), (0,), raw(b""))),
        "are not read",
    ),
    "long type name": (lambda c: whole(dtype_of("f4," * 20)), "not described"),
    "buffer shorter than its shape": (
        lambda c: whole(
            call(
                named("numpy.core.numeric", "_frombuffer"),
                raw(bytes(8)),
                dtype_of("f8"),
                group(number(3)),
                text("C"),
            )
        ),
        "has 8 bytes",
    ),
    "array by another function": (
        lambda c: whole(
            call(named("dill._dill", "_create_array"), named("os", "system"), b")", b")", b"N")
        ),
        "unknown function",
    ),
    "persistent function": (
        lambda c: whole(
            call(
                named("torch_utils.persistence", "_reconstruct_persistent_obj"),
                mapping(type=text("func")),
            )
        ),
        "not described",
    ),
    "persistent without source": (lambda c: whole(attributed(b"N")), "without its class"),
    "little in the stream": (
        lambda c: whole(inner(stream(tensor(storage(10**9)), {"0": floats(1, 2)}))),
        "larger than itself",
    ),
    "storage view": (
        lambda c: whole(
            inner(stream(storage(2, extra=group(text("1"), number(0), number(1))), {}))
        ),
        "a view of another",
    ),
    "unknown storage": (lambda c: whole(inner(stream(storage(1, kind="load"), {}))), "not known"),
    "storage name": (lambda c: whole(inner(stream(storage(1, key="../a"), {}))), "has the name"),
    "negative storage": (lambda c: whole(inner(stream(storage(-1), {}))), "no proper number"),
    "storage described twice": (
        lambda c: whole(inner(stream(group(storage(1), storage(2)), {"0": floats(1, 2)}))),
        "in two ways",
    ),
    "other length": (
        lambda c: whole(inner(stream(storage(2), {"0": floats(1, 2)}, counts={"0": 2**40}))),
        "another length",
    ),
    "storage that nobody names": (
        lambda c: whole(inner(stream(b"N", {"0": floats(1)}))),
        "not that of the storages",
    ),
    "storage that is missing": (lambda c: whole(inner(stream(storage(2), {}))), "not that of"),
    "big-endian stream": (
        lambda c: whole(inner(stream(b"N", {}, little_endian=False))),
        "little-endian",
    ),
    "unknown protocol": (lambda c: whole(inner(stream(b"N", {}, protocol=1))), "not known"),
    "other magic": (lambda c: whole(inner(stream(b"N", {}, magic=7))), "does not begin"),
    "no instruction": (lambda c: b"\x80\x02\xff.", "no instruction"),
    "empty stack": (lambda c: b"\x80\x02.", "IndexError"),
    "empty file": (lambda c: b"", "bytes should follow"),
    "unknown memo": (lambda c: b"h\x05.", "UnpicklingError"),
    "odd SETITEMS": (lambda c: whole(b"}(K\x01u"), "ValueError"),
    "odd DICT": (lambda c: whole(b"(K\x01d"), "ValueError"),
    "too new": (lambda c: b"\x80\x09N.", "protocol"),
    "text that is none": (lambda c: b"X\x01\x00\x00\x00\xff.", "UnicodeDecodeError"),
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that appears once anything from a pickle runs or is imported."""
    canary = tmp_path / "canary"
    (tmp_path / "canary_module.py").write_text(writing(canary))
    monkeypatch.syspath_prepend(tmp_path)
    return canary


def bounded(content: bytes, read: Callable[[bytes], Contents]) -> Any:
    """Reads `content`, with little memory."""
    outcome = outcome_of(content, read)
    if content.count(b"\x85") + content.count(b"]") + content.count(b"(") > 20_000:
        return outcome  # as large as its many parts, and slow to measure
    del outcome
    tracemalloc.start()
    try:
        outcome = outcome_of(content, read)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()
    return outcome


def outcome_of(content: bytes, read: Callable[[bytes], Contents]) -> Any:
    try:
        return read(content)
    except REFUSALS as error:
        return error.with_traceback(None)


@pytest.mark.parametrize("name", INERT)
def test_nothing_that_a_file_names_is_run(name, read, canary) -> None:
    content, before = INERT[name](canary), set(sys.modules)
    contents = bounded(content, read)
    assert isinstance(contents, Contents), contents
    if "nested" not in name and name != "billion laughs":  # they have tests of their own
        visit(contents.tree)
    assert not canary.exists()
    assert "canary_module" not in sys.modules
    assert set(sys.modules) == before


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_network_needs_is_refused(name, read, canary) -> None:
    attack, reason = REFUSED[name]
    refusal = bounded(attack(canary), read)
    assert isinstance(refusal, REFUSALS)
    assert "network.pkl" in str(refusal)
    assert reason in str(refusal)
    assert len(str(refusal)) < 600
    assert not canary.exists()
    advice = "safetensors" if isinstance(refusal, UnsafeFileError) else "Get the file again"
    assert advice in str(refusal)


def test_a_payload_of_python_itself_does_nothing(read, canary) -> None:
    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return exec, (writing(canary),)

    contents = [pickle.dumps({"G_ema": Payload()}, protocol) for protocol in range(6)]
    for content in contents:
        record = read(content).tree["G_ema"]
        assert isinstance(record, Record)
        assert (record.name, record.arguments) == ("exec", (writing(canary),))
    assert not canary.exists()
    pickle.loads(contents[-1])  # the canary sings when it is let
    assert canary.exists()


def test_functions_of_ours_are_not_changed(read) -> None:
    before = [vars(function).copy() for function in MEANINGS.values() if callable(function)]
    for name in ("BUILD on a function of ours", "BUILD on a storage"):
        with pytest.raises(UnsafeFileError):
            read(REFUSED[name][0](Path("x")))
    assert [vars(function) for function in MEANINGS.values()] == before


@pytest.mark.slow
def test_a_million_nested_lists_are_read_and_forgotten(tree_of) -> None:
    tree = tree_of(whole(b"]" * 10**6, b"a" * (10**6 - 1)))
    with pytest.raises(UnsafeFileError, match="nested deeper"):
        value_of(tree)
    depth = 1
    while tree:
        (tree,) = tree
        depth += 1
    assert depth == 10**6


def test_instructions_are_counted_in_all_streams_together(read, monkeypatch) -> None:
    monkeypatch.setattr(pickles, "MAX_INSTRUCTIONS", 5000)
    assert read(whole(b"N0" * 2000, b"N")).tree is None
    with pytest.raises(UnsafeFileError, match="more than 5000 instructions"):
        read(whole(b"N0" * 3000, b"N"))
    part = inner(stream(b"N0" * 1000 + b"N", {}))
    with pytest.raises(UnsafeFileError, match="more than 5000 instructions"):
        read(whole(listed(part, part, part)))


def test_the_refusal_names_file_place_and_function(read) -> None:
    with pytest.raises(UnsafeFileError) as caught:
        read(whole(tensor(shape=(10**9,))))
    message = str(caught.value)
    assert "network.pkl: near byte" in message
    assert "'torch._utils._rebuild_tensor_v2'" in message
    assert "[1000000000]" in message


def test_names_from_a_file_cannot_control_the_terminal(read) -> None:
    evil = "\x1b[2J\u202e"
    with pytest.raises(UnsafeFileError) as caught:
        read(whole(named(evil, evil), text("a"), b"R"))
    assert str(caught.value).isascii()
    assert "\x1b" not in str(caught.value)
    record = read(whole(call(named(evil, evil)))).tree
    with pytest.raises(UnsafeFileError) as caught:
        value_of(record)
    assert "\x1b" not in str(caught.value)


def test_names_are_counted(read) -> None:
    one, two = named("os", "system"), named("collections", "OrderedDict")
    names = read(whole(listed(one, call(two), call(two), named("torch", "float32")))).names
    assert names == {"collections.OrderedDict": 2, "os.system": 1, "torch.float32": 1}


# --- The walker -----------------------------------------------------------------------------------


def module_of(children: dict[str, Any], parameters: Any = None, **state: Any) -> Record:
    record = Record("torch.nn", "Module", (), {})
    record.state = {"_modules": children, "_parameters": parameters or {}, "_buffers": {}, **state}
    return record


def test_a_module_within_itself_is_refused() -> None:
    record = module_of({})
    record.state["_modules"]["child"] = module_of({"again": record})
    with pytest.raises(UnsafeFileError, match=r"it\.pkl: child\.again: .*contains itself"):
        walk_modules(record, "it.pkl")


def test_modules_have_a_limited_depth() -> None:
    def deep(levels: int) -> Record:
        record = module_of({})
        for _ in range(levels - 1):
            record = module_of({"m": record})
        return record

    assert len(walk_modules(deep(64), "it").nodes) == 64
    with pytest.raises(UnsafeFileError, match="deeper than 64"):
        walk_modules(deep(65), "it")


def test_shared_modules_do_not_multiply_without_limit() -> None:
    record = module_of({})
    for _ in range(40):
        record = module_of({"a": record, "b": record})
    started = time.process_time()
    with pytest.raises(UnsafeFileError, match="more than"):
        walk_modules(record, "it")
    assert time.process_time() - started < 5


def test_shared_values_do_not_multiply_without_limit(tree_of) -> None:
    started = time.process_time()
    tree = tree_of(whole(LAUGHS))
    with pytest.raises(UnsafeFileError, match="unfolds"):
        value_of(tree)
    record = module_of({}, laughs=tree)
    with pytest.raises(UnsafeFileError, match=r"it\.pkl: unfolds"):
        walk_modules(record, "it.pkl")
    assert time.process_time() - started < 10


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (module_of({"a.b": module_of({})}), "name"),
        (module_of({"": module_of({})}), "name"),
        (module_of({1: module_of({})}), "name"),  # pyright: ignore[reportArgumentType]
        (module_of({}, {"a": [1]}), "stored as a list"),
        (module_of({}, {"a": Record("torch._utils", "_rebuild_qtensor", (), {})}), "qtensor"),
        (module_of({}, _non_persistent_buffers_set=5), "buffers"),
        (module_of({"a": 5}), "not a network module"),
        (module_of({"a": Record("b", "c", (), {})}), "not a network module"),
        ({"weight": 1}, "not a network module"),
    ],
)
def test_what_is_no_network_is_refused(record, reason) -> None:
    with pytest.raises(REFUSALS, match=reason):
        walk_modules(record, "it.pkl")


def test_children_and_parameters_may_be_none() -> None:
    walked = walk_modules(module_of({"a": None}, {"bias": None}), "it")
    assert walked.tensors == {}
    assert list(walked.nodes) == [""]


def test_only_plain_attributes_are_kept() -> None:
    part = TensorRecord(StorageRecord("0", torch.float32, 0), 0, (0,), (1,))
    record = module_of({}, plain=(1, "a", {"b": torch.bfloat16}), made=Record("a", "b", (), {}))
    record.state |= {"part": part, "many": [part], "_hidden": 1, "function": Global("a", "b")}
    record.state |= {5: 6, "members": {"x"}, "odd": {Global("a", "b"): 1}}
    (node,) = walk_modules(record, "it").nodes.values()
    assert node.attributes == {"plain": (1, "a", {"b": torch.bfloat16}), "members": {"x"}}


@pytest.mark.parametrize(
    "x", [Global("os", "system"), [Record("a", "b", (), {})], {Global("a", "b")}]
)
def test_records_have_no_plain_value(x) -> None:
    with pytest.raises(UnsafeFileError, match="not a plain value"):
        value_of(x)


def test_plain_values_are_copied(tree_of) -> None:
    tree = {"a": [1, (2,), {"b": None}], "c": {"d"}, "e": frozenset({1}), "f": torch.float16}
    copied = value_of(tree)
    assert copied == tree
    assert copied["a"] is not tree["a"]
    assert torch.equal(value_of([tree_of(whole(tensor()))])[0], torch.tensor([1.0, 2.0]))


def test_a_storage_without_numbers_is_damage() -> None:
    record = TensorRecord(StorageRecord("7", torch.float32, 2), 0, (2,), (1,))
    with pytest.raises(CorruptFileError, match="'7' are missing"):
        record.tensor()


def test_tensors_cannot_be_changed(tree_of) -> None:
    record = tree_of(whole(tensor()))
    with pytest.raises(AttributeError):
        record.shape = (10**9,)


def test_tensors_without_elements(tree_of) -> None:
    nothing = inner(stream(storage(0), {"0": b""}))
    record = tree_of(whole(tensor(nothing, shape=(3, 0), stride=(0, 1))))
    assert record.tensor().shape == (3, 0)
    assert tree_of(whole(tensor(shape=(0,)))).tensor().shape == (0,)


# --- Damage ---------------------------------------------------------------------------------------

CUTS = 100
FLIPS = 130


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pickle_cut_short_is_refused(read, protocol) -> None:
    content, _ = persistent_bytes(protocol)
    chance = random.Random(protocol)
    for length in [0, 1, 2, len(content) - 1, *chance.sample(range(len(content)), CUTS)]:
        with pytest.raises(CorruptFileError, match=r"network\.pkl"):
            read(content[:length])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_flipped_bit_does_no_harm(read, protocol) -> None:
    content, _ = persistent_bytes(protocol)
    chance = random.Random(protocol)
    refused = 0
    for _ in range(FLIPS):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        refused += harmless(bytes(flipped), read)
    assert 0 < refused < FLIPS


def harmless(content: bytes, read: Callable[[bytes], Contents]) -> bool:
    """Whether `content` was refused; if it was not, everything in it answers in its own way."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python's, on escapes in text of protocol 0
            contents = read(content)
    except (*REFUSALS, InputError) as error:  # the latter: it is the beginning of a torch file
        return "network.pkl" in str(error)
    assert visit(contents.tree)
    return False


@pytest.fixture(scope="module")
def read_anything(tmp_path_factory) -> Callable[[bytes], Contents]:
    path = tmp_path_factory.mktemp("any") / "network.pkl"

    def read_bytes(content: bytes) -> Contents:
        path.write_bytes(content)
        return read_pickle(path)

    return read_bytes


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(content=st.binary(max_size=200))
def test_random_bytes(read_anything, content) -> None:
    harmless(content, read_anything)


PERSISTENT, _ = persistent_bytes(4)


@settings(max_examples=120, deadline=None, database=None, derandomize=True)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, len(PERSISTENT) - 1), st.binary(max_size=4)),
        min_size=1,
        max_size=5,
    )
)
def test_random_changes(read_anything, edits) -> None:
    content = bytearray(PERSISTENT)
    for position, replacement in edits:
        content[position : position + len(replacement) // 2 + 1] = replacement
    harmless(bytes(content), read_anything)


WORDS = [
    *(opcode.code.encode("latin1") for opcode in pickletools.opcodes if opcode.arg is None),
    *(named(module, name) for module, name in sorted(MEANINGS)),
    named("torch", "FloatStorage"),
    named("torch", "float32"),
    named("os", "system"),
    number(-1),
    number(2),
    number(2**63),
    text("a"),
    text("latin1"),
    text("f4"),
    raw(b"abcd"),
    raw(stream(storage(2), {"0": floats(1, 2)})),
    TWO_FLOATS,
    tensor(),
    dtype_of("f4"),
    array_of(dtype_of("u1"), (4,), raw(b"abcd")),
    attributed(text("x")),
    group(number(2)),
    group(),
    mapping(type=text("class"), a=b"N"),
    b"q\x00",
    b"h\x00",
    b"q\x01",
    b"h\x01",
]


@settings(max_examples=500, deadline=None, database=None, derandomize=True)
@given(words=st.lists(st.sampled_from(WORDS), min_size=1, max_size=25))
def test_random_instructions(read_anything, words) -> None:
    harmless(b"".join(words) + b".", read_anything)
