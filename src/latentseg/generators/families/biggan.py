"""BigGAN (Brock et al. 2019) in plain PyTorch, and the files of ajbrock/BigGAN-PyTorch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.noise_generator import LayeredNetwork, adapt
from latentseg.weights.containers import Checkpoint, Weights, open_checkpoint
from latentseg.weights.folding import ANY, stored, upsampling_kernel
from latentseg.weights.records import Record

OUTPUT_EPS = 1e-5  # of the last normalisation, whatever the others have
RELEASED_EPS = {"bn_eps": 1e-5, "sn_eps": 1e-6}  # of the authors' script launch_BigGAN_bs256x8
PORTED_EPS = {"bn_eps": 1e-4, "sn_eps": 1e-4}  # of the authors' port of the weights on TF Hub
FOLD_FROM = 16  # pixels; of smaller maps the kernel costs more than it saves
OPTIONS = {
    "bn_eps": "what is added to the variances of the normalisations; default: that of the "
    "state_dict*.pth beside the file, else as published",
    "sn_eps": "what vectors of the spectral norm are at least divided by; default: as bn_eps",
}


@dataclass(frozen=True)
class BigGANConfig:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        channels: Of the first activation map, then of what each block gives.
        attention: The blocks, counted from 0, that self-attention follows.
        bottom_width: Height and width of the first activation map; each block doubles them.
        z_chunk_size: Size of the part of z that each layer takes.
        shared_dim: Size of the class embedding that all blocks share.
        n_classes: Number of class labels; 0 for an unconditional use, with one fixed embedding.
        bn_eps: Added to the variances of the blocks' normalisations.
    """

    channels: tuple[int, ...] = (1536, 1536, 768, 384, 192, 96)
    attention: tuple[int, ...] = (3,)
    bottom_width: int = 4
    z_chunk_size: int = 20
    shared_dim: int = 128
    n_classes: int = 1000
    bn_eps: float = RELEASED_EPS["bn_eps"]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        side = self.bottom_width * 2 ** (len(self.channels) - 1)
        return side, side


def upsampled_conv(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Doubles (B, C, H, W) by repeating pixels, then applies a 3x3 convolution with padding 1.

    Of large maps by the transposed convolution that is the same function with 4 products for 9.
    """
    if x.shape[-1] < FOLD_FROM:
        return conv(F.interpolate(x, scale_factor=2.0))
    return F.conv_transpose2d(x, upsampling_kernel(conv.weight), conv.bias, stride=2, padding=1)


def scaled_relu(x: Tensor, scale: Tensor, offset: Tensor) -> Tensor:
    """ReLU of (B, C, H, W) times `scale` plus `offset`, each (B, C) or (C,)."""
    return torch.addcmul(offset[..., None, None], x, scale[..., None, None]).relu_()


class ConditionalNorm(nn.Module):
    """Batch normalisation with stored statistics, scaled and shifted by a condition; then ReLU."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int, condition: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.gain = nn.Linear(condition, channels, bias=False)
        self.bias = nn.Linear(condition, channels, bias=False)
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D) to (B, C, H, W)."""
        scale = (1 + self.gain(condition)) * (self.stored_var + self.eps).rsqrt()
        return scaled_relu(x, scale, self.bias(condition) - self.stored_mean * scale)


class Norm(nn.Module):
    """Batch normalisation with stored statistics, then ReLU."""

    stored_mean: Tensor
    stored_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("stored_mean", torch.zeros(channels))
        self.register_buffer("stored_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), the same shape."""
        scale = self.gain * (self.stored_var + OUTPUT_EPS).rsqrt()
        return scaled_relu(x, scale, self.bias - self.stored_mean * scale)


class Attention(nn.Module):
    """Self-attention over all positions (Zhang et al. 2019, as BigGAN has it).

    Keys and values are halved in height and width.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.o = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), the same shape."""
        queries = self.theta(x).flatten(2)
        keys = F.max_pool2d(self.phi(x), 2).flatten(2)
        values = F.max_pool2d(self.g(x), 2).flatten(2)
        weights = (queries.transpose(1, 2) @ keys).softmax(dim=2)
        attended = (values @ weights.transpose(1, 2)).unflatten(2, x.shape[2:])
        return x + self.gamma * self.o(attended)


class GBlock(nn.Module):
    """A residual block that doubles height and width."""

    def __init__(self, in_channels: int, out_channels: int, condition: int, eps: float) -> None:
        super().__init__()
        self.bn1 = ConditionalNorm(in_channels, condition, eps)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.bn2 = ConditionalNorm(out_channels, condition, eps)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_sc = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C_in, H, W) and (B, D) to (B, C_out, 2H, 2W)."""
        inner = upsampled_conv(self.bn1(x, condition), self.conv1)
        inner = self.conv2(self.bn2(inner, condition))
        # A 1x1 convolution commutes with repeating pixels, and is cheaper before it.
        return inner + F.interpolate(self.conv_sc(x), scale_factor=2.0)


class BigGAN(LayeredNetwork):
    """The generator: z in chunks, one for the first layer and for each block; a shared embedding.

    Args:
        config: Fixes the layers.

    Source: Brock et al. 2019, appendix B, with the parameter names of the official code.
    """

    def __init__(self, config: BigGANConfig) -> None:
        super().__init__()
        self.config = config
        self.shared = nn.Embedding(max(config.n_classes, 1), config.shared_dim)
        self.linear = nn.Linear(config.z_chunk_size, config.channels[0] * config.bottom_width**2)
        condition = config.shared_dim + config.z_chunk_size
        self.blocks = nn.ModuleList()
        for index, (fewer, channels) in enumerate(pairwise(config.channels)):
            stage = nn.ModuleList([GBlock(fewer, channels, condition, config.bn_eps)])
            if index in config.attention:
                stage.append(Attention(channels))
            self.blocks.append(stage)
        last = config.channels[-1]
        self.output_layer = nn.Sequential(
            Norm(last), nn.Identity(), nn.Conv2d(last, 3, 3, padding=1)
        )

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one z."""
        return (self.n_layers * self.config.z_chunk_size,)

    @property
    def n_layers(self) -> int:
        """The first layer and the blocks."""
        return len(self.config.channels)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the maps after each block, and after each attention."""
        return tuple(
            channels
            for index, channels in enumerate(self.config.channels[1:])
            for _ in range(2 if index in self.config.attention else 1)
        )

    def conditions(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What each layer takes, (B, n_layers, D), of z (B, *latent) and labels (B,)."""
        if self.config.n_classes == 0:
            labels = torch.zeros(len(z), dtype=torch.int64, device=z.device)
        if labels is None:
            raise InputError("A conditional generator needs class labels.")
        return self.embedded_conditions(z, self.shared(labels))

    def embedded_conditions(self, z: Tensor, embedding: Tensor) -> Tensor:
        """As `conditions`, of class embeddings (B, shared_dim), which may be mixed softly."""
        chunks = z.unflatten(1, (self.n_layers, -1))
        return torch.cat([embedding[:, None].expand(-1, self.n_layers, -1), chunks], dim=2)

    def synthesis(self, conditions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images and activation maps, as `draw`, of conditions (B, n_layers, D)."""
        width = self.config.bottom_width
        # The first layer takes its chunk of z only.
        x = self.linear(conditions[:, 0, self.config.shared_dim :])
        x = x.unflatten(1, (-1, width, width)).contiguous(memory_format=torch.channels_last)
        maps = []
        for index, stage in enumerate(self.blocks, start=1):
            block, *attention = stage.children()
            x = block(x, conditions[:, index])
            maps.append(x)
            for layer in attention:
                x = layer(x)
                maps.append(x)
        return self.output_layer(x).tanh(), maps


def normalised(weight: Tensor, u: Tensor, eps: float) -> Tensor:
    """`weight` (O, ...) divided by its spectral norm, estimated as the official code does.

    Args:
        weight: Of a layer with O outputs.
        u: (1, O), the stored left singular vector, from which one step of the power iteration
            starts at every call of the official network in evaluation mode.
        eps: What the vectors are at least divided by.
    """
    matrix = weight.flatten(1).double()
    v = F.normalize(u.double() @ matrix, eps=eps)
    response = v @ matrix.T
    return (weight / (response * F.normalize(response, eps=eps)).sum()).float()


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is no generator in the layout of ajbrock's BigGAN; None if it is one."""
    names = checkpoint.names()
    for name in ("linear.weight", "blocks.0.0.conv1.weight", "output_layer.2.weight"):
        if name not in names:
            return f"no parameter {name!r}"
    if "shared.weight" not in names:
        return "no parameter 'shared.weight': only BigGANs with a shared class embedding are read"
    return None


def is_named_bigbigan(checkpoint: Checkpoint) -> bool:
    """Whether the file's name begins with BigBiGAN: the two families have the same layout."""
    return checkpoint.path.name.lower().startswith("bigbigan")


def doubt(checkpoint: Checkpoint) -> str | None:
    """Why this is rather a BigBiGAN, whose layout is the same; None if it is not."""
    return "the file's name begins with BigBiGAN" if is_named_bigbigan(checkpoint) else None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads G*.pth or G_ema*.pth, and of the state_dict*.pth beside it the configuration."""
    names = checkpoint.names()
    is_ported = "linear.u0" in names and "linear.sv0" not in names
    usual, whose = (PORTED_EPS, "port from TF Hub") if is_ported else (RELEASED_EPS, "release")
    given = {name: options[name] for name in usual if name in options}
    known = {**read_training(checkpoint.path), **given}
    notes = tuple(
        f"{name} is not in the file: {value:g} was assumed, as in the authors' {whose}."
        for name, value in usual.items()
        if name not in known
    )
    return Imported(*read_layout(checkpoint, {**usual, **known}), notes=notes)


def read_training(path: Path) -> Mapping[str, Any]:
    """`bn_eps` and `sn_eps`, as far as the training configuration beside a checkpoint has them.

    Raises:
        InputError: the activation is not ReLU.
        CorruptFileError: the configuration is damaged.
    """
    suffix = path.stem.removeprefix("G").removeprefix("_ema")
    beside = path.with_name(f"state_dict{suffix}.pth")
    if not beside.is_file():
        return {}
    tree = open_checkpoint(beside).tree
    config = tree.get("config") if isinstance(tree, dict) else None
    if not isinstance(config, dict):
        return {}
    activation = config.get("G_activation")
    if isinstance(activation, Record) and activation.name != "ReLU":
        raise InputError(f"{beside}: the activation {activation.name} is not known; only ReLU is.")
    keys = {"bn_eps": "BN_eps", "sn_eps": "SN_eps"}
    return {name: config[key] for name, key in keys.items() if key in config}


def read_layout(
    checkpoint: Checkpoint, eps: Mapping[str, Any]
) -> tuple[BigGANConfig, dict[str, Tensor]]:
    """Configuration and weights of a file in the layout of ajbrock's BigGAN.

    Args:
        checkpoint: Of which `objection` has none.
        eps: `bn_eps` and `sn_eps`.

    Raises:
        InputError: one of these is not a number greater than 0.
        CorruptFileError: a parameter is missing or has a shape that does not fit.
    """
    bn_eps, sn_eps = (_positive(name, eps[name]) for name in ("bn_eps", "sn_eps"))
    found = checkpoint.weights()
    config = _config(found, bn_eps)
    is_normalised = any(name.endswith(".u0") for name in found)
    weights = {}
    for name, tensor in found.items():
        stem, _, last = name.rpartition(".")
        if is_normalised and last == "weight" and stem != "shared":
            u = found[f"{stem}.u0"]
            if not tensor.ndim or u.shape != (1, len(tensor)):
                raise CorruptFileError(
                    f"{found.where}: {stem + '.u0'!r} has shape {tuple(u.shape)}; it does not fit "
                    f"{name!r} of shape {tuple(tensor.shape)}."
                )
            tensor = normalised(tensor, u, sn_eps)
        # Statistics of networks trained on several GPUs, or with the official code's own layer.
        name = name.replace(".bn.running_", ".stored_").replace(".bn.stored_", ".stored_")
        if last not in ("u0", "sv0", "accumulation_counter", "num_batches_tracked"):
            weights[name] = tensor
    return config, weights


def _config(weights: Weights, bn_eps: float) -> BigGANConfig:
    """The configuration, from the shapes of the parameters."""
    convs = [f"blocks.{index}.0.conv1.weight" for index in range(len(weights))]
    kernels = [stored(weights, name, ANY, ANY, 3, 3) for name in convs if name in weights]
    first, chunk = stored(weights, "linear.weight", ANY, ANY).shape
    n_classes, shared_dim = stored(weights, "shared.weight", ANY, ANY).shape
    condition = stored(weights, "blocks.0.0.bn1.gain.weight", ANY, ANY).shape[1]
    if condition != chunk + shared_dim:
        raise CorruptFileError(
            f"{weights.where}: 'blocks.0.0.bn1.gain.weight' takes {condition} numbers, expected "
            f"{chunk} of z, as 'linear.weight' does, and {shared_dim} of 'shared.weight'. Only "
            "BigGANs with a hierarchical latent are read."
        )
    channels = (kernels[0].shape[1], *map(len, kernels))
    return BigGANConfig(
        channels=channels,
        attention=tuple(
            index for index in range(len(kernels)) if f"blocks.{index}.1.theta.weight" in weights
        ),
        bottom_width=math.isqrt(first // channels[0]),
        z_chunk_size=chunk,
        shared_dim=shared_dim,
        n_classes=n_classes,
        bn_eps=bn_eps,
    )


def _positive(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 < number < math.inf:
        raise InputError(f"`{name}`: expected a number greater than 0, found {value!r}.")
    return number


FAMILY = Family(
    name="biggan",
    title="BigGAN (Brock et al. 2019)",
    files="ajbrock G*.pth, G_ema*.pth",
    licence="MIT",
    config=BigGANConfig,
    build=BigGAN,
    adapt=adapt,
    objection=objection,
    doubt=doubt,
    read=read,
    options=OPTIONS,
    choices=("class_weights",),
    abilities=("variants", "features", "classes"),
    published={
        "biggan-128": BigGANConfig(),
        "biggan-256": BigGANConfig(
            channels=(1536, 1536, 768, 768, 384, 192, 96), attention=(4,), bn_eps=1e-4
        ),
        "biggan-512": BigGANConfig(
            channels=(1536, 1536, 768, 768, 384, 192, 96, 96),
            attention=(3,),
            z_chunk_size=16,
            bn_eps=1e-4,
        ),
    },
)
