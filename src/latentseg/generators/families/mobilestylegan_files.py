"""MobileStyleGAN's files: Lightning checkpoints of the official code, and OpenVINO networks.

What depends on no style is folded into the weights: scales, and the demodulation.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from latentseg.errors import CorruptFileError
from latentseg.generators.families import mobilestylegan_ir
from latentseg.generators.families.mobilestylegan import (
    DEFAULTS,
    MAX_SIDE,
    MobileStyleGAN,
    MobileStyleGANConfig,
    official_layers,
    pixels,
)
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.style_generator import StyleGenerator
from latentseg.weights.containers import Checkpoint, Weights

LR_MULTIPLIER = 0.01  # of the mapping network; the official code has no other
MAX_LAYERS = 64
NOTES = (
    "The scale of the mapping network's parameters was assumed to be the official 0.01.",
    "The file holds no noise maps: they were drawn from a fixed seed.",
)


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a MobileStyleGAN checkpoint; None if it is one."""
    if checkpoint.kind == "openvino":
        return mobilestylegan_ir.objection(checkpoint)
    names = checkpoint.names("state_dict")
    for name in ("student.input.input", "mapping_net.layers.1.weight"):
        if name not in names:
            return f"no parameter {name!r} under 'state_dict'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a Lightning checkpoint of the official code, or networks exported to OpenVINO.

    Teacher and losses are left out.
    """
    if checkpoint.kind == "openvino":
        return mobilestylegan_ir.read(checkpoint)
    weights = checkpoint.weights("state_dict")
    config = _config(weights)
    n_blocks = len(config.channels) - 1
    last = f"student.layers.{n_blocks - 1}.to_img" if n_blocks else "student.to_img1"
    height, width = (side // 2 ** len(config.channels) for side in config.size)
    drawn = torch.Generator().manual_seed(0)
    ours = {
        "style_mean": _centre(weights, n_blocks),
        "const": weights["student.input.input"][0],
        "wavelet": _wavelet(weights, "student.idwt"),
        "bands.weight": weights[f"{last}.conv.weight"],
        "bands.bias": weights[f"{last}.bias"].flatten(),
        **_below("to_bands", _modulation(weights, f"{last}.conv", fan_in=config.channels[-1])),
        **_below("conv1", _styled(weights, "student.conv1", (height, width), drawn)),
    }
    for layer in range(config.mapping_layers):
        name = f"mapping_net.layers.{layer + 1}"
        scale = LR_MULTIPLIER / math.sqrt(config.w_dim)
        ours[f"mapping.{layer}.weight"] = weights[f"{name}.weight"].double() * scale
        ours[f"mapping.{layer}.bias"] = weights[f"{name}.bias"].double() * LR_MULTIPLIER
    for block in range(n_blocks):
        name, scale = f"student.layers.{block}", 2 ** (block + 1)
        size = (height * scale, width * scale)
        parts = {
            "wavelet": _wavelet(weights, f"{name}.up.idwt"),
            **_below("up", _modulation(weights, f"{name}.up", fan_in=1)),
            **_below("conv1", _styled(weights, f"{name}.conv1", size, drawn)),
            **_below("conv2", _styled(weights, f"{name}.conv2", size, drawn)),
        }
        ours |= _below(f"blocks.{block}", parts)
    ours = {name: tensor.float() for name, tensor in ours.items()}
    return Imported(config, ours, DEFAULTS, notes=NOTES)


def _config(weights: Weights) -> MobileStyleGANConfig:
    outputs = [
        name
        for block in range(MAX_LAYERS)
        if (name := f"student.layers.{block}.conv2.conv.weight_permute") in weights
    ]
    with _fitting(weights.where, "student.input.input"):
        _, first, height, width = weights["student.input.input"].shape
        scale = 2 ** (len(outputs) + 1)
        if max(height, width) * scale > MAX_SIDE:
            raise ValueError(f"images would have {height * scale} x {width * scale} pixels")
    return MobileStyleGANConfig(
        size=(height * scale, width * scale),
        channels=(first, *(len(weights[name]) for name in outputs)),
        w_dim=len(weights["mapping_net.layers.1.weight"]),
        mapping_layers=sum(
            f"mapping_net.layers.{layer}.weight" in weights for layer in range(MAX_LAYERS)
        ),
        is_centre_layered=_centre(weights, len(outputs)).ndim == 2,
    )


def _centre(weights: Weights, n_blocks: int) -> Tensor:
    """The mean style, (w_dim,), or (n_layers, w_dim) where it differs between the layers."""
    with _fitting(weights.where, "style_mean"):
        centre = weights["style_mean"][0]
        if centre.ndim == 2:
            centre = centre[official_layers(n_blocks)]
            return centre[0] if (centre == centre[0]).all() else centre
        return centre


def _styled(
    weights: Weights, name: str, size: tuple[int, int], drawn: torch.Generator
) -> dict[str, Tensor]:
    """The `StyledConv` that the official code calls `name`."""
    with _fitting(weights.where, name):
        if name == "student.conv1":
            kernel = weights[f"{name}.conv.weight"].double()
            kernels = [kernel]
        else:
            kernels = [weights[f"{name}.conv.weight_{k}"].double() for k in ("dw", "permute")]
            kernel = kernels[0].transpose(0, 1) * kernels[1]
        fan_in = kernel[0].numel()
        usual = weights[f"{name}.conv.style_inv"][0].double()
        lengths = (usual * kernel).square().sum(dim=(1, 2, 3)) / fan_in
        kernels[-1] = kernels[-1] * (lengths + 1e-8).rsqrt()[:, None, None, None]
        strength = weights[f"{name}.noise.weight"].reshape(())
    return {
        **_below("modulation", _modulation(weights, f"{name}.conv", fan_in=fan_in)),
        **{f"conv.{i}.weight": kernel for i, kernel in enumerate(kernels)},
        f"conv.{len(kernels) - 1}.bias": weights[f"{name}.bias"].flatten(),
        "noise_strength": strength,
        "noise_const": torch.randn(size, generator=drawn),
    }


def _modulation(weights: Weights, name: str, *, fan_in: int) -> dict[str, Tensor]:
    return {
        f"linear.{kind}": weights[f"{name}.modulation.{kind}"].double() / math.sqrt(fan_in)
        for kind in ("weight", "bias")
    }


def _wavelet(weights: Weights, name: str) -> Tensor:
    with _fitting(weights.where, name):
        filters = [f"{name}.{kind}" for kind in ("g0_col", "g1_col", "g0_row", "g1_row")]
        return pixels(*(weights[filter_].flatten() for filter_ in filters))


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


@contextmanager
def _fitting(where: Path | str, name: str) -> Iterator[None]:
    try:
        yield
    except (IndexError, RuntimeError, ValueError) as error:
        raise CorruptFileError(f"{where}: the shapes of {name!r} do not fit: {error}.") from error


FAMILY = Family(
    name="mobilestylegan",
    title="MobileStyleGAN (Belousov 2021)",
    files="Lightning .ckpt of bes-dev/MobileStyleGAN.pytorch; OpenVINO .xml and .bin (random-face)",
    licence=(
        "Apache-2.0; the published weights were distilled from NVIDIA's StyleGAN2, whose licence "
        "is non-commercial"
    ),
    config=MobileStyleGANConfig,
    build=MobileStyleGAN,
    adapt=StyleGenerator.adapt,
    objection=objection,
    read=read,
    defaults=DEFAULTS,
    choices=("psi", "cutoff", "noise"),
    abilities=("variants", "features"),
    published={"mobilestylegan-ffhq-1024": MobileStyleGANConfig()},
)
