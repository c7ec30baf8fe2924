"""Reads the files of StyleGAN2: NVIDIA's pickles, and rosinality's and StudioGAN's checkpoints.

Our parameters have the names of NVIDIA's PyTorch code. Other layouts are looked at through these
names; the shapes say what the network is, and what they leave open is stated by the file, or
assumed and noted.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.generators.families.stylegan2 import (
    MappingNetwork,
    StyleGAN2,
    StyleGAN2Config,
    filter_kernel,
)
from latentseg.generators.family import Family, Imported, Options, load_weights
from latentseg.generators.style_generator import MEASURED, StyleGenerator
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.records import ArrayRecord, Record, value_of

LICENCE = (
    "NVIDIA Source Code License, non-commercial: so is every dataset and segmenter made with it"
)
MAX_BLOCKS = 11  # 4096 px from 4 px
MAX_SIDE = 8192
MAX_LAYERS = 64
CLAMP = 256.0  # of StudioGAN's networks when trained in mixed precision, as its commands ask for
LR_NOTE = "The scale of the mapping network's parameters was assumed to be the official 0.01."
NOISE_NOTE = "The file holds no noise maps: they were drawn from a fixed seed."
STYLE_NOTE = f"The file holds no mean style: the mean of {MEASURED} styles was taken."
FILTER_NOTE = "The file holds no resampling filter: the official [1, 3, 3, 1] was assumed."
CLAMP_NOTE = (
    f"The file does not say whether activations are clamped: at {CLAMP:g} was assumed, as in "
    "StudioGAN with mixed precision; the option conv_clamp=0 is for no clamp."
)

Change = Callable[[Tensor], Tensor]


class Source(Protocol):
    """The tensors of a file by our names; asking for a missing one is an error that names it."""

    where: Path | str

    def __contains__(self, name: object, /) -> bool: ...

    def __getitem__(self, name: str, /) -> Tensor: ...


class Renamed:
    """The tensors of another layout by our names.

    Args:
        weights: By the names of the layout.
        rename: For one of our names, that of the layout, and how its tensor becomes ours.
    """

    def __init__(self, weights: Weights, rename: Callable[[str], tuple[str, Change]]) -> None:
        self.weights, self.rename, self.where = weights, rename, weights.where

    def __contains__(self, name: object, /) -> bool:
        return isinstance(name, str) and self.rename(name)[0] in self.weights

    def __getitem__(self, name: str, /) -> Tensor:
        theirs, change = self.rename(name)
        tensor = self.weights[theirs]
        try:
            return change(tensor)
        except (IndexError, RuntimeError) as error:
            raise CorruptFileError(
                f"{self.where}: {theirs!r} has shape {tuple(tensor.shape)}; it does not fit."
            ) from error


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a StyleGAN2 checkpoint; None if it is one."""
    if checkpoint.has("G_ema"):
        return _nvidia_objection(checkpoint)
    if checkpoint.has("g_ema"):
        name, keys = "to_rgb1.conv.weight", "g_ema"
    elif checkpoint.has("state_dict"):
        name, keys = "synthesis.b4.const", "state_dict"
    elif network := _tensorflow_network(checkpoint):
        return _tensorflow_objection(network)
    else:
        return "no network under 'G_ema', 'g_ema' or 'state_dict', and none of TensorFlow"
    return None if name in checkpoint.names(keys) else f"no parameter {name!r} under {keys!r}"


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a checkpoint of any of the layouts."""
    if "conv_clamp" in options and not checkpoint.has("state_dict"):
        raise InputError("`conv_clamp`: only StudioGAN's files leave it open.")
    if checkpoint.has("G_ema"):
        return _read_nvidia(checkpoint)
    if checkpoint.has("g_ema"):
        return _read_rosinality(checkpoint)
    if checkpoint.has("state_dict"):
        return _read_studiogan(checkpoint, options)
    return _read_tensorflow(checkpoint)


def _read_nvidia(checkpoint: Checkpoint) -> Imported:
    tree = checkpoint.module("G_ema")
    for path, node in tree.nodes.items():
        if re.fullmatch(r"mapping\.fc\d+|synthesis\.b\d+\.conv\d", path):
            _check_activation(node.attributes.get("activation"), f"{checkpoint.path}: {path}")

    def stated(path: str, name: str, **more: Any) -> Any:
        attributes = tree.nodes[path].attributes if path in tree.nodes else {}
        return _number(attributes, name, f"{checkpoint.path}: {path or 'G_ema'}", **more)

    weights = Weights(tree.tensors, checkpoint.path)
    resolution = stated("", "img_resolution")
    imported = _imported(
        weights,
        size=(resolution, resolution),
        mapping_layers=stated("mapping", "num_layers"),
        mapping_lr_multiplier=stated("mapping.fc0", "bias_gain"),
        conv_clamp=stated("synthesis.b4.conv1", "conv_clamp", may_be_none=True),
        resample_filter=_taps(weights["synthesis.b4.resample_filter"]),
    )
    return _with_all(imported, weights)


def _nvidia_objection(checkpoint: Checkpoint) -> str | None:
    try:
        nodes = checkpoint.module("G_ema").nodes
    except LatentsegError as error:
        return str(error)
    is_ours = "synthesis.b4" in nodes and "mapping" in nodes
    return None if is_ours else "no 'mapping' and 'synthesis.b4' in the network under 'G_ema'"


def _number(
    values: Mapping[str, Any],
    name: str,
    where: str,
    *,
    default: float | None = None,
    may_be_none: bool = False,
) -> Any:
    """The number that a file states as `name`; what it does not state has the `default`."""
    value = values.get(name, default)
    if isinstance(value, int | float) or (value is None and may_be_none):
        return value
    raise CorruptFileError(f"{where}: {name!r} is not stated as a number.")


def _check_activation(activation: Any, where: str) -> None:
    if activation != "lrelu":
        raise InputError(f"{where}: activation {activation!r}; only 'lrelu' is known here.")


def _read_studiogan(checkpoint: Checkpoint, options: Options) -> Imported:
    clamp = options.get("conv_clamp", CLAMP)
    if isinstance(clamp, bool) or not isinstance(clamp, int | float) or clamp < 0:
        raise InputError(f"`conv_clamp`: expected a number, 0 for no clamp, found {clamp!r}.")
    weights = checkpoint.weights("state_dict")
    notes = (LR_NOTE,) if "conv_clamp" in options else (LR_NOTE, CLAMP_NOTE)
    imported = _imported(
        weights,
        notes,
        conv_clamp=float(clamp) or None,
        resample_filter=_taps(weights["synthesis.b4.resample_filter"]),
    )
    return _with_all(imported, weights)


def _read_rosinality(checkpoint: Checkpoint) -> Imported:
    top = checkpoint.weights()
    weights = Weights({**checkpoint.weights("g_ema"), **top}, checkpoint.path)
    source = Renamed(weights, _rosinality_name)
    if "convs.0.conv.blur.kernel" not in weights:
        return _imported(source, (LR_NOTE, FILTER_NOTE))
    taps = _taps(weights["convs.0.conv.blur.kernel"])
    return _imported(source, (LR_NOTE,), resample_filter=taps)


def _rosinality_name(name: str) -> tuple[str, Change]:
    match name.split("."):
        case [*_, "resample_filter"]:
            return name, _same
        case ["mapping", "w_avg"]:
            return "latent_avg", torch.flatten
        case ["mapping", layer, kind] if layer.startswith("fc"):
            return f"style.{int(layer[2:]) + 1}.{kind}", _same
        case ["synthesis", "b4", "const"]:
            return "input.input", _first
        case ["synthesis", block, ("conv0" | "conv1" | "torgb") as layer, *kinds]:
            level, upper = _level(block), layer == "conv1"
            if kinds == ["noise_const"]:
                return f"noises.noise_{2 * level - 1 + upper}", lambda x: x[0, 0]
            if layer == "torgb":
                place = "to_rgb1" if level == 0 else f"to_rgbs.{level - 1}"
            else:
                place = "conv1" if level == 0 else f"convs.{2 * (level - 1) + upper}"
            theirs, change = {
                "weight": ("conv.weight", _first),
                "bias": ("bias" if layer == "torgb" else "activate.bias", torch.flatten),
                "noise_strength": ("noise.weight", _first),
                "affine.weight": ("conv.modulation.weight", _same),
                "affine.bias": ("conv.modulation.bias", _same),
            }[".".join(kinds)]
            return f"{place}.{theirs}", change
    return name, _same


def _read_tensorflow(checkpoint: Checkpoint) -> Imported:
    network = _tensorflow_network(checkpoint)
    if network is None:
        raise CorruptFileError(f"{checkpoint.path}: no tuple of three TensorFlow networks.")
    tensors = {
        name: torch.as_tensor(value.array() if isinstance(value, ArrayRecord) else value)
        for name, value in _variables(network)
    }
    where, stated = str(checkpoint.path), value_of(network.state["static_kwargs"])
    for name in ("nonlinearity", "mapping_nonlinearity"):
        _check_activation(stated.get(name, "lrelu"), f"{where}: {name}")
    resolution = _number(stated, "resolution", where, default=1024)
    taps = stated.get("resample_kernel", [1, 3, 3, 1])
    if not isinstance(taps, list) or not all(isinstance(tap, int | float) for tap in taps):
        raise CorruptFileError(f"{where}: 'resample_kernel' is not stated as a list of numbers.")
    return _imported(
        Renamed(Weights(tensors, checkpoint.path), _tensorflow_name),
        size=(resolution, resolution),
        mapping_layers=_number(stated, "mapping_layers", where, default=8),
        mapping_lr_multiplier=_number(stated, "mapping_lrmul", where, default=0.01),
        conv_clamp=_number(stated, "conv_clamp", where, may_be_none=True),
        resample_filter=tuple(taps),
    )


def _tensorflow_objection(network: Record) -> str | None:
    names = {name for name, _ in _variables(network)}
    if "synthesis/4x4/Conv/mod_weight" in names:
        return None
    if "synthesis/4x4/Conv/StyleMod/weight" in names:
        return "a network of StyleGAN 1 for TensorFlow, which is another network"
    return "no variable 'synthesis/4x4/Conv/mod_weight' in the third TensorFlow network"


def _tensorflow_network(checkpoint: Checkpoint) -> Record | None:
    """The third of G, D and Gs, whose weights are the moving average of G's."""
    match checkpoint.tree:
        case [Record(), Record(), Record(name="Network", state=state) as network]:
            match state:
                case {"static_kwargs": dict(), "variables": list()}:
                    return network
    return None


def _variables(network: Record) -> Iterator[tuple[str, ArrayRecord | float]]:
    """Names and float values of a network's variables, and of those of its components."""
    components = network.state.get("components")
    inner = components.items() if isinstance(components, Mapping) else ()
    for prefix, part in [("", network), *((f"{name}/", part) for name, part in inner)]:
        match part:
            case Record(state={"variables": [*pairs]}):
                for pair in pairs:
                    match pair:
                        case [str(name), float(value)]:
                            yield prefix + name, value
                        case [str(name), ArrayRecord(dtype=np.dtype(kind="f")) as value]:
                            yield prefix + name, value


def _tensorflow_name(name: str) -> tuple[str, Change]:
    match name.split("."):
        case [*_, "resample_filter"]:
            return name, _same
        case ["mapping", "w_avg"]:
            return "dlatent_avg", _same
        case ["mapping", layer, kind]:
            scope = "LabelEmbed" if layer == "embed" else layer.replace("fc", "Dense")
            return f"mapping/{scope}/{kind}", _transposed if kind == "weight" else _same
        case ["synthesis", "b4", "const"]:
            return "synthesis/4x4/Const/const", _first
        case ["synthesis", block, ("conv0" | "conv1" | "torgb" | "skip") as layer, *kinds]:
            if kinds == ["noise_const"]:
                number = 2 * _level(block) - 1 + (layer == "conv1")
                return f"synthesis/noise{number}", lambda x: x[0, 0]
            scopes = {"conv0": "Conv0_up", "conv1": "Conv1", "torgb": "ToRGB", "skip": "Skip"}
            scope = "Conv" if (block, layer) == ("b4", "conv1") else scopes[layer]
            # The TensorFlow code upsamples with a transposed convolution, which turns the kernel.
            is_turned = layer in ("conv0", "skip")
            theirs, change = {
                "weight": ("weight", _turned_kernel if is_turned else _kernel),
                "bias": ("bias", _same),
                "noise_strength": ("noise_strength", _same),
                "affine.weight": ("mod_weight", _transposed),
                "affine.bias": ("mod_bias", lambda x: x + 1),
            }[".".join(kinds)]
            return f"synthesis/{block[1:]}x{block[1:]}/{scope}/{theirs}", change
    return name, _same


def _level(block: str) -> int:
    """0 for "b4", 1 for "b8", 2 for "b16", ..."""
    return int(math.log2(int(block[1:]))) - 2


def _same(x: Tensor) -> Tensor:
    return x


def _first(x: Tensor) -> Tensor:
    return x[0]


def _transposed(x: Tensor) -> Tensor:
    return x.transpose(0, 1)


def _kernel(x: Tensor) -> Tensor:
    return x.permute(3, 2, 0, 1)


def _turned_kernel(x: Tensor) -> Tensor:
    return _kernel(x).flip(2, 3)


def _taps(kernel: Tensor) -> tuple[float, ...]:
    """The separable filter of a (k, k) kernel, up to its scale."""
    return tuple(kernel.float().sum(0).flatten().tolist())


def _imported(source: Source, notes: tuple[str, ...] = (), **stated: Any) -> Imported:
    """What a file holds; what it may lack is filled in.

    Args:
        source: Its tensors by our names.
        notes: What was assumed so far.
        stated: Fields of the configuration that the file states.
    """
    config = _config(source, **stated)
    with torch.device("meta"):
        expected = StyleGAN2(config).state_dict()
    drawn = torch.Generator().manual_seed(0)
    weights: dict[str, Tensor] = {}
    has_noise = "synthesis.b4.conv1.noise_const" in source
    for name, like in expected.items():
        if name.endswith("resample_filter") and name not in source:
            weights[name] = filter_kernel(config.resample_filter)
        elif name.endswith("noise_const") and not has_noise:
            weights[name] = torch.randn(like.shape, generator=drawn)
        elif name != "mapping.w_avg" or name in source:
            weights[name] = source[name].float()
    if not has_noise:
        notes = (*notes, NOISE_NOTE)
    if "mapping.w_avg" not in source:
        weights["mapping.w_avg"] = _mean_style(config, weights, source.where)
        notes = (*notes, STYLE_NOTE)
    return Imported(config, weights, notes=notes)


def _config(source: Source, **stated: Any) -> StyleGAN2Config:
    """The configuration that the shapes show; what the file states goes before it."""
    finer = (f"synthesis.b{4 * 2**i}" for i in range(1, MAX_BLOCKS))
    blocks = [
        "synthesis.b4",
        *takewhile(lambda block: f"{block}.conv1.weight" in source, finer),
    ]
    _, height, width = _shape(source, "synthesis.b4.const", 3)
    _, w_dim = _shape(source, "synthesis.b4.conv1.affine.weight", 2)
    features, inputs = _shape(source, "mapping.fc0.weight", 2)
    embedded, n_classes = 0, 0
    if "mapping.embed.weight" in source:
        embedded, n_classes = _shape(source, "mapping.embed.weight", 2)
    channels = tuple(_shape(source, f"{block}.conv1.weight", 4)[0] for block in blocks)
    scale = 2 ** (len(blocks) - 1)
    shown = {
        "size": (height * scale, width * scale),
        "channels": channels,
        "z_dim": inputs - embedded,
        "w_dim": w_dim,
        "n_classes": n_classes,
        "mapping_layers": sum(f"mapping.fc{i}.weight" in source for i in range(MAX_LAYERS)),
        "mapping_features": features,
        "embed_features": embedded or None,
        "architecture": _architecture(source, blocks),
        "img_channels": _shape(source, f"{blocks[-1]}.torgb.weight", 4)[0],
    }
    config = StyleGAN2Config(**{**shown, **stated})
    for what, value, most in (
        ("layers of the mapping network", config.mapping_layers, MAX_LAYERS),
        *(("pixels of a side", side, MAX_SIDE) for side in config.size),
    ):
        if not isinstance(value, int) or not 0 < value <= most:
            raise CorruptFileError(f"{source.where}: {value} {what}; expected 1 to {most}.")
    return config


def _architecture(source: Source, blocks: list[str]) -> str:
    if f"{blocks[-1]}.skip.weight" in source:
        return "resnet"
    return "skip" if "synthesis.b4.torgb.weight" in source else "orig"


def _shape(source: Source, name: str, n_dimensions: int) -> tuple[int, ...]:
    shape = tuple(source[name].shape)
    if len(shape) != n_dimensions or 0 in shape:
        raise CorruptFileError(
            f"{source.where}: {name!r} has shape {shape}, expected {n_dimensions} dimensions."
        )
    return shape


def _mean_style(
    config: StyleGAN2Config, weights: Mapping[str, Tensor], where: Path | str
) -> Tensor:
    """The mean of styles w of `MEASURED` latents, (w_dim,), of all classes equally."""
    network = nn.ModuleDict({"mapping": MappingNetwork(config)})
    own = {name: tensor for name, tensor in weights.items() if name.startswith("mapping.")}
    load_weights(network, {**own, "mapping.w_avg": torch.zeros(config.w_dim)}, where)
    drawn = torch.Generator().manual_seed(0)
    z = torch.randn(MEASURED, config.z_dim, generator=drawn)
    labels = torch.arange(MEASURED) % config.n_classes if config.n_classes else None
    with torch.no_grad():
        return network["mapping"](z, labels).mean(dim=0)


def _with_all(imported: Imported, weights: Weights) -> Imported:
    """With what the network does not have too, so that loading it objects."""
    return replace(imported, weights={**weights, **imported.weights})


def _published(size: int, base: int, conv_clamp: float | None = None) -> StyleGAN2Config:
    """As NVIDIA trained them: min(base / pixels, 512) channels at each resolution."""
    sides = [4 * 2**i for i in range(int(math.log2(size)) - 1)]
    return StyleGAN2Config(
        size=(size, size),
        channels=tuple(min(base // side, 512) for side in sides),
        z_dim=512,
        w_dim=512,
        mapping_layers=8,
        conv_clamp=conv_clamp,
    )


FAMILY = Family(
    name="stylegan2",
    title="StyleGAN2 and StyleGAN2-ADA (Karras et al. 2020)",
    files="NVIDIA .pkl (PyTorch, TensorFlow); rosinality .pt; StudioGAN .pth",
    licence=LICENCE,
    config=StyleGAN2Config,
    build=StyleGAN2,
    adapt=StyleGenerator.adapt,
    objection=objection,
    read=read,
    options={"conv_clamp": "of a StudioGAN file: largest activation, 0 for no limit (256)"},
    choices=("psi", "cutoff", "noise", "class_weights"),
    abilities=("variants", "features", "classes"),
    published={
        "stylegan2-256": _published(256, 32768),
        "stylegan2-512": _published(512, 32768),
        "stylegan2-1024": _published(1024, 32768),
        "stylegan2-ada-256": _published(256, 16384, conv_clamp=256),
    },
)
