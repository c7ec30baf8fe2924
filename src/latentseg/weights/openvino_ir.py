"""Networks in OpenVINO's intermediate representation (.xml and .bin), read as data.

The .xml lists layers and the edges between them, the .bin holds the constants. Nothing is computed
here: a reader walks the graph back from its result and takes what it knows.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any
from xml.parsers import expat

import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, UnsafeFileError

MAX_XML_BYTES = 2**26
MAX_LAYERS = 50_000
MAX_EDGES = 200_000
MAX_DEPTH = 16
MAX_DIMENSIONS = 8
DTYPES = {
    "f64": torch.float64, "f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16,
    "i64": torch.int64, "i32": torch.int32, "i16": torch.int16, "i8": torch.int8,
    "u8": torch.uint8, "boolean": torch.bool,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Node:
    """One layer of the graph.

    Attributes:
        id: Its number in the file.
        kind: The operation, for example "Convolution".
        name: As the file has it.
        data: Attributes of the operation.
        inputs: (node, output of that node) for each input, in order.
        value: Of a Const: its tensor, a view of the whole .bin, not to be written to.
    """

    id: int
    kind: str
    name: str
    data: Mapping[str, str]
    inputs: tuple[tuple["Node", int], ...] = field(default=(), repr=False)
    value: Tensor | None = field(default=None, repr=False)

    def input(self, index: int) -> "Node":
        """The node that input `index` comes from.

        Raises:
            CorruptFileError: there is no such input.
        """
        if index >= len(self.inputs):
            raise CorruptFileError(f"layer {self.name!r} has no input {index}.")
        return self.inputs[index][0]


@dataclass(frozen=True)
class Graph:
    """A network: its name, and the one node that gives its result.

    Attributes:
        name: As the file has it.
        result: What the output comes from.
    """

    name: str
    result: Node


@dataclass(eq=False)
class _Layer:
    id: int
    kind: str
    name: str
    data: dict[str, str] = field(default_factory=dict)
    ports: dict[str, list[int]] = field(default_factory=lambda: {"input": [], "output": []})


class _Reader:
    """Collects layers and edges while expat goes through the file."""

    def __init__(self) -> None:
        self.name = ""
        self.layers: dict[int, _Layer] = {}
        self.edges: dict[tuple[int, int], tuple[int, int]] = {}
        self.path: list[str] = []

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        self.path.append(tag)
        if len(self.path) > MAX_DEPTH:
            raise UnsafeFileError(f"elements are nested more than {MAX_DEPTH} deep")
        match self.path:
            case ["net"]:
                self.name = attributes.get("name", "")
            case ["net", "layers", "layer"]:
                self._add_layer(attributes)
            case ["net", "layers", "layer", "data"]:
                self._last().data = attributes
            case ["net", "layers", "layer", "input" | "output" as side, "port"]:
                self._last().ports[side].append(int(attributes["id"]))
            case ["net", "edges", "edge"]:
                self._add_edge(attributes)
            case [root, *_] if root != "net":
                raise ValueError(f"begins with <{root}>, not with <net>")

    def end(self, tag: str) -> None:
        self.path.pop()

    def _add_layer(self, attributes: dict[str, str]) -> None:
        layer = _Layer(int(attributes["id"]), attributes["type"], attributes.get("name", ""))
        if layer.id in self.layers:
            raise ValueError(f"layer {layer.id} is there twice")
        if len(self.layers) >= MAX_LAYERS:
            raise UnsafeFileError(f"has more than {MAX_LAYERS} layers")
        self.layers[layer.id] = layer

    def _add_edge(self, attributes: dict[str, str]) -> None:
        source, port, target, target_port = (
            int(attributes[name]) for name in ("from-layer", "from-port", "to-layer", "to-port")
        )
        if (target, target_port) in self.edges:
            raise ValueError(f"input {target_port} of layer {target} has two edges")
        if len(self.edges) >= MAX_EDGES:
            raise UnsafeFileError(f"has more than {MAX_EDGES} edges")
        self.edges[target, target_port] = source, port

    def _last(self) -> _Layer:
        return self.layers[next(reversed(self.layers))]


def read_graph(path: Path | str) -> Graph:
    """Reads an .xml and the .bin of the same stem beside it.

    Raises:
        UnsafeFileError: it has a document type, which could unfold to any size, or is far larger
            than a network is.
        CorruptFileError: it is not such a network, or it asks for constants outside the .bin.
    """
    path = Path(path)
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CorruptFileError(f"{path}: its constants, {weights.name}, are not beside it.")
    if path.stat().st_size > MAX_XML_BYTES:
        raise UnsafeFileError(f"{path}: larger than {MAX_XML_BYTES} bytes, as no network is.")
    try:
        reader = _parsed(path.read_bytes())
        return _linked(reader, bytearray(weights.read_bytes()))
    except (UnsafeFileError, CorruptFileError) as error:
        raise type(error)(f"{path}: {error}") from error
    except (expat.ExpatError, CycleError, ValueError, KeyError, OverflowError) as error:
        raise CorruptFileError(f"{path}: not a network of OpenVINO ({error}).") from error


def _parsed(xml: bytes) -> _Reader:
    reader, parser = _Reader(), expat.ParserCreate()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.StartDoctypeDeclHandler = _refuse_document_type
    parser.Parse(xml, True)
    return reader


def _refuse_document_type(*declaration: Any) -> None:
    raise UnsafeFileError("has a document type, whose entities could unfold to any size")


def _linked(reader: _Reader, constants: bytearray) -> Graph:
    """The layers as nodes that know their inputs, which are made before them."""
    sources = {layer: _sources(reader, layer) for layer in reader.layers.values()}
    order = TopologicalSorter(
        {layer.id: [source for source, _ in found] for layer, found in sources.items()}
    )
    nodes: dict[int, Node] = {}
    for index in order.static_order():
        layer = reader.layers[index]
        nodes[index] = Node(
            id=index,
            kind=layer.kind,
            name=layer.name,
            data=layer.data,
            inputs=tuple((nodes[source], port) for source, port in sources[layer]),
            value=_constant(layer, constants) if layer.kind == "Const" else None,
        )
    results = [node for node in nodes.values() if node.kind == "Result"]
    if len(results) != 1:
        raise ValueError(f"{len(results)} results instead of one")
    return Graph(reader.name, results[0].input(0))


def _sources(reader: _Reader, layer: _Layer) -> list[tuple[int, int]]:
    """For each input of a layer: the layer that it comes from, and which of its outputs it is."""
    found = []
    for port in layer.ports["input"]:
        source, source_port = reader.edges[layer.id, port]
        outputs = reader.layers[source].ports["output"] if source in reader.layers else []
        if source_port not in outputs:
            raise ValueError(
                f"an edge comes from output {source_port} of layer {source}, which is not there"
            )
        found.append((source, outputs.index(source_port)))
    return found


def _constant(layer: _Layer, constants: bytearray) -> Tensor:
    kind, where = layer.data["element_type"], f"constant {layer.name[:60]!r}"
    if kind not in DTYPES:
        raise ValueError(f"{where} has numbers of the unknown kind {kind[:20]!r}")
    shape = [int(side) for side in layer.data["shape"].split(",") if side.strip()]
    offset, size = int(layer.data["offset"]), int(layer.data["size"])
    count = math.prod(shape)
    if len(shape) > MAX_DIMENSIONS or any(side < 1 for side in shape):
        raise ValueError(f"{where} has the shape {shape[:MAX_DIMENSIONS]}")
    if count * DTYPES[kind].itemsize != size:
        raise ValueError(f"{where} of {count} numbers has {size} bytes")
    if not 0 <= offset <= len(constants) - size:
        raise ValueError(f"{where} lies outside the {len(constants)} bytes of the .bin")
    flat = torch.frombuffer(constants, dtype=DTYPES[kind], count=count, offset=offset)
    return flat.view(shape)
