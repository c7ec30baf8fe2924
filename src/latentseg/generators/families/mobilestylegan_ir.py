"""MobileStyleGAN as OpenVINO networks, the form in which the package random-face has it.

The graph is walked back from the image to the style. What the converter folded stays folded: the
demodulation is in the kernels, the strength of the noise in its maps.
"""

import math
from pathlib import Path

import torch
from torch import Tensor

from latentseg.errors import CorruptFileError
from latentseg.generators.families.mobilestylegan import (
    DEFAULTS,
    MAX_SIDE,
    MobileStyleGAN,
    MobileStyleGANConfig,
)
from latentseg.generators.families.stylegan2 import SQRT_2
from latentseg.generators.family import Imported
from latentseg.weights.containers import Checkpoint
from latentseg.weights.openvino_ir import Node

MAPPING, SYNTHESIS = "MappingNetwork", "SynthesisNetwork"
MEASURED = 4096  # latents whose mean is the mean style, as in the package
SLOPE = 0.2  # of the leaky ReLU
NOTE = f"The file holds no mean style: it is that of {MEASURED} latents of a fixed seed."

Style = tuple[Tensor, Tensor]
Parts = dict[str, Tensor]


def objection(checkpoint: Checkpoint) -> str | None:
    """Why these are not the networks of a MobileStyleGAN; None if they are."""
    missing = [name for name in (MAPPING, SYNTHESIS) if not checkpoint.has(name)]
    return f"no network {missing[0]!r}" if missing else None


def read(checkpoint: Checkpoint) -> Imported:
    """Reads mapping and synthesis; the mean style is measured.

    Raises:
        CorruptFileError: a layer is not what it should be there; it is named.
    """
    where = checkpoint.path
    try:
        mapping = _mapping(checkpoint.tree[MAPPING].result)
        blocks, drawn = _synthesis(checkpoint.tree[SYNTHESIS].result)
        config, weights = _network(mapping, blocks, drawn)
    except CorruptFileError as error:
        raise CorruptFileError(f"{where}: not a MobileStyleGAN: {error}") from error
    except (IndexError, RuntimeError, ValueError) as error:
        raise CorruptFileError(f"{where}: the shapes of its layers do not fit: {error}.") from error
    weights["style_mean"] = _mean_style(config, weights, where)
    return Imported(config, weights, DEFAULTS, notes=(NOTE,))


def _network(
    mapping: list[Style], blocks: list[Parts], drawn: Parts
) -> tuple[MobileStyleGANConfig, Parts]:
    """Configuration and weights by our names; `blocks` are coarse to fine, the first is `conv1`."""
    first, *others = blocks
    height, width = first["const"].shape[1:]
    scale = 2 ** len(blocks)
    if max(height, width) * scale > MAX_SIDE:
        raise ValueError(f"images would have {height * scale} x {width * scale} pixels")
    config = MobileStyleGANConfig(
        size=(height * scale, width * scale),
        channels=(len(first["conv1.conv.0.bias"]), *(len(b["conv2.conv.1.bias"]) for b in others)),
        w_dim=len(mapping[0][1]),
        mapping_layers=len(mapping),
    )
    weights = {**drawn, **first}
    for index, block in enumerate(others):
        weights |= {f"blocks.{index}.{name}": tensor for name, tensor in block.items()}
    for index, (weight, bias) in enumerate(mapping):
        weights |= {f"mapping.{index}.weight": weight, f"mapping.{index}.bias": bias}
    return config, {name: tensor.float().clone() for name, tensor in weights.items()}


def _mean_style(config: MobileStyleGANConfig, weights: Parts, where: Path) -> Tensor:
    mapping = {name: tensor for name, tensor in weights.items() if name.startswith("mapping.")}
    with torch.device("meta"):
        network = MobileStyleGAN(config)
    try:
        network.load_state_dict(mapping, strict=False, assign=True)
    except RuntimeError as error:
        raise CorruptFileError(f"{where}: the mapping network does not fit: {error}.") from error
    drawn = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return network.style(torch.randn(MEASURED, config.w_dim, generator=drawn), None).mean(dim=0)


def _mapping(node: Node) -> list[Style]:
    """Weight and bias of each layer, first to last."""
    layers = []
    while True:
        node, gain = _without_gain(node)
        if node.kind != "PReLU":
            break
        linear = _expected(_leaky(node), "Add")
        product, bias = _operands(linear, "MatMul")
        weight, constant = _matrix(product), _constant(bias).flatten()
        # Our network multiplies by the root of 2 after each layer.
        layers.append((weight * gain / SQRT_2, constant * gain / SQRT_2))
        node = product.input(0)
    _expected(node, "Multiply")  # the normalization of z
    if not layers or "Parameter" not in {source.kind for source, _ in node.inputs}:
        raise CorruptFileError(f"layer {node.name!r} does not normalize the latent.")
    return layers[::-1]


def _synthesis(node: Node) -> tuple[list[Parts], Parts]:
    """The blocks, coarse to fine, and what makes the image of the last one."""
    bands, wavelet = _inverse_wavelet(node)
    conv, bias, _ = _biased(bands)
    x, style = _modulated(conv.input(0))
    drawn = {
        "wavelet": wavelet,
        "bands.weight": _kernel(conv),
        "bands.bias": bias,
        **_modulation("to_bands", style),
    }
    blocks = []
    while True:
        x, conv2 = _styled(x)
        if _is_start(x):
            const = _constant(_start(x))
            blocks.append({**_below("conv1", conv2), "const": const[0]})
            return blocks[::-1], drawn
        x, conv1 = _styled(x)
        enlarged, wavelet = _inverse_wavelet(x)
        x, style = _modulated(enlarged)
        blocks.append(
            {
                "wavelet": wavelet,
                **_modulation("up", style),
                **_below("conv1", conv1),
                **_below("conv2", conv2),
            }
        )


def _styled(node: Node) -> tuple[Node, Parts]:
    """A `StyledConv` that ends in `node`: where its activations come from, and its weights."""
    conv, bias, noise = _biased(_leaky(_expected(node, "PReLU")))
    kernels, source = [_kernel(conv)], conv.input(0)
    if source.kind == "GroupConvolution":
        kernels.insert(0, _kernel(source))
        source = source.input(0)
    x, style = _modulated(source)
    parts = {f"conv.{index}.weight": kernel for index, kernel in enumerate(kernels)}
    parts[f"conv.{len(kernels) - 1}.bias"] = bias
    parts |= {"noise_strength": torch.ones(()), "noise_const": noise}
    return x, {**parts, **_modulation("modulation", style)}


def _biased(node: Node) -> tuple[Node, Tensor, Tensor]:
    """The convolution below constants that are added: itself, the bias (C,), the noise (H, W)."""
    bias, noise = torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
    while node.kind == "Add":
        node, constant = _operands(node)
        added = _constant(constant).float()
        if added.ndim != 4 or (added.shape[1] > 1 and added.shape[2:].numel() > 1):
            raise CorruptFileError(f"layer {constant.name!r} is neither a bias nor noise.")
        if added.shape[1] > 1:
            bias = bias + added
        else:
            noise = noise + added
    _expected(node, "Convolution")
    return node, bias.flatten().expand(len(_kernel(node))), noise[0, 0]


def _modulated(node: Node) -> tuple[Node, Style]:
    """What is multiplied by a linear function of the style, and that function."""
    _expected(node, "Multiply")
    for index in (0, 1):
        if (style := _linear_style(node.input(index))) is not None:
            return node.input(1 - index), style
    raise CorruptFileError(f"layer {node.name!r} multiplies by no style.")


def _linear_style(node: Node) -> Style | None:
    """Weight (C, w_dim) and bias (C,) of a function of the style; None for another branch."""
    node, gain = _without_gain(node)
    if node.kind == "Reshape":
        node, inner = _without_gain(node.input(0))
        gain = gain * inner
    if node.kind != "Add" or node.input(0).kind != "MatMul":
        return None
    product, bias = _operands(node, "MatMul")
    if product.input(0).kind != "Parameter":
        return None
    return _matrix(product) * gain, _constant(bias).float().flatten() * gain


def _inverse_wavelet(node: Node) -> tuple[Node, Tensor]:
    """The bands that an inverse transform ends in, and its filters as `MobileBlock.wavelet`.

    A band goes through a filter along the height, the two that share one along the width are added
    before it.
    """
    filters: dict[int, Tensor] = {}
    sources = set()
    for half in (node.input(0), node.input(1)) if node.kind == "Add" else ():
        row = _filter(half, "1,2")
        pair = _expected(half.input(0), "Add")
        for column in (pair.input(0), pair.input(1)):
            source, band = _band(column.input(0), *column.inputs[0][1:])
            filters[band] = torch.outer(_filter(column, "2,1"), row)
            sources.add(source)
    if sorted(filters) != [0, 1, 2, 3] or len(sources) != 1:
        raise CorruptFileError(f"layer {node.name!r} ends no inverse wavelet transform.")
    return sources.pop(), torch.stack([filters[band] for band in range(4)])


def _band(node: Node, output: int) -> tuple[Node, int]:
    """Which tensor is split into bands, and which of its four bands comes out here."""
    if node.kind == "VariadicSplit":
        if output:
            raise CorruptFileError(f"layer {node.name!r}: its high bands are not told apart.")
        return node.input(0), 0
    _expected(node, "Squeeze")
    split, band = node.inputs[0]
    whole, high = _expected(_expected(split, "VariadicSplit").input(0), "Reshape").inputs[0]
    if high != 1:
        raise CorruptFileError(f"layer {node.name!r} takes no high band.")
    return _expected(whole, "VariadicSplit").input(0), 1 + band


def _filter(node: Node, strides: str) -> Tensor:
    """The two numbers of a filter, which is the same for each channel."""
    _expected(node, "GroupConvolutionBackpropData")
    if _attribute(node, "strides") != strides or _attribute(node, "pads_begin") != "0,0":
        raise CorruptFileError(f"layer {node.name!r} is no filter of a wavelet.")
    taps = _constant(node.input(1)).float().flatten(1)
    if taps.shape[1] != 2 or not torch.equal(taps, taps[:1].expand_as(taps)):
        raise CorruptFileError(f"layer {node.name!r} is no filter of a wavelet.")
    return taps[0]


def _attribute(node: Node, name: str) -> str:
    return node.data.get(name, "").replace(" ", "")


def _below(prefix: str, parts: Parts) -> Parts:
    return {f"{prefix}.{name}": tensor for name, tensor in parts.items()}


def _modulation(name: str, style: Style) -> Parts:
    return {f"{name}.linear.weight": style[0], f"{name}.linear.bias": style[1]}


def _kernel(node: Node) -> Tensor:
    """(out, in / groups, k, k) of a convolution that keeps the size."""
    kernel = _constant(node.input(1)).float()
    if kernel.ndim == 5 and kernel.shape[1] == 1:
        kernel = kernel[:, 0]
    pads = f"{kernel.shape[-2] // 2},{kernel.shape[-1] // 2}"
    wanted = {"strides": "1,1", "dilations": "1,1", "pads_begin": pads, "pads_end": pads}
    for name, value in wanted.items():
        if _attribute(node, name) != value:
            raise CorruptFileError(f"layer {node.name!r} has {name} {node.data.get(name)!r}.")
    return kernel


def _matrix(product: Node) -> Tensor:
    """(out, in) of a product with a constant."""
    if product.data.get("transpose_a", "false") != "false":
        raise CorruptFileError(f"layer {product.name!r} transposes its first input.")
    matrix = _constant(product.input(1)).float()
    return matrix if product.data.get("transpose_b") == "true" else matrix.T


def _leaky(node: Node) -> Node:
    slope = _constant(node.input(1)).flatten()
    if not torch.allclose(slope.float(), torch.full_like(slope.float(), SLOPE)):
        raise CorruptFileError(f"layer {node.name!r} has another slope than {SLOPE}.")
    return node.input(0)


def _without_gain(node: Node) -> tuple[Node, float]:
    """What a constant multiplies, and that constant; the node itself and 1 if there is none."""
    gain = 1.0
    while node.kind == "Multiply":
        constants = [
            index
            for index in (0, 1)
            if (value := _value(node.input(index))) is not None and value.numel() == 1
        ]
        if not constants:
            break
        gain *= float(_constant(node.input(constants[0])))
        node = node.input(1 - constants[0])
    if not math.isfinite(gain) or gain <= 0:
        raise CorruptFileError(f"layer {node.name!r} is multiplied by {gain}.")
    return node, gain


def _operands(node: Node, kind: str | None = None) -> tuple[Node, Node]:
    """Of the two inputs: the one of `kind`, or else the one that is no constant; and the other."""
    pair = node.input(0), node.input(1)
    is_swapped = pair[0].kind != kind if kind else _value(pair[0]) is not None
    return _expected(pair[is_swapped], kind) if kind else pair[is_swapped], pair[not is_swapped]


def _is_start(node: Node) -> bool:
    return node.kind in ("Tile", "Broadcast", "Const")


def _start(node: Node) -> Node:
    while node.kind in ("Tile", "Broadcast"):
        node = node.input(0)
    return node


def _value(node: Node) -> Tensor | None:
    """The tensor of a constant, through changes of its type and shape; None for other nodes."""
    while node.kind in ("Convert", "Reshape"):
        node = node.input(0)
    return node.value


def _constant(node: Node) -> Tensor:
    value = _value(node)
    if value is None:
        raise CorruptFileError(f"layer {node.name!r} is a {node.kind}, expected a constant.")
    return value


def _expected(node: Node, kind: str) -> Node:
    if node.kind != kind:
        raise CorruptFileError(f"layer {node.name!r} is a {node.kind}, expected {kind}.")
    return node
