"""The ResNet GANs of PyTorch-StudioGAN: ACGAN, SNGAN, SAGAN, GGAN; BigGAN, ContraGAN, ReACGAN, ...

Two architectures. "resnet" (Miyato et al. 2018): z enters below, each block has the statistics of
the class. "big_resnet" (Brock et al. 2019): each layer takes a chunk of z, and each block an
embedding of the class beside it. Written after the papers and the official key names, which are
kept; the files of v0.1 to master hold the same networks in three layouts.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise, repeat
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import InputError
from latentseg.generators.family import Family, Imported, Options, Sampling, load_weights
from latentseg.generators.noise_generator import LayeredNetwork, NoiseNetwork, adapt
from latentseg.generators.priors import Prior
from latentseg.seeds import derive_seeds
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, stored, upsampling_kernel

START = 4  # side of the first map in pixels
EPSILON = 1e-4  # of every batch norm, official
STANDING = (32, 32)  # passes, and images of each, of which standing statistics are the mean
ARCHITECTURES = ("resnet", "big_resnet")
STATISTICS = ("running", "standing")
KERNEL = (ANY, ANY, 3, 3)
NOTES = (
    "The activation is not in the file: ReLU, that of all published configurations.",
    "The distribution of z is not in the file: normal, that of all published ones but LOGAN's.",
)


@dataclass(frozen=True)
class StudioGANConfig:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        architecture: "resnet" or "big_resnet".
        channels: Of the 4 x 4 start and of each block, coarse to fine; a block doubles the size.
        z_dim: Size of z; of a big_resnet a multiple of the number of its layers.
        n_classes: Number of class labels, 0 for none.
        shared_dim: Size of the class embedding of a big_resnet, 0 for none.
        attention: The blocks, counted from 1, after which self-attention comes.
    """

    architecture: str
    channels: tuple[int, ...]
    z_dim: int
    n_classes: int = 0
    shared_dim: int = 0
    attention: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"`architecture`: expected one of {', '.join(ARCHITECTURES)}, "
                f"found {self.architecture!r}."
            )
        if self.is_chunked and self.z_dim % len(self.channels):
            raise InputError(
                f"`z_dim`: expected a multiple of {len(self.channels)}, found {self.z_dim}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        side = START * 2 ** (len(self.channels) - 1)
        return side, side

    @property
    def is_chunked(self) -> bool:
        """Whether each layer takes a chunk of z instead of the first one all of it."""
        return self.architecture == "big_resnet"

    @property
    def part_dim(self) -> int:
        """Size of the part of z that the first layer takes."""
        return self.z_dim // len(self.channels) if self.is_chunked else self.z_dim

    @property
    def class_dim(self) -> int:
        """Size of the vector that stands for the class: an embedding, or one-hot."""
        return self.shared_dim if self.is_chunked else self.n_classes

    @property
    def condition_dim(self) -> int:
        """Size of what each block takes; 0 for nothing."""
        return self.class_dim + (self.part_dim if self.is_chunked else 0)


class ConditionalNorm(nn.Module):
    """Batch norm whose gain and bias are linear in a condition (Dumoulin et al. 2017)."""

    def __init__(self, channels: int, condition_dim: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps=EPSILON, affine=False)
        self.gain = nn.Linear(condition_dim, channels, bias=False)
        self.bias = nn.Linear(condition_dim, channels, bias=False)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, condition_dim) to (B, C, H, W)."""
        gain, bias = 1 + self.gain(condition), self.bias(condition)
        return torch.addcmul(bias[..., None, None], self.bn(x), gain[..., None, None])


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a 1x1 shortcut; doubles the size.

    The first convolution, `conv2d1`, doubles it as well (`folding.upsampling_kernel`), and the
    shortcut is taken before the pixels are repeated: the same function for half the work.
    """

    def __init__(self, in_channels: int, out_channels: int, condition_dim: int) -> None:
        super().__init__()
        self.bn1 = _norm(in_channels, condition_dim)
        self.bn2 = _norm(out_channels, condition_dim)
        self.conv2d0 = nn.Conv2d(in_channels, out_channels, 1)
        self.conv2d1 = nn.ConvTranspose2d(in_channels, out_channels, 4, stride=2, padding=1)
        self.conv2d2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor, *condition: Tensor) -> Tensor:
        """(B, C_in, H, W) and, if conditional, (B, condition_dim) to (B, C_out, 2H, 2W)."""
        inner = self.conv2d1(F.relu(self.bn1(x, *condition)))
        inner = self.conv2d2(F.relu(self.bn2(inner, *condition)))
        return inner + F.interpolate(self.conv2d0(x), scale_factor=2)


def _norm(channels: int, condition_dim: int) -> nn.Module:
    if condition_dim:
        return ConditionalNorm(channels, condition_dim)
    return nn.BatchNorm2d(channels, eps=EPSILON)


class SelfAttention(nn.Module):
    """Each place attends to places of the map at half its size (Zhang et al. 2019)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1x1_theta = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.conv1x1_phi = nn.Conv2d(channels, channels // 8, 1, bias=False)
        self.conv1x1_g = nn.Conv2d(channels, channels // 2, 1, bias=False)
        self.conv1x1_attn = nn.Conv2d(channels // 2, channels, 1, bias=False)
        self.sigma = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        query = self.conv1x1_theta(x).flatten(2).mT
        key = F.max_pool2d(self.conv1x1_phi(x), 2).flatten(2).mT
        value = F.max_pool2d(self.conv1x1_g(x), 2).flatten(2).mT
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        return x + self.sigma * self.conv1x1_attn(seen.mT.unflatten(2, x.shape[2:]))


class StudioGAN(NoiseNetwork):
    """The layers of both architectures, by their official names."""

    config: StudioGANConfig

    def __init__(self, config: StudioGANConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        self.linear0 = nn.Linear(config.part_dim, first * START * START)
        blocks: list[nn.Module] = []
        for index, (fewer, channels) in enumerate(pairwise(config.channels), start=1):
            blocks.append(ResidualBlock(fewer, channels, config.condition_dim))
            if index in config.attention:
                blocks.append(SelfAttention(channels))
        # Each in a list of its own, which the official names count.
        self.blocks = nn.ModuleList([nn.ModuleList([block]) for block in blocks])
        self.bn4 = nn.BatchNorm2d(last, eps=EPSILON)
        self.conv2d5 = nn.Conv2d(last, 3, 3, padding=1)

    @property
    def latent(self) -> tuple[int, ...]:
        """(z_dim,)."""
        return (self.config.z_dim,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each block, and one after each self-attention."""
        attention = self.config.attention
        return tuple(
            channels
            for index, channels in enumerate(self.config.channels[1:], start=1)
            for _ in range(2 if index in attention else 1)
        )

    def prior(self, sampling: Sampling) -> Prior:
        """Normal; `truncation` t cuts it off at +-t and leaves its scale, as StudioGAN's master."""
        return Prior(
            self.latent,
            self.config.n_classes,
            limit=sampling.truncation,
            class_weights=sampling.class_weights,
        )

    def paint(
        self, part: Tensor, conditions: Iterable[tuple[Tensor, ...]]
    ) -> tuple[Tensor, list[Tensor]]:
        """Images and activation maps.

        Args:
            part: (B, part_dim) part of z for the first layer.
            conditions: Of each block in turn: (B, condition_dim), or nothing.
        """
        x = self.linear0(part).unflatten(1, (-1, START, START))
        rest, features = iter(conditions), []
        for index in range(len(self.blocks)):
            block = self.get_submodule(f"blocks.{index}.0")
            x = block(x) if isinstance(block, SelfAttention) else block(x, *next(rest))
            features.append(x)
        return self.conv2d5(F.relu(self.bn4(x))).tanh(), features


class UnconditionalStudioGAN(StudioGAN):
    """A resnet without classes: z enters below, and nothing else enters."""

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [-1, 1] and activation maps, coarse to fine."""
        return self.paint(z, repeat(()))


class LayeredStudioGAN(StudioGAN, LayeredNetwork):
    """A network whose blocks take conditions of their own: the class, and of a big_resnet z too."""

    def __init__(self, config: StudioGANConfig) -> None:
        super().__init__(config)
        if config.shared_dim:
            self.shared = nn.Embedding(config.n_classes, config.shared_dim)

    @property
    def n_layers(self) -> int:
        """The first layer, which takes z alone, and the blocks."""
        return len(self.config.channels)

    def conditions(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """(B, n_layers, class_dim + part_dim): the vector of the class, then the part of z."""
        parts = z[:, None].expand(-1, self.n_layers, -1)
        if self.config.is_chunked:
            parts = z.unflatten(1, (self.n_layers, -1))
        if not self.config.n_classes:
            return parts
        if labels is None:
            raise InputError("A conditional generator needs class labels.")
        if self.config.is_chunked:
            classes = self.shared(labels)
        else:
            classes = F.one_hot(labels, self.config.n_classes).to(z.dtype)
        return torch.cat([classes[:, None].expand(-1, self.n_layers, -1), parts], dim=2)

    def synthesis(self, conditions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images and activation maps of conditions (B, n_layers, class_dim + part_dim)."""
        first = conditions[:, 0, self.config.class_dim :]
        rest = conditions[:, 1:, : self.config.condition_dim]
        return self.paint(first, zip(rest.unbind(dim=1), strict=True))


def build(config: StudioGANConfig) -> StudioGAN:
    """The network of a configuration, with random weights."""
    return LayeredStudioGAN(config) if config.condition_dim else UnconditionalStudioGAN(config)


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a ResNet GAN of StudioGAN; None if it is one."""
    names = {name.removesuffix("_orig") for name in checkpoint.names("state_dict")}
    if not names:
        return "no state dict under 'state_dict'"
    if any(name.startswith("synthesis.") for name in names):
        return "its backbone is a StyleGAN"
    if "blocks.0.0.conv2d3.weight" in names:
        return "its backbone is big_resnet_deep, which is not read"
    if any(name.startswith("info_") for name in names):
        return "it takes the codes of InfoGAN, which are not read"
    blocks = [f"blocks.0.0.conv2d{index}.weight" for index in range(3)]
    for name in ("linear0.weight", *blocks, "bn4.weight", "conv2d5.weight"):
        if name not in names:
            return f"no parameter {name!r} under 'state_dict'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a checkpoint of any generation.

    Raises:
        InputError: an option has no such value, or contradicts the file.
        CorruptFileError: a parameter is missing, or of a shape that fits no network.
    """
    statistics = options.get("statistics", "running")
    if statistics == "batch":
        raise InputError(
            "`statistics`: with batch, an image would depend on the images drawn beside it; "
            "standing takes the mean of such statistics over many batches."
        )
    if statistics not in STATISTICS:
        raise InputError(
            f"`statistics`: expected one of {', '.join(STATISTICS)}, found {statistics!r}."
        )
    weights = _same_layout(_without_spectral_norm(checkpoint.weights("state_dict")))
    config, notes = _chosen(_config(weights), options)
    state = _state(weights, config)
    if statistics == "standing":
        state = standing_statistics(config, state, checkpoint.path)
    return Imported(config, state, notes=(*NOTES, *notes))


def standing_statistics(
    config: StudioGANConfig, weights: Mapping[str, Tensor], where: Path | str
) -> dict[str, Tensor]:
    """The weights with the mean statistics of many batches of images, the same at every call.

    Raises:
        CorruptFileError: parameters are missing, unknown or of another shape.

    Source: Brock et al. 2019, section 4.1. The official code takes a moving average of batches of
    random sizes; this is the plain mean of batches of one size.
    """
    network = build(config)
    load_weights(network, weights, where)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None  # a cumulative mean
    network.train()
    prior = network.prior(Sampling())
    passes, images = STANDING
    with torch.no_grad():
        for index in range(passes):
            network.draw(*prior.draw(derive_seeds(index, np.arange(images))))
    return network.state_dict()


def _without_spectral_norm(weights: Weights) -> Weights:
    """Each weight divided by its norm for the stored vectors, which official code does not update.

    In the matrix's own orientation, since the vectors are those of its rows and columns.
    """
    folded = Weights({}, weights.where)
    for name, tensor in weights.items():
        if name.endswith("weight_orig"):
            stem = name.removesuffix("_orig")
            u = stored(weights, f"{stem}_u", *tensor.shape[:1]).double()
            v = stored(weights, f"{stem}_v", tensor.shape[1:].numel()).double()
            folded[stem] = (tensor / (u @ tensor.double().flatten(1) @ v)).float()
        elif not name.endswith(("weight_u", "weight_v")):
            folded[name] = tensor
    return folded


def _same_layout(weights: Weights) -> Weights:
    """Tables of gains by class, (classes, C) under v0.1 to v0.3, as the matrices of later files."""
    renamed = Weights({}, weights.where)
    for name, tensor in weights.items():
        later = name.replace(".embed0.", ".gain.").replace(".embed1.", ".bias.")
        renamed[later] = tensor if later == name else tensor.transpose(0, -1)
    return renamed


def _config(weights: Weights) -> StudioGANConfig:
    channels, attention = [stored(weights, "blocks.0.0.conv2d1.weight", *KERNEL).shape[1]], []
    entries = {name.split(".")[1] for name in weights if name.startswith("blocks.")}
    for index in range(len(entries)):
        if f"blocks.{index}.0.sigma" in weights:
            attention.append(len(channels) - 1)
        else:
            channels.append(len(stored(weights, f"blocks.{index}.0.conv2d1.weight", *KERNEL)))
    config = StudioGANConfig(
        architecture="resnet",
        channels=tuple(channels),
        z_dim=stored(weights, "linear0.weight", ANY, ANY).shape[1],
        attention=tuple(attention),
    )
    if "blocks.0.0.bn1.weight" in weights:
        return config
    if "shared.weight" not in weights:
        return replace(
            config, n_classes=stored(weights, "blocks.0.0.bn1.gain.weight", ANY, ANY).shape[1]
        )
    n_classes, shared_dim = stored(weights, "shared.weight", ANY, ANY).shape
    return replace(
        config,
        architecture="big_resnet",
        z_dim=config.z_dim * len(channels),
        n_classes=n_classes,
        shared_dim=shared_dim,
    )


def _chosen(config: StudioGANConfig, options: Options) -> tuple[StudioGANConfig, tuple[str, ...]]:
    """`config` of the architecture that the option names, and what is assumed without it.

    Raises:
        InputError: the file is of another.
    """
    wanted = options.get("architecture")
    # Gains by class, or by chunk of z: then each has as many inputs as the first layer.
    is_ambiguous = config.architecture == "resnet" and config.n_classes == config.z_dim
    if is_ambiguous and wanted == "big_resnet":
        z_dim = config.z_dim * len(config.channels)
        return replace(config, architecture=wanted, n_classes=0, z_dim=z_dim), ()
    if wanted not in (None, config.architecture):
        raise InputError(
            f"`architecture`: the parameters are of a {config.architecture}, found {wanted!r}."
        )
    if is_ambiguous and wanted is None:
        note = (
            f"A resnet of {config.n_classes} classes and a big_resnet without classes look the "
            "same in this file: it was read as the former; see the option architecture."
        )
        return config, (note,)
    return config, ()


def _state(weights: Weights, config: StudioGANConfig) -> dict[str, Tensor]:
    """The weights by our names, without those of other parts."""
    parts = {"linear0", "blocks", "bn4", "conv2d5", *(["shared"] if config.shared_dim else [])}
    state = {name: tensor for name, tensor in weights.items() if name.split(".")[0] in parts}
    for name in state:
        if name.endswith("conv2d1.weight"):
            state[name] = upsampling_kernel(stored(weights, name, *KERNEL))
    return state


def _channels(pixels: int, width: int) -> tuple[int, ...]:
    """Of the official networks; `width` is that of their last map."""
    multiples = {64: (16, 8, 4, 2, 1), 128: (16, 16, 8, 4, 2, 1)}[pixels]
    return tuple(width * multiple for multiple in multiples)


PUBLISHED = {
    "acgan-tiny64": StudioGANConfig("resnet", _channels(64, 64), 128, 200),
    "biggan-tiny64": StudioGANConfig("big_resnet", _channels(64, 80), 100, 200, 128, (3,)),
    "ggan-tiny64": StudioGANConfig("resnet", _channels(64, 64), 128),
    "sagan-tiny64": StudioGANConfig("resnet", _channels(64, 64), 128, 200, attention=(3,)),
    "sngan-tiny64": StudioGANConfig("resnet", _channels(64, 64), 128, 200),
    "sagan-128": StudioGANConfig("resnet", _channels(128, 64), 128, 1000, attention=(4,)),
    "sngan-128": StudioGANConfig("resnet", _channels(128, 64), 128, 1000),
    "contragan-128": StudioGANConfig("big_resnet", _channels(128, 96), 120, 1000, 128, (4,)),
    "biggan-128": StudioGANConfig("big_resnet", _channels(128, 96), 120, 1000, 128, (4,)),
}

FAMILY = Family(
    name="studiogan",
    title="PyTorch-StudioGAN (Kang and Park 2020)",
    files="model=G-*.pth and model=G_ema-*.pth of v0.1 to master, backbones resnet and big_resnet",
    licence="MIT as its repository; the images it was trained on may allow research only",
    config=StudioGANConfig,
    build=build,
    adapt=adapt,
    objection=objection,
    read=read,
    options={
        "statistics": "of batch norm: running (as stored; default), or standing (mean of batches)",
        "architecture": "resnet or big_resnet, where the file fits both",
    },
    choices=("truncation", "class_weights"),
    abilities=("variants", "features", "classes"),
    published=PUBLISHED,
)
