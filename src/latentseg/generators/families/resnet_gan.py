"""ResNet GANs without normalisation (Mescheder et al. 2018): those of GAN-stability and its kin.

Four plans of the same residual block, by the official names: "resnet" has one block for each size,
"resnet2" two; "resnet3" doubles the size once more at the end, "resnet4" does not. The last two end
in a 7x7 convolution and take the class embedding as it is, the first two at unit length.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.family import Imported, Options
from latentseg.generators.noise_generator import NoiseNetwork
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, stored, upsampling_kernel

KERNEL = (ANY, ANY, 3, 3)
SLOPE = 0.2  # of the leaky ReLU
RESIDUAL = 0.1  # factor of what a block adds; folded into its second convolution when it is read
ARCHITECTURES = ("resnet", "resnet2", "resnet3", "resnet4")
RESNET2_CHANNELS = (*[1024] * 5, 512, 512, 256, 256, 128, 128, 64, 64)  # as published
STATE_DICTS = {"raw": "generator", "average": "generator_test"}
Z_NOTE = "The distribution of z is not in the file: normal, that of all published configurations."


@dataclass(frozen=True)
class ResNetGANConfig:
    """Everything that fixes the layers; the weights are the rest.

    Attributes:
        architecture: "resnet", "resnet2", "resnet3" or "resnet4".
        channels: Of the start and of each residual block, coarse to fine.
        start: Side of the first map in pixels.
        z_dim: Size of z.
        n_classes: Number of class labels, 0 for none.
        embed_dim: Size of the class embedding, 0 for none.
    """

    architecture: str
    channels: tuple[int, ...]
    start: int = 4
    z_dim: int = 256
    n_classes: int = 0
    embed_dim: int = 0

    def __post_init__(self) -> None:
        if self.architecture not in ARCHITECTURES:
            raise InputError(
                f"`architecture`: expected one of {', '.join(ARCHITECTURES)}, "
                f"found {self.architecture!r}."
            )

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        doublings = sum(self.is_doubled_before(index) for index in range(len(self.channels) - 1))
        side = self.start * 2 ** (doublings + self.is_doubled_last)
        return side, side

    @property
    def is_doubled_last(self) -> bool:
        """Whether the size is doubled once more after the last block."""
        return self.architecture == "resnet3"

    @property
    def last_kernel(self) -> int:
        """Side of the kernel that makes the image."""
        return 7 if self.architecture in ("resnet3", "resnet4") else 3

    def is_doubled_before(self, block: int) -> bool:
        """Whether the size is doubled before a block, counted from 0."""
        blocks_per_size = 2 if self.architecture == "resnet2" else 1
        return block > 0 and block % blocks_per_size == 0


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, after leaky ReLUs, added to the input or to a 1x1 map of it.

    Where the size is doubled first, `conv_0` does it (`folding.upsampling_kernel`), and the 1x1 map
    is taken before: the same function for less work.
    """

    def __init__(self, in_channels: int, out_channels: int, *, is_upsampling: bool) -> None:
        super().__init__()
        self.is_upsampling = is_upsampling
        hidden = min(in_channels, out_channels)
        if is_upsampling:
            self.conv_0 = nn.ConvTranspose2d(in_channels, hidden, 4, stride=2, padding=1)
        else:
            self.conv_0 = nn.Conv2d(in_channels, hidden, 3, padding=1)
        self.conv_1 = nn.Conv2d(hidden, out_channels, 3, padding=1)
        self.conv_s = nn.Identity()
        if in_channels != out_channels:
            self.conv_s = nn.Conv2d(in_channels, out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H, W), or to twice the size."""
        inner, shortcut = self.conv_0(F.leaky_relu(x, SLOPE)), self.conv_s(x)
        if self.is_upsampling:
            shortcut = F.interpolate(shortcut, scale_factor=2)
        return shortcut + self.conv_1(F.leaky_relu(inner, SLOPE))


class ResNetGAN(NoiseNetwork):
    """z and the class enter below, side by side; nothing is normalised."""

    config: ResNetGANConfig

    def __init__(self, config: ResNetGANConfig) -> None:
        super().__init__()
        self.config = config
        first, last = config.channels[0], config.channels[-1]
        if config.n_classes:
            self.embedding = nn.Embedding(config.n_classes, config.embed_dim)
        self.fc = nn.Linear(config.z_dim + config.embed_dim, first * config.start**2)
        if config.architecture == "resnet":
            self.resnet = nn.ModuleDict()
        self.names = block_names(config.architecture, len(config.channels) - 1)
        for index, (name, fewer, channels) in enumerate(
            zip(self.names, config.channels, config.channels[1:], strict=False)
        ):
            block = ResidualBlock(fewer, channels, is_upsampling=config.is_doubled_before(index))
            parent, _, child = name.rpartition(".")
            self.get_submodule(parent).add_module(child, block)
        self.conv_img = nn.Conv2d(last, 3, config.last_kernel, padding=config.last_kernel // 2)

    @property
    def latent(self) -> tuple[int, ...]:
        """(z_dim,)."""
        return (self.config.z_dim,)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """One map after each residual block."""
        return self.config.channels[1:]

    def draw(self, z: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, 3, H, W) in [-1, 1] and activation maps, coarse to fine."""
        start, features = self.config.start, []
        if self.config.n_classes:
            if labels is None:
                raise InputError("A conditional generator needs class labels.")
            z = torch.cat([z, self.embedding(labels)], dim=1)
        x = self.fc(z).unflatten(1, (-1, start, start))
        for name in self.names:
            x = self.get_submodule(name)(x)
            features.append(x)
        if self.config.is_doubled_last:
            x = F.interpolate(x, scale_factor=2)
        return self.conv_img(F.leaky_relu(x, SLOPE)).tanh(), features


def block_names(architecture: str, n_blocks: int) -> tuple[str, ...]:
    """The official names of the residual blocks, coarse to fine."""
    if architecture == "resnet":  # its list counts the doublings between the blocks too
        return tuple(f"resnet.{2 * index}" for index in range(n_blocks))
    if architecture == "resnet2":
        return tuple(f"resnet_{index // 2}_{index % 2}" for index in range(n_blocks))
    return tuple(f"resnet_{index}_0" for index in range(n_blocks))


def chosen_weights(checkpoint: Checkpoint, options: Options, default: str) -> Weights:
    """The state dict that the option "weights" names.

    Raises:
        InputError: it is neither "raw" nor "average".
        CorruptFileError: the file has no such state dict.
    """
    chosen = options.get("weights", default)
    if chosen not in STATE_DICTS:
        raise InputError(f"`weights`: expected one of {', '.join(STATE_DICTS)}, found {chosen!r}.")
    return checkpoint.weights(STATE_DICTS[chosen])


def read_network(weights: Weights, embedding: str | None) -> Imported:
    """The network of a state dict with official names.

    Args:
        weights: Of one generator.
        embedding: Name of the class embedding, None if there is none. Of a single class it is a
            constant: the network is then unconditional.

    Raises:
        CorruptFileError: a parameter is missing, or of a shape that fits no network.
    """
    architecture = _architecture(weights)
    names = block_names(architecture, _n_blocks(architecture, weights))
    first = stored(weights, f"{names[0]}.conv_0.weight", *KERNEL).shape[1]
    fc = stored(weights, "fc.weight", ANY, ANY)
    bias = stored(weights, "fc.bias", len(fc))
    classes = fc.new_zeros(0, 0) if embedding is None else stored(weights, embedding, ANY, ANY)
    if architecture in ("resnet", "resnet2"):
        classes = classes / classes.norm(dim=1, keepdim=True)
    n_classes, embed_dim = classes.shape
    z_dim = fc.shape[1] - embed_dim
    if z_dim < 1:
        raise CorruptFileError(
            f"{weights.where}: 'fc.weight' has shape {tuple(fc.shape)}, expected more than "
            f"{embed_dim} columns, of {embedding!r}."
        )
    state = dict(weights)
    if embedding is not None:
        del state[embedding]
    if n_classes == 1:
        fc, bias = fc[:, :z_dim], bias + fc[:, z_dim:] @ classes[0]
        n_classes, embed_dim = 0, 0
    if n_classes:
        state["embedding.weight"] = classes
    state |= {"fc.weight": fc, "fc.bias": bias}
    config = ResNetGANConfig(
        architecture=architecture,
        channels=(
            first,
            *(len(stored(weights, f"{name}.conv_1.weight", *KERNEL)) for name in names),
        ),
        start=max(math.isqrt(len(fc) // first), 1),
        z_dim=z_dim,
        n_classes=n_classes,
        embed_dim=embed_dim,
    )
    for index, name in enumerate(names):
        if config.is_doubled_before(index):
            kernel = stored(weights, f"{name}.conv_0.weight", *KERNEL)
            state[f"{name}.conv_0.weight"] = upsampling_kernel(kernel)
        for part in ("weight", "bias"):
            state[f"{name}.conv_1.{part}"] = weights[f"{name}.conv_1.{part}"].float() * RESIDUAL
    return Imported(config, state, notes=(Z_NOTE,))


def _architecture(weights: Weights) -> str:
    if "resnet.0.conv_0.weight" in weights:
        return "resnet"
    if "resnet_0_1.conv_0.weight" in weights:
        return "resnet2"
    return "resnet4" if "resnet_6_0.conv_0.weight" in weights else "resnet3"


def _n_blocks(architecture: str, weights: Weights) -> int:
    if architecture != "resnet":
        return {"resnet2": 12, "resnet3": 6, "resnet4": 7}[architecture]
    return len({name.split(".")[1] for name in weights if name.startswith("resnet.")})
