"""BigGAN-deep (Brock et al. 2019) in plain PyTorch, and the folders of Hugging Face's port."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.configs import from_json
from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.files import read_json
from latentseg.generators.families.biggan import Attention, scaled_relu, upsampled_conv
from latentseg.generators.family import Family, Imported, Options, Sampling, SavedGenerator
from latentseg.generators.noise_generator import LayeredNetwork
from latentseg.generators.noise_generator import adapt as adapt_noise_network
from latentseg.generators.priors import Prior
from latentseg.generators.protocols import GeneratorInfo
from latentseg.weights.containers import Checkpoint, Weights

TRUNCATION = 0.4  # as the official example, and Melas-Kyriazi et al. 2021
DEFAULTS = Sampling(truncation=TRUNCATION)
LIMIT = 2.0  # z is cut off there, then multiplied by the truncation
REDUCTION = 4  # of the channels inside a block
ROWS = ("exact", "fixed")
WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
Layers = tuple[tuple[bool, int, int], ...]


@dataclass(frozen=True)
class BigGANDeepConfig:
    """Everything that fixes the layers, as in the official config.json; the weights are the rest.

    Attributes:
        output_dim: Height and width of the images.
        z_dim: Size of z.
        class_embed_dim: Size of the class embedding.
        channel_width: What the widths in `layers` are multiples of.
        num_classes: Number of class labels.
        layers: Of each block: whether it doubles height and width, and the widths of its input and
            its output, the same or half.
        attention_layer_position: The block that self-attention stands before.
        eps: Added to variances.
        n_stats: Rows of statistics; they belong to truncations from 0 to 1.
        rows: How rows are picked: "exact", as the official code does, or "fixed".
    """

    output_dim: int = 128
    z_dim: int = 128
    class_embed_dim: int = 128
    channel_width: int = 128
    num_classes: int = 1000
    layers: Layers = (
        (False, 16, 16),
        (True, 16, 16),
        (False, 16, 16),
        (True, 16, 8),
        (False, 8, 8),
        (True, 8, 4),
        (False, 4, 4),
        (True, 4, 2),
        (False, 2, 2),
        (True, 2, 1),
    )
    attention_layer_position: int = 8
    eps: float = 1e-4
    n_stats: int = 51
    rows: str = "exact"

    def __post_init__(self) -> None:
        if self.rows not in ROWS:
            raise InputError(f"`rows`: expected one of {', '.join(ROWS)}, found {self.rows!r}.")
        for name in ("z_dim", "class_embed_dim", "channel_width", "num_classes", "n_stats"):
            value, least = getattr(self, name), 2 if name == "n_stats" else 1
            if not isinstance(value, int) or value < least:
                raise InputError(
                    f"`{name}`: expected a whole number, at least {least}, found {value!r}."
                )
        if not isinstance(self.eps, float | int) or not self.eps > 0:
            raise InputError(f"`eps`: expected a number greater than 0, found {self.eps!r}.")
        if not isinstance(self.layers, tuple) or not all(map(_is_layer, self.layers)):
            raise InputError(
                f"layers {self.layers!r}: expected for each whether it doubles height and width, "
                "and the widths of its input and its output, the same or half."
            )
        if self.output_dim != 4 * 2 ** sum(is_doubling for is_doubling, _, _ in self.layers):
            raise InputError(f"output_dim {self.output_dim!r}: it does not fit the layers.")

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return self.output_dim, self.output_dim

    @property
    def n_classes(self) -> int:
        """Number of class labels."""
        return self.num_classes


def _is_layer(layer: Any) -> bool:
    return (
        isinstance(layer, tuple)
        and [type(value) for value in layer] == [bool, int, int]
        and layer[2] > 0
        and layer[1] in (layer[2], 2 * layer[2])
    )


@dataclass(frozen=True)
class Row:
    """A mixture of two neighbouring rows of statistics.

    Attributes:
        index: The first of the two.
        share: Of the second, 0 to 1.
    """

    index: int
    share: float

    def of(self, statistics: Tensor) -> Tensor:
        """(n_stats, C) to (C,)."""
        if not self.share:
            return statistics[self.index]
        return torch.lerp(statistics[self.index], statistics[self.index + 1], self.share)


def row_for(truncation: float, n_stats: int, rows: str) -> Row:
    """The statistics for a `truncation` in (0, 1].

    "exact" does as the official code: it divides by the distance of two rows in floating point,
    so that 0.14, 0.28, 0.56, 0.58 and 0.94 miss their row by the last bit; and it gives the nearer
    of two rows the smaller share. "fixed" does neither.
    """
    if rows == "exact":
        fraction, index = math.modf(truncation / (1.0 / (n_stats - 1)))
        return Row(int(index), 1 - fraction if fraction else 0.0)
    fraction, index = math.modf(round(truncation * (n_stats - 1), 9))
    return Row(int(index), fraction)


class RowNorm(nn.Module):
    """Batch normalisation with one row of statistics for each truncation; then ReLU.

    Args:
        channels: Of the maps.
        condition: Size of what scales and shifts them; 0 for learned constants.
        config: Has `eps` and `n_stats`.
    """

    running_means: Tensor
    running_vars: Tensor

    def __init__(self, channels: int, condition: int, config: BigGANDeepConfig) -> None:
        super().__init__()
        self.eps = config.eps
        self.register_buffer("running_means", torch.zeros(config.n_stats, channels))
        self.register_buffer("running_vars", torch.ones(config.n_stats, channels))
        if condition:
            self.scale = nn.Linear(condition, channels, bias=False)
            self.offset = nn.Linear(condition, channels, bias=False)
        else:
            self.weight = nn.Parameter(torch.ones(channels))
            self.bias = nn.Parameter(torch.zeros(channels))
        self.is_conditional = condition > 0

    def forward(self, x: Tensor, row: Row, condition: Tensor) -> Tensor:
        """(B, C, H, W) and (B, D) to (B, C, H, W)."""
        factor = (row.of(self.running_vars) + self.eps).rsqrt()
        if self.is_conditional:
            scale, offset = (1 + self.scale(condition)) * factor, self.offset(condition)
        else:
            scale, offset = self.weight * factor, self.bias
        return scaled_relu(x, scale, offset - row.of(self.running_means) * scale)


class GenBlock(nn.Module):
    """A residual bottleneck of four convolutions, which may double the size or halve channels."""

    def __init__(self, layer: tuple[bool, int, int], config: BigGANDeepConfig) -> None:
        super().__init__()
        self.is_doubling, *widths = layer
        fewer, self.channels = (width * config.channel_width for width in widths)
        middle, condition = fewer // REDUCTION, config.z_dim + config.class_embed_dim
        self.bn_0 = RowNorm(fewer, condition, config)
        self.conv_0 = nn.Conv2d(fewer, middle, 1)
        self.bn_1 = RowNorm(middle, condition, config)
        self.conv_1 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_2 = RowNorm(middle, condition, config)
        self.conv_2 = nn.Conv2d(middle, middle, 3, padding=1)
        self.bn_3 = RowNorm(middle, condition, config)
        self.conv_3 = nn.Conv2d(middle, self.channels, 1)

    def forward(self, x: Tensor, row: Row, condition: Tensor) -> Tensor:
        """(B, C_in, H, W) and (B, D) to (B, C_out, H', W')."""
        inner = self.bn_1(self.conv_0(self.bn_0(x, row, condition)), row, condition)
        inner = upsampled_conv(inner, self.conv_1) if self.is_doubling else self.conv_1(inner)
        inner = self.conv_2(self.bn_2(inner, row, condition))
        inner = self.conv_3(self.bn_3(inner, row, condition))
        kept = x[:, : self.channels]
        return inner + (F.interpolate(kept, scale_factor=2.0) if self.is_doubling else kept)


class Generator(nn.Module):
    """Conditions of all layers to images."""

    def __init__(self, config: BigGANDeepConfig) -> None:
        super().__init__()
        width = config.channel_width
        self.gen_z = nn.Linear(
            config.z_dim + config.class_embed_dim, 4 * 4 * config.layers[0][1] * width
        )
        self.layers = nn.ModuleList()
        for index, layer in enumerate(config.layers):
            if index == config.attention_layer_position:
                self.layers.append(Attention(layer[1] * width))
            self.layers.append(GenBlock(layer, config))
        last = config.layers[-1][2] * width
        self.bn = RowNorm(last, 0, config)
        self.conv_to_rgb = nn.Conv2d(last, 3, 3, padding=1)

    def forward(self, conditions: Tensor, row: Row) -> tuple[Tensor, list[Tensor]]:
        """(B, 1 + blocks, D) to images (B, 3, H, W) and the map after each of `layers`."""
        first, *others = conditions.unbind(dim=1)
        # The official weights come from TensorFlow: channels are last.
        x = self.gen_z(first).unflatten(1, (4, 4, -1)).permute(0, 3, 1, 2)
        maps = []
        for layer in self.layers:
            x = layer(x, row, others.pop(0)) if isinstance(layer, GenBlock) else layer(x)
            maps.append(x)
        return self.conv_to_rgb(self.bn(x, row, first)).tanh(), maps


class BigGANDeep(LayeredNetwork):
    """The generator: z and the class embedding go into the first layer and into each block.

    Args:
        config: Fixes the layers.

    Attributes:
        row: The statistics of the normalisations, which belong to a truncation.

    Source: Brock et al. 2019, appendix B, with the parameter names of Hugging Face's port.
    """

    def __init__(self, config: BigGANDeepConfig) -> None:
        super().__init__()
        self.config = config
        self.row = row_for(TRUNCATION, config.n_stats, config.rows)
        self.embeddings = nn.Linear(config.num_classes, config.class_embed_dim, bias=False)
        self.generator = Generator(config)

    @property
    def latent(self) -> tuple[int, ...]:
        """Shape of one z."""
        return (self.config.z_dim,)

    @property
    def n_layers(self) -> int:
        """The first layer and the blocks."""
        return 1 + len(self.config.layers)

    @property
    def feature_channels(self) -> tuple[int, ...]:
        """Channels of the maps after each block, and after the attention."""
        channels = [layer[2] * self.config.channel_width for layer in self.config.layers]
        place = self.config.attention_layer_position
        if 0 <= place < len(channels):
            channels.insert(place, self.config.layers[place][1] * self.config.channel_width)
        return tuple(channels)

    def conditions(self, z: Tensor, labels: Tensor | None) -> Tensor:
        """What each layer takes, (B, n_layers, D), of z (B, *latent) and labels (B,)."""
        if labels is None:
            raise InputError("A conditional generator needs class labels.")
        condition = torch.cat([z, F.embedding(labels, self.embeddings.weight.T)], dim=1)
        return condition[:, None].expand(-1, self.n_layers, -1)

    def synthesis(self, conditions: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Images and activation maps, as `draw`, of conditions (B, n_layers, D)."""
        return self.generator(conditions, self.row)

    def prior(self, sampling: Sampling) -> Prior:
        """A normal distribution cut off at 2, times the truncation."""
        return Prior(
            self.latent,
            self.config.n_classes,
            scale=truncation_of(sampling),
            limit=LIMIT,
            class_weights=sampling.class_weights,
        )


def truncation_of(sampling: Sampling) -> float:
    """The truncation in (0, 1], by default 0.4."""
    return TRUNCATION if sampling.truncation is None else sampling.truncation


def adapt(
    network: BigGANDeep, info: GeneratorInfo, sampling: Sampling, extras: Mapping[str, Tensor]
) -> SavedGenerator:
    """As `Family.adapt`: picks the statistics that belong to the truncation."""
    config = network.config
    network.row = row_for(truncation_of(sampling), config.n_stats, config.rows)
    return adapt_noise_network(network, info, sampling, extras)


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a BigGAN-deep checkpoint; None if it is one."""
    if checkpoint.kind == "folder":
        try:
            config = read_json(checkpoint.path / CONFIG)
        except LatentsegError:
            return f"no {CONFIG} in the folder"
        if not isinstance(config, dict) or "attention_layer_position" not in config:
            return f"{CONFIG} has no 'attention_layer_position'"
        return None if (checkpoint.path / WEIGHTS).is_file() else f"no {WEIGHTS} in the folder"
    for name in ("embeddings.weight", "generator.gen_z.weight_orig"):
        if name not in checkpoint.names():
            return f"no parameter {name!r}"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads the folder, or its pytorch_model.bin with the config.json beside it.

    Raises:
        InputError: there is no config.json, or it is of something else.
        CorruptFileError: damaged, or a parameter has a shape that does not fit.
    """
    if checkpoint.kind == "folder":
        checkpoint = checkpoint.inside(WEIGHTS)
    path = config_path(checkpoint.path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file. The weights need it beside them.")
    values = read_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected a JSON object.")
    rows = {name: options[name] for name in ("rows",) if name in options}
    config = from_json(BigGANDeepConfig, {**values, **rows}, path)
    weights = read_weights(checkpoint.weights())
    return Imported(config, weights, sampling=DEFAULTS)


def config_path(weights: Path) -> Path:
    """Where the configuration lies: the published files may have their model's name before."""
    if weights.name.endswith(WEIGHTS):
        return weights.with_name(weights.name.removesuffix(WEIGHTS) + CONFIG)
    return weights.with_name(CONFIG)


def read_weights(stored: Weights) -> dict[str, Tensor]:
    """The state dict of `BigGANDeep`, spectral norms folded in.

    Raises:
        CorruptFileError: a vector of a spectral norm is missing or does not fit.
    """
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(("weight_u", "weight_v")):
            continue
        if name.endswith("weight_orig"):
            name = name.removesuffix("_orig")
            tensor = normalised(tensor, stored, name)
        if name.startswith("generator.conv_to_rgb"):
            tensor = tensor[:3]  # the others are computed by the official code, and not used
        if name.endswith("gamma"):
            tensor = tensor.squeeze()
        name = name.replace("snconv1x1_o_conv", "o").replace("snconv1x1_", "")
        weights[name] = tensor
    return weights


def normalised(weight: Tensor, stored: Weights, name: str) -> Tensor:
    """`weight` (O, ...), called `name`, divided by its spectral norm u^T W v.

    The vectors are those that training left, as in torch's evaluation mode.
    """
    matrix = weight.flatten(1).double() if weight.ndim > 1 else weight[:, None].double()
    u, v = (stored[f"{name}_{vector}"].double() for vector in "uv")
    if (u.shape, v.shape) != (matrix.shape[:1], matrix.shape[1:]):
        raise CorruptFileError(
            f"{stored.where}: {name + '_orig'!r} has shape {tuple(weight.shape)}; {name + '_u'!r} "
            f"and {name + '_v'!r} have {tuple(u.shape)} and {tuple(v.shape)}, which do not fit."
        )
    return (weight / (u @ matrix @ v)).float()


SHARED_START = ((False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8))
LAYERS_256 = (
    *SHARED_START,
    (True, 8, 8),
    (False, 8, 8),
    (True, 8, 4),
    (False, 4, 4),
    (True, 4, 2),
    (False, 2, 2),
    (True, 2, 1),
)

FAMILY = Family(
    name="biggan-deep",
    title="BigGAN-deep (Brock et al. 2019)",
    files="Hugging Face folder: config.json, pytorch_model.bin",
    licence="MIT",
    config=BigGANDeepConfig,
    build=BigGANDeep,
    adapt=adapt,
    objection=objection,
    read=read,
    options={
        "rows": "how the statistics of a truncation are picked: exact (default), as the official "
        "code with its mistakes, or fixed"
    },
    defaults=DEFAULTS,
    choices=("truncation", "class_weights"),
    abilities=("variants", "features", "classes"),
    published={
        "biggan-deep-128": BigGANDeepConfig(),
        "biggan-deep-256": BigGANDeepConfig(output_dim=256, layers=LAYERS_256),
        "biggan-deep-512": BigGANDeepConfig(
            output_dim=512, layers=(*LAYERS_256, (False, 1, 1), (True, 1, 1))
        ),
    },
)
