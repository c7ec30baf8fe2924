"""OpenVINO's networks, read as data: what is hostile or damaged is refused by name."""

from pathlib import Path

import pytest
import torch

from latentseg.errors import CorruptFileError, LatentsegError, UnsafeFileError
from latentseg.weights import openvino_ir
from latentseg.weights.containers import open_checkpoint
from latentseg.weights.openvino_ir import read_graph
from tests.generators.openvino_files import IRWriter

BOMB = """<?xml version="1.0"?><!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">
<!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]><net name="&b;"/>"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ir = IRWriter("Tiny")
    x = ir.add("Parameter", shape="1, 2", element_type="f32")
    half = ir.const(torch.tensor([[0.5, 1.5], [2.5, 3.5]], dtype=torch.float16))
    whole = ir.const(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    x = ir.add("MatMul", x, half, transpose_b="true")
    return ir.save(tmp_path / "net", ir.add("Add", x, whole))


def test_constants_and_edges_are_read(path: Path) -> None:
    result = read_graph(path).result
    assert result.kind == "Add"
    product, constant = result.input(0), result.input(1)
    assert torch.equal(constant.value, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))  # pyright: ignore
    assert product.data["transpose_b"] == "true"
    half = product.input(1).value
    assert half is not None
    assert half.dtype == torch.float16
    assert half.tolist() == [[0.5, 1.5], [2.5, 3.5]]
    assert product.input(0).kind == "Parameter"
    with pytest.raises(CorruptFileError, match="has no input 2"):
        product.input(2)


def test_document_types_are_refused_before_they_unfold(path: Path) -> None:
    path.write_text(BOMB)
    with pytest.raises(UnsafeFileError, match="document type"):
        read_graph(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('offset="0"', 'offset="-1"', "outside the 24 bytes"),
        ('offset="0"', 'offset="17"', "outside the 24 bytes"),
        ('offset="0"', f'offset="{10**30}"', "outside the 24 bytes"),
        ('size="8"', 'size="9"', "of 4 numbers has 9 bytes"),
        ('shape="2, 2"', 'shape="2, -2"', "has the shape"),
        ('shape="2, 2"', f'shape="{10**20}, 0"', "has the shape"),
        ('shape="2, 2"', 'shape="x"', "invalid literal"),
        ('element_type="f16"', 'element_type="f1024"', "unknown kind 'f1024'"),
        ('id="1"', 'id="0"', "is there twice"),
        ('from-layer="0"', 'from-layer="99"', "layer 99, which is not there"),
        ('from-layer="0" from-port="0"', 'from-layer="4" from-port="2"', "cycle"),
        ('from-port="0"', 'from-port="9"', "output 9 of layer 0, which is not there"),
        ('type="Result"', 'type="Sink"', "0 results"),
        ('type="MatMul"', 'kind="MatMul"', "'type'"),
        ("<net ", "<not ", "begins with <not>"),
        ("</net>", "</not>", "mismatched tag"),
        ("</net>", "", "no element found"),
        ("<edges>", "<edges>" + "<a>" * 40 + "</a>" * 40, "nested more than 16"),
    ],
)
def test_what_does_not_fit_is_refused(path: Path, old: str, new: str, message: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(LatentsegError, match=message) as error:
        read_graph(path)
    assert str(path) in str(error.value)


def test_sizes_are_bounded(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, message in (
        ("MAX_XML_BYTES", "as no network is"),
        ("MAX_LAYERS", "more than 1 layers"),
        ("MAX_EDGES", "more than 1 edges"),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(openvino_ir, name, 1)
            with pytest.raises(UnsafeFileError, match=message):
                read_graph(path)


def test_missing_constants_are_said(path: Path) -> None:
    path.with_suffix(".bin").unlink()
    with pytest.raises(CorruptFileError, match=r"Tiny\.bin, are not beside it"):
        open_checkpoint(path)


def test_long_chains_need_no_recursion(tmp_path: Path) -> None:
    ir = IRWriter("Long")
    x = ir.add("Parameter", shape="1", element_type="f32")
    for _ in range(5_000):
        x = ir.add("Relu", x)
    graph = read_graph(ir.save(tmp_path, x))
    assert "Relu" in repr(graph)
    del graph


def test_cut_and_flipped_files_are_refused_or_read(path: Path) -> None:
    rng, whole = torch.Generator().manual_seed(0), path.read_bytes()
    for _ in range(300):
        at = int(torch.randint(len(whole), (), generator=rng))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(torch.randint(8, (), generator=rng))
        for content in (whole[:at], bytes(flipped)):
            path.write_bytes(content)
            try:
                read_graph(path)
            except LatentsegError as error:
                assert path.name in str(error)  # noqa: PT017
