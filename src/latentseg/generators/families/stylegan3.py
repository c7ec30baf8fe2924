"""StyleGAN3 (Karras et al. 2021), configurations T and R, in plain PyTorch, and its files.

Nothing is compiled. Filters run as depthwise convolutions along columns and rows: on a CPU, in
channels-last memory, these take a fraction of the time of products with banded matrices.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.configs import from_json
from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan2 import (
    FullyConnected,
    MappingNetwork,
    StyleGAN2Config,
    demodulation,
)
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.style_generator import StyleGenerator, StyleNetwork
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, SQRT_2, stored
from latentseg.weights.records import ModuleTree

MARGIN = 10  # samples beyond each edge of the image
TAPS = 6  # of a filter, for each sample of the coarser side
N_CRITICAL = 2  # last layers, sampled as densely as the image
SLOPE = 0.2  # of the leaky ReLU below zero
STOPBAND = 2**0.3  # where the last filters stop, in units of their cutoff


@dataclass(frozen=True)
class LayerConfig:
    """A convolution, and a leaky ReLU at a higher sampling rate.

    Attributes:
        size: Side of its maps in samples, margins included.
        channels: Of its maps.
        kernel: Side of its convolution.
        up, down: Factors of the sampling rate before and after the leaky ReLU.
        up_taps, down_taps: Lengths of the low-pass filters beside it.
        is_radial: Whether the second filter is round, not the product of two lines.
        clamp: Activations are clamped to this magnitude; None for no clamp.
    """

    size: int
    channels: int
    kernel: int = 3
    up: int = 2
    down: int = 2
    up_taps: int = 12
    down_taps: int = 12
    is_radial: bool = False
    clamp: float | None = 256.0

    def cropped(self, in_size: int) -> int:
        """Samples cut off each edge after the first filter, for maps of side `in_size`.

        Raises:
            InputError: the sizes do not fit together.
        """
        have = (in_size + self.kernel - 2) * self.up + self.up_taps
        excess = have - (self.size - 1) * self.down - self.down_taps
        if excess < 0 or excess % 2:
            raise InputError(f"No layer makes maps of side {self.size} from {in_size}: {self}.")
        return excess // 2


@dataclass(frozen=True)
class SynthesisConfig:
    """Everything that fixes the layers that draw; the weights are the rest.

    Attributes:
        layers: Coarse to fine, without the one that makes the image.
        input_channels: Waves that the first layer gets.
        sampling_rate: Samples per image side there.
        bandwidth: Waves per image side there, at most.
        image_channels: 3, or 1 for grey.
        image_clamp: As of the layers.
        output_scale: Factor of the image.
    """

    layers: tuple[LayerConfig, ...]
    input_channels: int
    sampling_rate: float = 16.0
    bandwidth: float = 2.0
    image_channels: int = 3
    image_clamp: float | None = 256.0
    output_scale: float = 0.25

    def __post_init__(self) -> None:
        layers = tuple(built(LayerConfig, layer) for layer in self.layers)
        object.__setattr__(self, "layers", layers)
        if not layers:
            raise InputError("A synthesis network needs at least one layer.")
        if self.image_channels not in (1, 3):
            raise InputError(f"`image_channels`: expected 1 or 3, found {self.image_channels}.")
        for layer, in_size in zip(layers, self.in_sizes, strict=True):
            layer.cropped(in_size)

    @property
    def size(self) -> int:
        """Side of the image."""
        return self.layers[-1].size

    @property
    def in_sizes(self) -> list[int]:
        """Side of the maps that each layer gets; those of the waves are as the first layer's."""
        return [self.layers[0].size, *(layer.size for layer in self.layers[:-1])]

    @property
    def in_channels(self) -> list[int]:
        """Channels of the maps that each layer gets."""
        return [self.input_channels, *(layer.channels for layer in self.layers[:-1])]

    @property
    def margins(self) -> list[int]:
        """Samples of each layer's maps beyond each edge of the image."""
        rate, margins = self.sampling_rate, []
        for layer in self.layers:
            rate = rate * layer.up / layer.down
            margins.append(round(layer.size - rate) // 2)
        return margins


@dataclass(frozen=True)
class StyleGAN3Config:
    """A StyleGAN3.

    Attributes:
        synthesis: The layers that draw.
        z_dim, w_dim: Size of the noise and of the style vector.
        n_classes: Number of class labels, 0 for none.
        mapping_layers: Layers of the mapping network.
        mapping_lr_multiplier: Scale of its parameters (equalised learning rate).
    """

    synthesis: SynthesisConfig
    z_dim: int = 512
    w_dim: int = 512
    n_classes: int = 0
    mapping_layers: int = 2
    mapping_lr_multiplier: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "synthesis", built(SynthesisConfig, self.synthesis))

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.synthesis.size, self.synthesis.size


def built(kind: type, values: Any) -> Any:
    """`values`, or what JSON made of them, as the dataclass `kind`."""
    return from_json(kind, values, kind.__name__) if isinstance(values, Mapping) else values


@dataclass(frozen=True)
class Band:
    """What a planned layer lets pass; frequencies in waves, rates in samples per image side."""

    cutoff: float
    stopband: float
    rate: int
    channels: int


def planned_bands(
    first: Band, size: int, n_layers: int, channel_base: int, channel_max: int
) -> list[Band]:
    """Bands from `first` to that of an image of `size`: frequencies grow geometrically.

    Source: Karras et al. 2021, section 3.2, flexible layers.
    """
    last = size / 2
    bands = [first]
    for index in range(1, n_layers):
        share = min(index / (n_layers - N_CRITICAL), 1)
        cutoff = first.cutoff * (last / first.cutoff) ** share
        stopband = first.stopband * (last * STOPBAND / first.stopband) ** share
        rate = 2 ** math.ceil(math.log2(min(2 * stopband, size)))
        channels = round(min(channel_base / 2 / cutoff, channel_max))
        bands.append(Band(cutoff, stopband, rate, channels))
    return bands


def planned_layers(
    bands: Sequence[Band], size: int, *, kernel: int, is_radial: bool, clamp: float | None
) -> list[LayerConfig]:
    """The layers for these bands; the last one makes maps of the image's `size`.

    Source: Karras et al. 2021, section 3.2.
    """
    layers = []
    for index, band in enumerate(bands):
        in_rate = bands[max(index - 1, 0)].rate
        dense_rate = 2 * max(in_rate, band.rate)
        up, down = dense_rate // in_rate, dense_rate // band.rate
        is_last = index == len(bands) - 1
        layer = LayerConfig(
            size=size if is_last else band.rate + 2 * MARGIN,
            channels=band.channels,
            kernel=kernel,
            up=up,
            down=down,
            up_taps=TAPS * up,
            down_taps=TAPS * down,
            is_radial=is_radial and index < len(bands) - N_CRITICAL,
            clamp=clamp,
        )
        layers.append(layer)
    return layers


def first_band(channel_base: int, channel_max: int) -> Band:
    """Of the waves that a network begins with."""
    return Band(2.0, 2**2.1, 16, round(min(channel_base / 4, channel_max)))


def planned(
    size: int,
    *,
    n_layers: int = 14,
    kernel: int = 3,
    is_radial: bool = False,
    channel_base: int = 32768,
    channel_max: int = 512,
) -> SynthesisConfig:
    """The official plan of layers for images of `size`, a power of two from 16.

    Args:
        size: Side of the images.
        n_layers: Without the one that makes the image.
        kernel: Side of the convolutions: 3 for T, 1 for R.
        is_radial: Whether filters are round, which makes drawing rotate with its input: R.
        channel_base: Channels are half of this divided by the cutoff frequency,
        channel_max: but at most so many.
    """
    first = first_band(channel_base, channel_max)
    bands = planned_bands(first, size, n_layers, channel_base, channel_max)
    layers = planned_layers(bands, size, kernel=kernel, is_radial=is_radial, clamp=256.0)
    return SynthesisConfig(tuple(layers), first.channels)


class SynthesisInput(nn.Module):
    """Plane waves, rotated and shifted by a style, and mixed: what the first layer gets."""

    freqs: Tensor
    phases: Tensor
    transform: Tensor

    def __init__(self, config: SynthesisConfig, w_dim: int) -> None:
        super().__init__()
        self.size, self.rate, self.bandwidth = (
            config.in_sizes[0],
            config.sampling_rate,
            config.bandwidth,
        )
        channels = config.input_channels
        self.affine = FullyConnected(w_dim, 4)
        nn.init.zeros_(self.affine.weight)
        with torch.no_grad():
            self.affine.bias[0] = 1
        self.weight = nn.Parameter(torch.randn(channels, channels))
        angle, radius = 2 * math.pi * torch.rand(channels), torch.rand(channels).sqrt()
        waves = torch.stack([angle.cos(), angle.sin()], dim=1) * radius[:, None]
        self.register_buffer("freqs", waves * config.bandwidth)
        self.register_buffer("phases", torch.rand(channels) - 0.5)
        self.register_buffer("transform", torch.eye(3))

    def forward(self, w: Tensor) -> Tensor:
        """Styles (B, w_dim) to maps (B, C, H, W), margins included.

        Source: Karras et al. 2021, sections 3.1 and 3.2, transformed Fourier features.
        """
        freqs, phases = self._posed(w)
        excess = freqs.norm(dim=2) - self.bandwidth
        amplitudes = (1 - excess / (self.rate / 2 - self.bandwidth)).clamp(0, 1)
        centres = torch.arange(self.size, device=w.device) + 0.5
        line = (centres - self.size / 2) / self.rate
        across = freqs[:, None, None, :, 0] * line[:, None]
        down = freqs[:, None, None, :, 1] * line[:, None, None]
        waves = torch.sin(2 * math.pi * (across + down + phases[:, None, None]))
        weight = self.weight / math.sqrt(len(self.weight))
        return (waves * amplitudes[:, None, None] @ weight.T).permute(0, 3, 1, 2)

    def _posed(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Frequencies (B, C, 2) and phases (B, C) after rotation, shift and `transform`."""
        pose = self.affine(w)
        cos, sin, *shift = (pose / pose[:, :2].norm(dim=1, keepdim=True)).unbind(dim=1)
        rotation = torch.stack([cos, -sin, sin, cos], dim=1).unflatten(1, (2, 2))
        shifted = rotation @ torch.stack(shift, dim=1)[:, :, None]
        moved = torch.cat([rotation, -shifted], dim=2) @ self.transform
        return self.freqs @ moved[:, :, :2], self.phases + (self.freqs @ moved[:, :, 2:])[:, :, 0]


def upsampled(x: Tensor, taps: Tensor, up: int, crop: int) -> Tensor:
    """(B, C, H, W) at `up` times the rate: zeros put in between, filtered, cropped.

    Args:
        x: Activations.
        taps: (n,) filter, symmetric.
        up: Factor.
        crop: Samples cut off each edge of all those that the filter reaches.
    """
    channels = x.shape[1]
    column, row = (taps.view(shape).expand(channels, 1, -1, -1) for shape in ((-1, 1), (1, -1)))
    x = F.conv_transpose2d(x, column, stride=(up, 1), padding=(crop, 0), groups=channels)
    return F.conv_transpose2d(x, row, stride=(1, up), padding=(0, crop), groups=channels)


def downsampled(x: Tensor, taps: Tensor, down: int) -> Tensor:
    """(B, C, H, W), filtered without padding, every `down`-th sample.

    Args:
        x: Activations.
        taps: (n,) for a filter along rows and columns, (n, n) for any other; symmetric.
        down: Factor.
    """
    channels = x.shape[1]
    if taps.ndim == 2:
        return F.conv2d(x, taps.expand(channels, 1, -1, -1), stride=down, groups=channels)
    column, row = (taps.view(shape).expand(channels, 1, -1, -1) for shape in ((-1, 1), (1, -1)))
    x = F.conv2d(x, column, stride=(down, 1), groups=channels)
    return F.conv2d(x, row, stride=(1, down), groups=channels)


class SynthesisLayer(nn.Module):
    """Modulated convolution, bias, and a leaky ReLU that makes no false frequencies; one style."""

    magnitude_ema: Tensor
    up_filter: Tensor
    down_filter: Tensor

    def __init__(self, config: LayerConfig, in_size: int, in_channels: int, w_dim: int) -> None:
        super().__init__()
        self.config, self.crop = config, config.cropped(in_size)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(
            torch.randn(config.channels, in_channels, config.kernel, config.kernel)
        )
        self.bias = nn.Parameter(torch.zeros(config.channels))
        self.register_buffer("magnitude_ema", torch.ones(()))
        self.register_buffer("up_filter", _smooth(config.up_taps))
        line = _smooth(config.down_taps)
        self.register_buffer("down_filter", torch.outer(line, line) if config.is_radial else line)

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, C_in, H, W) and style (B, w_dim) to (B, C_out, H', W').

        Source: Karras et al. 2021, section 3.2.
        """
        up, down, kernel = self.config.up, self.config.down, self.config.kernel
        styles = self.affine(w)
        x = F.conv2d(x * styles[:, :, None, None], self.weight, padding=kernel - 1)
        # The gains of the leaky ReLU and of the zeros put in are folded into factor and offset.
        gain = SQRT_2 * up**2
        factor = demodulation(self.weight, styles) * self.magnitude_ema.rsqrt() * gain
        x = torch.addcmul((self.bias * gain)[:, None, None], x, factor[:, :, None, None])
        x = upsampled(x, self.up_filter, up, self.crop)
        # These maps are the largest: clamped before the leaky ReLU, both are done in place.
        if self.config.clamp is not None:
            x = x.clamp_(-self.config.clamp / SLOPE, self.config.clamp)
        return downsampled(F.leaky_relu_(x, SLOPE), self.down_filter, down)


def _smooth(n: int) -> Tensor:
    """A low-pass filter (n,) for networks without weights; files bring their own."""
    line = torch.kaiser_window(n, periodic=False, beta=8.0)
    return line / line.sum()


class ToRGB(nn.Module):
    """Modulated 1x1 convolution to the image channels, without demodulation."""

    magnitude_ema: Tensor

    def __init__(self, config: SynthesisConfig, w_dim: int) -> None:
        super().__init__()
        in_channels = config.layers[-1].channels
        self.clamp = config.image_clamp
        self.weight_gain = 1 / math.sqrt(in_channels)
        self.affine = FullyConnected(w_dim, in_channels, bias_init=1)
        self.weight = nn.Parameter(torch.randn(config.image_channels, in_channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(config.image_channels))
        self.register_buffer("magnitude_ema", torch.ones(()))

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        """(B, C, H, W) and style (B, w_dim) to the image."""
        styles = self.affine(w) * (self.weight_gain * self.magnitude_ema.rsqrt())
        x = F.conv2d(x * styles[:, :, None, None], self.weight, self.bias)
        return x if self.clamp is None else x.clamp(-self.clamp, self.clamp)


class SynthesisNetwork(nn.Module):
    """Styles (B, layers, w_dim) to images, coarse to fine."""

    def __init__(self, config: SynthesisConfig, w_dim: int) -> None:
        super().__init__()
        self.config = config
        self.input = SynthesisInput(config, w_dim)
        shapes = zip(config.layers, config.in_sizes, config.in_channels, strict=True)
        self.layers = nn.ModuleList(SynthesisLayer(*shape, w_dim) for shape in shapes)
        self.torgb = ToRGB(config, w_dim)

    def forward(self, ws: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Draws images.

        Args:
            ws: (B, layers + 2, w_dim): the pose of the input, each layer, the image.

        Returns:
            Images (B, 3, H, W), nominally in [-1, 1], not clamped; and the activations of each
            layer without their margins, so that they lie on the image.
        """
        first, *styles, last = ws.unbind(dim=1)
        x, features = self.input(first), []
        for layer, w, margin in zip(self.layers, styles, self.config.margins, strict=True):
            x = layer(x, w)
            inside = slice(margin, x.shape[-1] - margin)
            features.append(x[..., inside, inside])
        image = self.torgb(x, last) * self.config.output_scale
        return image.expand(-1, 3, -1, -1), features


class StyleGAN3(StyleNetwork):
    """Mapping and synthesis; layers are numbered in the state dict, all else has official names."""

    config: StyleGAN3Config

    def __init__(self, config: StyleGAN3Config) -> None:
        super().__init__()
        self.config = config
        mapping = StyleGAN2Config(
            z_dim=config.z_dim,
            w_dim=config.w_dim,
            n_classes=config.n_classes,
            mapping_layers=config.mapping_layers,
            mapping_lr_multiplier=config.mapping_lr_multiplier,
        )
        self.mapping = MappingNetwork(mapping)
        self.synthesis = SynthesisNetwork(config.synthesis, config.w_dim)

    @property
    def n_layers(self) -> int:
        """One style for the pose of the input, one for each layer, one for the image."""
        return len(self.config.synthesis.layers) + 2

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each layer."""
        return tuple(layer.channels for layer in self.config.synthesis.layers)

    def style(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """Noise (B, z_dim) and classes (B,) to styles (B, w_dim)."""
        return self.mapping(z, labels)

    def centre(self, labels: Tensor | None) -> Tensor:
        """The running mean of w, (w_dim,), for all classes alike."""
        return self.mapping.w_avg

    def draw(self, ws: Tensor, noise: str) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) and the activations after each layer; there is no noise."""
        return self.synthesis(ws)


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a StyleGAN3 checkpoint; None if it is one."""
    if not checkpoint.has_module("G_ema"):
        return "no network under 'G_ema'"
    nodes = checkpoint.module("G_ema").nodes
    if "synthesis.input" not in nodes:
        return "its network has no part 'synthesis.input'"
    if "mapping.embed" in nodes and nodes["mapping.embed"].class_name == "Embedding":
        return "its class embedding is a table, as in StyleGAN-XL"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads NVIDIA's pickles.

    Raises:
        CorruptFileError: parameters or attributes are missing or do not fit.
    """
    tree = checkpoint.module("G_ema")
    source = Weights(tree.tensors, checkpoint.path)
    with well_described(checkpoint.path):
        config = StyleGAN3Config(synthesis=read_synthesis(tree, source), **read_mapping(tree))
        names = layer_names(tree)
    return Imported(config, official_weights(StyleGAN3, config, source, names))


def read_mapping(tree: ModuleTree) -> dict[str, Any]:
    """The fields of the configuration that the attributes of a network and its mapping state."""
    root = tree.nodes[""].attributes
    return {
        "z_dim": int(root["z_dim"]),
        "w_dim": int(root["w_dim"]),
        "n_classes": int(root["c_dim"]),
        "mapping_layers": int(tree.nodes["mapping"].attributes["num_layers"]),
        "mapping_lr_multiplier": float(tree.nodes["mapping.fc0"].attributes["bias_gain"]),
    }


@contextmanager
def well_described(where: Path) -> Iterator[None]:
    """Turns what goes wrong when attributes are read into an error that names file and reason.

    Raises:
        CorruptFileError: an attribute is missing or not what it should be.
    """
    try:
        yield
    except (InputError, KeyError, ValueError, TypeError, IndexError, ArithmeticError) as error:
        raise CorruptFileError(
            f"{where}: its network does not describe itself as StyleGAN3 does "
            f"({type(error).__name__}: {error})."
        ) from error


def layer_names(tree: ModuleTree) -> list[str]:
    """The layers in their order, the image's included: "L0_36_512" is number, size, channels."""
    return [str(name) for name in tree.nodes["synthesis"].attributes["layer_names"]]


def read_synthesis(tree: ModuleTree, source: Weights) -> SynthesisConfig:
    """The layers that draw, from the attributes of the modules and their stored filters."""
    *names, last = layer_names(tree)
    waves, image = (tree.nodes[f"synthesis.{name}"].attributes for name in ("input", last))
    return SynthesisConfig(
        layers=tuple(_read_layer(tree, source, name) for name in names),
        input_channels=len(stored(source, "synthesis.input.weight", ANY, ANY)),
        sampling_rate=float(waves["sampling_rate"]),
        bandwidth=float(waves["bandwidth"]),
        image_channels=len(stored(source, f"synthesis.{last}.weight", ANY, ANY, 1, 1)),
        image_clamp=_optional(image["conv_clamp"]),
        output_scale=float(tree.nodes["synthesis"].attributes["output_scale"]),
    )


def _read_layer(tree: ModuleTree, source: Weights, name: str) -> LayerConfig:
    attributes = tree.nodes[f"synthesis.{name}"].attributes
    channels, _, kernel, _ = stored(source, f"synthesis.{name}.weight", *[ANY] * 4).shape
    down_filter = source[f"synthesis.{name}.down_filter"]
    return LayerConfig(
        size=int(name.split("_")[1]),
        channels=channels,
        kernel=kernel,
        up=int(attributes["up_factor"]),
        down=int(attributes["down_factor"]),
        up_taps=len(stored(source, f"synthesis.{name}.up_filter", ANY)),
        down_taps=len(down_filter),
        is_radial=down_filter.ndim == 2,
        clamp=_optional(attributes["conv_clamp"]),
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def official_weights(
    build: Callable[[Any], nn.Module], config: Any, source: Weights, names: Iterable[str]
) -> dict[str, Tensor]:
    """The weights that the network needs, which in the file are called by their layers' `names`.

    Raises:
        CorruptFileError: one is missing or of another shape.
    """
    *layers, last = names
    renamed = {f"synthesis.layers.{index}": name for index, name in enumerate(layers)}
    renamed["synthesis.torgb"] = last
    with torch.device("meta"):
        expected = build(config).state_dict()
    weights = {}
    for name, tensor in expected.items():
        part = next((part for part in renamed if name.startswith(f"{part}.")), None)
        official = name if part is None else f"synthesis.{renamed[part]}{name.removeprefix(part)}"
        weights[name] = stored(source, official, *tensor.shape)
    return weights


def _published() -> dict[str, StyleGAN3Config]:
    configs = {}
    for size, channel_base in ((256, 16384), (512, 32768), (1024, 32768)):
        t = planned(size, channel_base=channel_base)
        r = planned(size, kernel=1, is_radial=True, channel_base=2 * channel_base, channel_max=1024)
        configs |= {f"stylegan3-t-{size}": StyleGAN3Config(t)}
        configs |= {f"stylegan3-r-{size}": StyleGAN3Config(r)}
    return configs


FAMILY = Family(
    name="stylegan3",
    title="StyleGAN3 (Karras et al. 2021)",
    files="NVIDIA .pkl",
    licence=(
        "NVIDIA Source Code License, non-commercial: so is every dataset and segmenter made with it"
    ),
    config=StyleGAN3Config,
    build=StyleGAN3,
    adapt=StyleGenerator.adapt,
    objection=objection,
    read=read,
    choices=("psi", "cutoff", "class_weights"),
    abilities=("variants", "features", "classes"),
    published=_published(),
)
