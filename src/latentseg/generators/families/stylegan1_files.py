"""Reads the files of StyleGAN: those of its PyTorch ports by rosinality and by lernapparat."""

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.arrays import read_array
from latentseg.generators.families.stylegan1 import BLUR, MappingNetwork, StyleGAN1, StyleGAN1Config
from latentseg.generators.family import Family, Imported, Options, Sampling, load_weights
from latentseg.generators.style_generator import StyleGenerator
from latentseg.weights.containers import Checkpoint, Weights
from latentseg.weights.folding import ANY, SQRT_2, boxed, equalised, stored, upsampling_kernel

ROSINALITY, LERNAPPARAT = "generator.progression.0.conv1.input", "g_synthesis.blocks.4x4.const"
MOST_BLOCKS = 9  # of 1024 px; noise maps for a file that claims more could be of any size
MOST_LAYERS = 64  # of a mapping
FUSED_FROM = 128  # pixels; from there on the ports upsample with a transposed convolution
MAPPING_LR_MULTIPLIER = 0.01
PSI = 0.7
CUTOFFS = {256: 7}  # truncated layers by size in DatasetGAN
CUTOFF = 8  # at other sizes
AVERAGES = ("average_latent*.npy", "avg_latent*.npy")
MEASURED = 10 * 1024  # styles whose mean is the centre, as rosinality measures it
NOISE_NOTE = "The noise maps are not in the file: they were drawn from a fixed seed."
AVERAGE_NOTE = f"The mean style is not in the file: it was measured on {MEASURED} latents."


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a StyleGAN checkpoint; None if it is one."""
    if ROSINALITY in checkpoint.names("g_running") | checkpoint.names():
        return None
    if LERNAPPARAT in checkpoint.names():
        return None
    return f"neither a parameter {ROSINALITY!r} nor {LERNAPPARAT!r}"


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a checkpoint of either layout.

    Raises:
        InputError: an option does not fit.
        CorruptFileError: parameters are missing or of another shape.
    """
    if LERNAPPARAT in checkpoint.names():
        return _read_lernapparat(checkpoint, options)
    keys = ("g_running",) if ROSINALITY in checkpoint.names("g_running") else ()
    return _read_rosinality(checkpoint.weights(*keys), options)


def _read_rosinality(source: Weights, options: Options) -> Imported:
    if "average" in options:
        raise InputError("`average`: not an option of rosinality's files; the mean is measured.")
    port = _Rosinality(source)
    n_blocks, size_notes = _trained_blocks(source, options)
    config = StyleGAN1Config(
        size=(4 * 2 ** (n_blocks - 1),) * 2,
        channels=tuple(len(port.noise_strength(index, 1)) for index in range(n_blocks)),
        z_dim=port.dense(0)[0].shape[1],
        w_dim=len(port.dense(0)[1]),
        mapping_layers=_count(source, "style.*.linear.bias", MOST_LAYERS),
        is_bias_blurred=True,
        is_noise_shared=True,
    )
    weights = _network_weights(config, port)
    weights["mapping.w_avg"] = _mean_style(config, weights)
    notes = (*size_notes, NOISE_NOTE, AVERAGE_NOTE)
    return Imported(config, weights, Sampling(psi=PSI), notes=notes)


def _read_lernapparat(checkpoint: Checkpoint, options: Options) -> Imported:
    if "size" in options:
        raise InputError("`size`: an option of rosinality's files only; this one says its size.")
    source = checkpoint.weights()
    port = _Lernapparat(source)
    n_blocks = _count(source, "g_synthesis.blocks.*.epi1.top_epi.noise.weight", MOST_BLOCKS)
    config = StyleGAN1Config(
        size=(4 * 2 ** (n_blocks - 1),) * 2,
        channels=tuple(len(port.noise_strength(index, 1)) for index in range(n_blocks)),
        z_dim=port.dense(0)[0].shape[1],
        w_dim=len(port.dense(0)[1]),
        mapping_layers=_count(source, "g_mapping.dense*.bias", MOST_LAYERS),
    )
    weights = _network_weights(config, port)
    path = _average_path(checkpoint.path, options)
    average = _average(path, config.w_dim) if path else _mean_style(config, weights)
    weights["mapping.w_avg"] = average
    average_note = f"The mean style was read from {path.name}." if path else AVERAGE_NOTE
    cutoff = CUTOFFS.get(config.size[0], CUTOFF)
    cutoff_note = (
        f"That the first {cutoff} layers are truncated is not in the file: so does DatasetGAN, 7 "
        "at 256 px, otherwise 8."
    )
    notes = (NOISE_NOTE, average_note, cutoff_note)
    return Imported(config, weights, Sampling(psi=PSI, cutoff=cutoff), notes=notes)


Layer = tuple[Tensor, Tensor]  # weight and bias


class _Port(Protocol):
    """The parameters of a port by their place in the network, its constants folded in."""

    @property
    def source(self) -> Weights:
        """By the names of the port."""
        ...

    def dense(self, index: int) -> Layer:
        """A layer of the mapping network."""
        ...

    def const(self) -> Tensor:
        """What the first block starts from, (C, H, W)."""
        ...

    def conv1(self, block: int) -> Layer:
        """The upsampling convolution of a block but the first, as a transposed one."""
        ...

    def conv2(self, block: int) -> Layer:
        """The second convolution of a block."""
        ...

    def noise_strength(self, block: int, layer: int) -> Tensor:
        """Of layer 1 or 2 of a block, (C,)."""
        ...

    def style(self, block: int, layer: int) -> Layer:
        """Style to scales and offsets, of layer 1 or 2 of a block."""
        ...

    def to_rgb(self, block: int) -> Layer:
        """The layer that makes the image, if `block` is the last."""
        ...


@dataclass(frozen=True)
class _Rosinality:
    """github.com/rosinality/style-based-gan-pytorch."""

    source: Weights

    def dense(self, index: int) -> Layer:
        return self._layer(f"style.{2 * index + 1}.linear")

    def const(self) -> Tensor:
        return stored(self.source, "generator.progression.0.conv1.input", 1, ANY, ANY, ANY)[0]

    def conv1(self, block: int) -> Layer:
        name = f"generator.progression.{block}.conv1"
        if f"{name}.1.conv.bias" in self.source:
            _check_blur(self.source, f"{name}.2.weight")
            weight, bias = self._layer(f"{name}.1.conv", 3, 3)
            return upsampling_kernel(weight), bias
        _check_blur(self.source, f"{name}.1.weight")
        # Of a transposed convolution: (in, out, 3, 3).
        weight = stored(self.source, f"{name}.0.weight", ANY, ANY, 3, 3).transpose(0, 1)
        bias = stored(self.source, f"{name}.0.bias", ANY)
        return boxed(equalised(weight).transpose(0, 1)) / 4, bias

    def conv2(self, block: int) -> Layer:
        return self._layer(f"generator.progression.{block}.conv2.conv", 3, 3)

    def noise_strength(self, block: int, layer: int) -> Tensor:
        name = f"generator.progression.{block}.noise{layer}.weight_orig"
        return equalised(stored(self.source, name, 1, ANY, 1, 1)).flatten()

    def style(self, block: int, layer: int) -> Layer:
        return self._layer(f"generator.progression.{block}.adain{layer}.style.linear")

    def to_rgb(self, block: int) -> Layer:
        return self._layer(f"generator.to_rgb.{block}.conv", 1, 1)

    def _layer(self, name: str, *kernel: int) -> Layer:
        weight = stored(self.source, f"{name}.weight_orig", ANY, ANY, *kernel)
        return equalised(weight), stored(self.source, f"{name}.bias", ANY)


@dataclass(frozen=True)
class _Lernapparat:
    """The layout of DatasetGAN, github.com/nv-tlabs/datasetGAN_release."""

    source: Weights

    def dense(self, index: int) -> Layer:
        weight, bias = self._layer(f"g_mapping.dense{index}")
        return weight * MAPPING_LR_MULTIPLIER, bias * MAPPING_LR_MULTIPLIER

    def const(self) -> Tensor:
        const = stored(self.source, f"{self._block(0)}.const", 1, ANY, ANY, ANY)[0]
        return const + stored(self.source, f"{self._block(0)}.bias", len(const))[:, None, None]

    def conv1(self, block: int) -> Layer:
        name = f"{self._block(block)}.conv0_up"
        _check_blur(self.source, f"{name}.intermediate.kernel")
        weight, bias = self._layer(name, 3, 3)
        if 4 * 2**block >= FUSED_FROM:
            # The port's transposed convolution takes the same weights, but does not mirror them.
            return boxed(weight.transpose(0, 1)), bias
        return upsampling_kernel(weight), bias

    def conv2(self, block: int) -> Layer:
        return self._layer(f"{self._block(block)}.{'conv1' if block else 'conv'}", 3, 3)

    def noise_strength(self, block: int, layer: int) -> Tensor:
        return stored(self.source, f"{self._block(block)}.epi{layer}.top_epi.noise.weight", ANY)

    def style(self, block: int, layer: int) -> Layer:
        weight, bias = self._layer(f"{self._block(block)}.epi{layer}.style_mod.lin", gain=1)
        # The port adds 1 to the scales, which come first.
        return weight, bias + (torch.arange(len(bias)) < len(bias) // 2)

    def to_rgb(self, block: int) -> Layer:
        return self._layer("g_synthesis.torgb", 1, 1, gain=1)

    def _block(self, block: int) -> str:
        side = 4 * 2**block
        return f"g_synthesis.blocks.{side}x{side}"

    def _layer(self, name: str, *kernel: int, gain: float = SQRT_2) -> Layer:
        weight = stored(self.source, f"{name}.weight", ANY, ANY, *kernel)
        return equalised(weight, gain), stored(self.source, f"{name}.bias", ANY)


def _network_weights(config: StyleGAN1Config, port: _Port) -> Weights:
    """The state dict by our names, without the mean style; noise maps from a fixed seed."""
    layers = {f"mapping.dense{index}": port.dense(index) for index in range(config.mapping_layers)}
    weights = {"synthesis.block0.const": port.const()} | _noise_maps(config)
    n_blocks = len(config.channels)
    for index in range(n_blocks):
        block = f"synthesis.block{index}"
        if index > 0:
            layers[f"{block}.conv1"] = port.conv1(index)
        layers[f"{block}.conv2"] = port.conv2(index)
        for layer in (1, 2):
            epilogue = f"{block}.epilogue{layer}"
            weights[f"{epilogue}.noise_strength"] = port.noise_strength(index, layer)
            layers[f"{epilogue}.style"] = port.style(index, layer)
    layers["synthesis.to_rgb"] = port.to_rgb(n_blocks - 1)
    for name, (weight, bias) in layers.items():
        weights |= {f"{name}.weight": weight, f"{name}.bias": bias}
    return Weights(weights, port.source.where)


def _trained_blocks(source: Weights, options: Options) -> tuple[int, tuple[str, ...]]:
    """How many blocks were trained, and a note on how that is known.

    The file holds blocks up to 1024 px, whatever the size that the training had reached. Those
    which it had not reached still have the noise strengths that they were made with: zeros.
    """
    n_blocks = _count(source, "generator.to_rgb.*.conv.bias", MOST_BLOCKS)
    sizes = [4 * 2**index for index in range(n_blocks)]
    if "size" in options:
        if options["size"] not in sizes:
            raise InputError(f"`size`: expected one of {sizes}, found {options['size']!r}.")
        return sizes.index(options["size"]) + 1, ()
    strengths = [f"generator.progression.{i}.noise1.weight_orig" for i in range(n_blocks)]
    trained = [size for size, name in zip(sizes, strengths, strict=True) if source[name].any()]
    if not trained:
        raise InputError(f"{source.where}: does not show the size it was trained at; give `size`.")
    named = re.search(r"(\d+)px", Path(source.where).name)
    size = min(trained[-1], int(named[1])) if named and int(named[1]) in sizes else trained[-1]
    note = (
        f"The size, {size} px, was deduced from which blocks are trained and from the name of the "
        "file; the option `size` goes first."
    )
    return sizes.index(size) + 1, (note,)


def _count(source: Weights, pattern: str, most: int) -> int:
    count = len(fnmatch.filter(source, pattern))
    if not 0 < count <= most:
        raise CorruptFileError(
            f"{source.where}: has {count} parameters {pattern!r}, expected 1 to {most}."
        )
    return count


def _check_blur(source: Weights, name: str) -> None:
    line = torch.tensor(BLUR) / sum(BLUR)
    kernel = stored(source, name, ANY, 1, 3, 3)
    if not torch.allclose(kernel, torch.outer(line, line)):
        raise CorruptFileError(f"{source.where}: {name!r} is not the blur (1, 2, 1).")


def _noise_maps(config: StyleGAN1Config) -> dict[str, Tensor]:
    drawn = torch.Generator().manual_seed(0)
    n_maps, n_blocks = 1 if config.is_noise_shared else 2, len(config.channels)
    maps = {}
    for index in range(n_blocks):
        scale = 2 ** (n_blocks - 1 - index)
        size = (config.size[0] // scale, config.size[1] // scale)
        name = f"synthesis.block{index}.noise_const"
        maps[name] = torch.randn(n_maps, *size, generator=drawn)
    return maps


@torch.no_grad()
def _mean_style(config: StyleGAN1Config, weights: Weights) -> Tensor:
    mapping = MappingNetwork(config)
    own = {**weights.below("mapping."), "w_avg": torch.zeros(config.w_dim)}
    load_weights(mapping, own, weights.where)
    drawn = torch.Generator().manual_seed(0)
    return mapping(torch.randn(MEASURED, config.z_dim, generator=drawn)).mean(dim=0)


def _average_path(checkpoint: Path, options: Options) -> Path | None:
    """The file of the mean style: the option `average`, or the one beside the checkpoint."""
    if "average" in options:
        return Path(str(options["average"]))
    beside = sorted({path for each in AVERAGES for path in checkpoint.parent.glob(each)})
    if len(beside) > 1:
        names = ", ".join(path.name for path in beside)
        raise InputError(f"{checkpoint.parent}: say with `average` which mean to take: {names}.")
    return beside[0] if beside else None


def _average(path: Path, w_dim: int) -> Tensor:
    """The mean style (w_dim,) of an .npy file, in which it may be repeated for each layer."""
    rows = read_array(path)
    if rows.ndim == 0 or rows.shape[-1] != w_dim or not rows.numel():
        raise InputError(f"{path}: has shape {tuple(rows.shape)}, expected (..., {w_dim}).")
    rows = rows.reshape(-1, w_dim)
    if not torch.allclose(rows, rows[:1].expand_as(rows)):
        raise InputError(f"{path}: its {len(rows)} rows differ; expected one mean for all layers.")
    return rows[0].clone()


CHANNELS = (512, 512, 512, 512, 256, 128, 64, 32, 16)


def _published(size: int, *, is_rosinality: bool = False) -> StyleGAN1Config:
    return StyleGAN1Config(
        size=(size, size),
        channels=CHANNELS[: size.bit_length() - 2],
        z_dim=512,
        w_dim=512,
        is_bias_blurred=is_rosinality,
        is_noise_shared=is_rosinality,
    )


FAMILY = Family(
    name="stylegan1",
    title="StyleGAN (Karras et al. 2019)",
    files="rosinality .model; DatasetGAN's .pt with its average_latent*.npy",
    licence=(
        "of the ports MIT; of NVIDIA's weights CC BY-NC 4.0, non-commercial: so is every dataset "
        "and segmenter made with them"
    ),
    config=StyleGAN1Config,
    build=StyleGAN1,
    adapt=StyleGenerator.adapt,
    objection=objection,
    read=read,
    options={
        "size": "side of the images in pixels, of rosinality's files; they do not say it",
        "average": "the .npy file with the mean style; by default the one beside the checkpoint",
    },
    choices=("psi", "cutoff", "noise"),
    abilities=("variants", "features"),
    published={
        "rosinality-ffhq-256": _published(256, is_rosinality=True),
        "rosinality-ffhq-1024": _published(1024, is_rosinality=True),
        "datasetgan-face-1024": _published(1024),
        "datasetgan-car-512": _published(512),
        "datasetgan-bedroom-256": _published(256),
        "datasetgan-cat-256": _published(256),
    },
)
