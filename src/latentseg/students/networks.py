"""Student networks by name: the papers' U-Net, and any network of segmentation_models_pytorch."""

import importlib
import importlib.metadata
from types import ModuleType

import torch
from torch import Tensor, nn
from torch.nn import functional

from latentseg.errors import InputError

MAX_WIDTH = 4.0
SMP_STRIDE = 32  # every encoder of segmentation_models_pytorch takes multiples of its stride, <= 32


def build_network(name: str, n_classes: int, *, width: float = 1.0) -> nn.Module:
    """A network with random weights: x (B, 3, H, W) in [-1, 1] to logits (B, n_classes, H, W).

    Args:
        name: "unet", the papers' U-Net, or "smp:ARCHITECTURE:ENCODER", for example
            "smp:DeepLabV3Plus:resnet18" (extra `networks`). No weights are downloaded.
        n_classes: Number of logits; the background counts.
        width: Factor on the channels of "unet", in (0, 4]. Other networks have a width of 1.

    Raises:
        InputError: no such network, a width out of range, or the extra is missing or broken.
    """
    if n_classes < 2:
        raise InputError(f"A network of {n_classes} class(es). The background counts: at least 2.")
    if name == "unet":
        if not 0 < width <= MAX_WIDTH:
            raise InputError(f"`width`: expected above 0, at most {MAX_WIDTH:g}, found {width}.")
        return UNet(n_classes, width=width)
    if name.startswith("smp:"):
        if width != 1:
            raise InputError(
                f"`width`: {name} comes in width 1 only, found {width}. Choose another encoder."
            )
        return _smp_network(name, n_classes)
    raise InputError(
        "`network`: expected unet or smp:ARCHITECTURE:ENCODER, for example "
        f"smp:DeepLabV3Plus:resnet18, found {name}."
    )


def count_parameters(network: nn.Module) -> int:
    """Number of trained values."""
    return sum(parameter.numel() for parameter in network.parameters())


class UNet(nn.Module):
    """The U-Net of Voynov 2021 and Melas-Kyriazi 2021: 13 395 394 parameters at width 1, 2 logits.

    Four levels down by max-pooling, four up by bilinear interpolation, skips concatenated.
    Any height and width: where a level was odd, the upsampled map is zero-padded to its skip.

    Args:
        n_classes: Number of logits.
        width: Factor on the 64 ... 512 channels, each rounded to a multiple of 8.

    Source: the network of the official code of both papers, after milesial/Pytorch-UNet.
    """

    def __init__(self, n_classes: int, *, width: float = 1.0) -> None:
        super().__init__()
        c1, c2, c3, c4 = (max(8, round(c * width / 8) * 8) for c in (64, 128, 256, 512))
        self.entry = _double_convolution(3, c1)
        self.down = nn.ModuleList(
            _double_convolution(inputs, outputs)
            for inputs, outputs in [(c1, c2), (c2, c3), (c3, c4), (c4, c4)]
        )
        self.up = nn.ModuleList(
            _double_convolution(inputs, outputs)
            for inputs, outputs in [(c4 + c4, c3), (c3 + c3, c2), (c2 + c2, c1), (c1 + c1, c1)]
        )
        self.exit = nn.Conv2d(c1, n_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes, H, W) of images (B, 3, H, W) in [-1, 1]."""
        height, width = x.shape[-2:]
        smallest = 2 ** len(self.down)
        if height < smallest or width < smallest:  # nothing would be left at the lowest level
            missing = (0, max(0, smallest - width), 0, max(0, smallest - height))
            x = functional.pad(x, missing, mode="replicate")
        x = self.entry(x)
        skips = []
        for block in self.down:
            skips.append(x)
            x = block(functional.max_pool2d(x, 2))
        for block, skip in zip(self.up, reversed(skips), strict=True):
            x = functional.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
            x = block(torch.cat([skip, _pad_to(x, skip)], dim=1))
        return self.exit(x)[..., :height, :width]


def _double_convolution(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


def _pad_to(x: Tensor, target: Tensor) -> Tensor:
    """Zeros around `x` up to the height and width of `target`."""
    # Also where nothing is missing: an exported program holds no branch on the size.
    rows, columns = target.shape[-2] - x.shape[-2], target.shape[-1] - x.shape[-1]
    return functional.pad(x, (columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))


def import_smp() -> ModuleType:
    """The library segmentation_models_pytorch, of the extra `networks`.

    Raises:
        InputError: it is missing, or cannot be imported; the message says how to mend that.
    """
    try:
        return importlib.import_module("segmentation_models_pytorch")
    except ModuleNotFoundError as error:
        raise InputError(
            f"Networks named smp:... need the module {error.name}, which is not installed. "
            f"Run: {_torchvision_command()} && pip install 'latentseg[networks]'"
        ) from error
    except (ImportError, RuntimeError, AttributeError, OSError) as error:
        # What a torchvision raises that was built for another torch.
        raise InputError(
            f"Networks named smp:... cannot be imported with torch {torch.__version__} and "
            f"torchvision {_version('torchvision')} ({error}). The two were probably built for "
            f"different versions. Run: {_torchvision_command()}"
        ) from error


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "(none)"


def _torchvision_command() -> str:
    """How to install the torchvision that belongs to the installed torch."""
    version, _, build = torch.__version__.partition("+")
    minor = int(version.split(".")[1]) + 15  # torchvision 0.15 came with torch 2.0, and so on
    source = f" --index-url https://download.pytorch.org/whl/{build}" if build else ""
    return f"pip install --force-reinstall --no-deps 'torchvision==0.{minor}.*'{source}"


def _smp_network(name: str, n_classes: int) -> nn.Module:
    smp = import_smp()
    _, architecture, encoder = [*name.split(":"), "", ""][:3]
    try:
        network = smp.create_model(
            architecture, encoder_name=encoder, encoder_weights=None, classes=n_classes
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"`network`: {name}: segmentation_models_pytorch cannot build it ({error}). "
            "Expected smp:ARCHITECTURE:ENCODER, for example smp:DeepLabV3Plus:resnet18."
        ) from error
    return PaddedNetwork(network, multiple=SMP_STRIDE)


class PaddedNetwork(nn.Module):
    """Lets a network that needs multiples of `multiple` pixels take any height and width."""

    def __init__(self, network: nn.Module, *, multiple: int) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes, H, W); edge pixels are repeated to the right and below."""
        height, width = x.shape[-2:]
        missing = (0, -width % self.multiple, 0, -height % self.multiple)
        x = functional.pad(x, missing, mode="replicate")
        return self.network(x)[..., :height, :width]
