"""MobileStyleGAN networks as OpenVINO's converter writes them: tiny ones, with random weights."""

from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import torch
from torch import Tensor

from latentseg.generators.families.mobilestylegan import MobileStyleGAN

Wire = tuple[int, int]
KINDS = {torch.float32: "f32", torch.float16: "f16", torch.int64: "i64"}
ONES: dict[str, Any] = {"strides": "1, 1", "dilations": "1, 1"}
NO_PADS: dict[str, Any] = {"pads_begin": "0, 0", "pads_end": "0, 0"}


class IRWriter:
    """Layers, edges and constants, written as `NAME.xml` and `NAME.bin`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.layers: list[str] = []
        self.edges: list[str] = []
        self.constants = bytearray()

    def add(self, kind: str, *inputs: Wire, outputs: int = 1, **data: Any) -> Wire:
        index = len(self.layers)
        attributes = " ".join(f"{key}={quoteattr(str(value))}" for key, value in data.items())
        taken = "".join(f'<port id="{port}"/>' for port in range(len(inputs)))
        given = "".join(f'<port id="{len(inputs) + port}"/>' for port in range(outputs))
        self.layers.append(
            f'<layer id="{index}" name="{kind}_{index}" type="{kind}" version="opset1">'
            f"<data {attributes}/><input>{taken}</input><output>{given}</output></layer>"
        )
        for port, (source, source_port) in enumerate(inputs):
            self.edges.append(
                f'<edge from-layer="{source}" from-port="{source_port}" '
                f'to-layer="{index}" to-port="{port}"/>'
            )
        return index, len(inputs)

    def const(self, value: Tensor) -> Wire:
        value = value.detach().contiguous()
        content = value.numpy().tobytes()
        wire = self.add(
            "Const",
            element_type=KINDS[value.dtype],
            shape=", ".join(map(str, value.shape)),
            offset=len(self.constants),
            size=len(content),
        )
        self.constants += content
        return wire

    def save(self, folder: Path, result: Wire) -> Path:
        self.add("Result", result, outputs=0)
        text = (
            f'<?xml version="1.0"?><net name="{self.name}" version="10">'
            f"<layers>{''.join(self.layers)}</layers><edges>{''.join(self.edges)}</edges></net>"
        )
        folder.mkdir(exist_ok=True)
        (folder / f"{self.name}.bin").write_bytes(self.constants)
        path = folder / f"{self.name}.xml"
        path.write_text(text)
        return path


def save_networks(network: MobileStyleGAN, folder: Path) -> Path:
    """Both networks in `folder`, as the converter folds them."""
    _save_mapping(network, folder)
    _save_synthesis(network, folder)
    return folder


def _save_mapping(network: MobileStyleGAN, folder: Path) -> None:
    ir = IRWriter("MappingNetwork")
    z = ir.add("Parameter", shape="1, 6", element_type="f32")
    power = ir.add("Power", z, ir.const(torch.full((1, 1), 2.0)))
    mean = ir.add("ReduceMean", power, ir.const(torch.ones(1, dtype=torch.int64)))
    root = ir.add("Power", mean, ir.const(torch.full((1, 1), -0.5)))
    x = ir.add("Multiply", z, root)
    for layer in network.mapping:
        weight = ir.const(layer.weight)  # pyright: ignore[reportArgumentType]
        product = ir.add("MatMul", x, weight, transpose_a="false", transpose_b="true")
        x = ir.add("Add", product, ir.const(layer.bias))  # pyright: ignore[reportArgumentType]
        x = ir.add("PReLU", x, ir.const(torch.tensor([0.2])))
        x = ir.add("Multiply", x, ir.const(torch.full((1, 1), 2.0).sqrt()))
    ir.save(folder, x)


def _save_synthesis(network: MobileStyleGAN, folder: Path) -> None:
    ir = IRWriter("SynthesisNetwork")
    style = ir.add("Parameter", shape="1, 6", element_type="f32")
    shape = ir.const(torch.tensor([1, -1, 1, 1]))

    def modulated(x: Wire, modulation, is_scaled: bool) -> Wire:
        linear = modulation.linear
        weight = ir.const(linear.weight * (0.5 if is_scaled else 1))
        product = ir.add("MatMul", style, weight, transpose_a="false", transpose_b="true")
        made = ir.add("Add", product, ir.const(linear.bias[None] * (0.5 if is_scaled else 1)))
        made = ir.add("Reshape", made, shape, special_zero="true")
        if is_scaled:
            made = ir.add("Multiply", made, ir.const(torch.full((1, 1, 1, 1), 2.0)))
        return ir.add("Multiply", made, x)

    def styled(x: Wire, layer) -> Wire:
        x = modulated(x, layer.modulation, is_scaled=True)
        *depthwise, last = layer.conv
        for conv in depthwise:
            kernel = ir.const(conv.weight[:, None])
            x = ir.add("GroupConvolution", x, kernel, **ONES, pads_begin="1, 1", pads_end="1, 1")
        pad = last.kernel_size[0] // 2
        pads: dict[str, Any] = {"pads_begin": f"{pad}, {pad}", "pads_end": f"{pad}, {pad}"}
        x = ir.add("Convolution", x, ir.const(last.weight), **ONES, **pads)
        noise = (layer.noise_const * layer.noise_strength)[None, None]
        x = ir.add("Add", x, ir.const(noise))
        x = ir.add("Add", x, ir.const(last.bias[None, :, None, None]))
        return ir.add("PReLU", x, ir.const(torch.tensor([0.2])))

    def enlarged(x: Wire, channels: int, low: Tensor, high: Tensor) -> Wire:
        def filtered(x: Wire, taps: Tensor, strides: str) -> Wire:
            sides = (2, 1) if strides == "2, 1" else (1, 2)
            kernel = ir.const(taps.expand(channels, 2).reshape(channels, 1, 1, *sides))
            return ir.add("GroupConvolutionBackpropData", x, kernel, strides=strides, **NO_PADS)

        split, port = ir.add(
            "VariadicSplit", x, ir.const(torch.ones(1, dtype=torch.int64)), outputs=2
        )
        bands = ir.add("Reshape", (split, port + 1), shape)
        each, first = ir.add(
            "VariadicSplit", bands, ir.const(torch.ones(1, dtype=torch.int64)), outputs=3
        )
        squeezed = [ir.add("Squeeze", (each, first + band), shape) for band in range(3)]
        along, across, both = squeezed
        left = ir.add("Add", filtered((split, port), low, "2, 1"), filtered(along, high, "2, 1"))
        right = ir.add("Add", filtered(across, low, "2, 1"), filtered(both, high, "2, 1"))
        return ir.add("Add", filtered(left, low, "1, 2"), filtered(right, high, "1, 2"))

    low, high = torch.tensor([[1.0, 1.0], [1.0, -1.0]]) / 2**0.5
    x = ir.add("Tile", ir.const(network.const[None]), shape)
    x = styled(x, network.conv1)
    for block in network.blocks:
        channels = block.conv1.conv[0].in_channels  # pyright: ignore
        x = enlarged(modulated(x, block.up, is_scaled=False), channels, low, high)
        x = styled(styled(x, block.conv1), block.conv2)
    x = modulated(x, network.to_bands, is_scaled=True)
    x = ir.add("Convolution", x, ir.const(network.bands.weight), **ONES, **NO_PADS)
    bias = network.bands.bias
    assert bias is not None
    x = ir.add("Add", x, ir.const(bias[None, :, None, None]))
    ir.save(folder, enlarged(x, 3, low, high))
