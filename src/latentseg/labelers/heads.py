"""Heads on hypercolumns: the small networks that few painted images teach.

Tritrong 2021 (dilated CNN, MLP), the CNNs S, M and L of its public re-implementation, the ensemble
of MLPs of DatasetGAN (Zhang et al. 2021), and ours.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from latentseg.configs import check_choice
from latentseg.errors import InputError
from latentseg.generators.protocols import Latents
from latentseg.labelers.features import COPIES, Hypercolumns, Scale, row_blocks
from latentseg.seeds import random_generator

MANY_CLASSES = 32  # from which DatasetGAN's members are wider
LEAST = 1e-12  # below it, probabilities have no logarithm worth summing


class Head(nn.Module):
    """A network from features of all channels to class logits, its first layer apart.

    Every layer keeps height and width, zeros lie beyond the border.

    Args:
        first: From all channels; 1x1, or larger.
        rest: What follows; begins with an activation.

    Attributes:
        mean, deviation: (C,), by which features are normalized before the first layer.
    """

    mean: Tensor
    deviation: Tensor

    def __init__(self, first: nn.Conv2d, rest: nn.Sequential) -> None:
        super().__init__()
        self.first, self.rest = first, rest
        self.register_buffer("mean", torch.zeros(first.in_channels))
        self.register_buffer("deviation", torch.ones(first.in_channels))

    @property
    def is_projecting(self) -> bool:
        """Whether the first layer is 1x1, so that the features need not be concatenated."""
        return self.first.kernel_size == (1, 1)

    @property
    def is_pixelwise(self) -> bool:
        """Whether every pixel is answered from its own features alone."""
        return self.halo == 0

    @property
    def layers(self) -> list[nn.Conv2d]:
        """The convolutions, the first one included."""
        return [module for module in self.modules() if isinstance(module, nn.Conv2d)]

    @property
    def halo(self) -> int:
        """Pixels on each side that an answer depends on."""
        return sum(layer.dilation[0] * (layer.kernel_size[0] // 2) for layer in self.layers)

    def normalize_by(self, scale: Scale) -> None:
        """Sets by what features are normalized."""
        self.mean.copy_(scale.mean)
        self.deviation.copy_(scale.deviation)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (B, K + 1, H, W) of features (B, C, H, W)."""
        mean, deviation = self.mean[:, None, None], self.deviation[:, None, None]
        return self.rest(self.first((features - mean) / deviation))

    def projection(self) -> tuple[Tensor, Tensor]:
        """Weight (O, C) and bias (O,) of a first layer of 1x1, with the normalization in them."""
        weight, bias = self.first.weight[:, :, 0, 0], self.first.bias
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        return Scale(self.mean, self.deviation).fold(weight, bias)


class Ensemble(nn.Module):
    """Heads that answer together: the mean of their probabilities; where they differ, they doubt.

    Args:
        members: At least one, of one kind.
    """

    members: nn.ModuleList

    def __init__(self, members: Sequence[Head]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    @property
    def heads(self) -> list[Head]:
        """The members."""
        return [head for head in self.members if isinstance(head, Head)]


@dataclass(frozen=True)
class HeadKind:
    """A kind of head.

    Attributes:
        build: Channels of the features and number of classes, background included, to a head with
            random weights.
        first: Size of the first layer's kernel.
        members: Heads in the ensemble.
        summary: What it is, and who published it.
    """

    build: Callable[[int, int], Head]
    first: int
    members: int
    summary: str


def _cnn(
    channels: int,
    n_classes: int,
    *,
    first: tuple[int, int, int],
    layers: Sequence[tuple[int, int]],
    slope: float,
) -> Head:
    """A chain of convolutions: `first` is (width, kernel, dilation), then 3x3 (width, dilation)."""
    width, kernel, dilation = first
    entry = nn.Conv2d(channels, width, kernel, padding=dilation * (kernel // 2), dilation=dilation)
    rest: list[nn.Module] = []
    for wider, dilation in (*layers[:-1], (n_classes, layers[-1][1])):
        rest += [
            nn.LeakyReLU(slope),
            nn.Conv2d(width, wider, 3, padding=dilation, dilation=dilation),
        ]
        width = wider
    return Head(entry, nn.Sequential(*rest))


def _official(channels: int, n_classes: int) -> Head:
    widths, dilations = (64, 64, 64, 64, 64, 64, 32, n_classes), (2, 4, 8, 1, 2, 4, 8, 1)
    layers = tuple(zip(widths, dilations, strict=True))
    return _cnn(channels, n_classes, first=(128, 1, 1), layers=layers, slope=0.01)


def _dilated(dilations: Sequence[int]) -> Callable[[int, int], Head]:
    widths = (128, 64, *(64,) * (len(dilations) - 4), 32)

    def build(channels: int, n_classes: int) -> Head:
        layers = tuple(zip((*widths[1:], n_classes), dilations[1:], strict=True))
        return _cnn(
            channels, n_classes, first=(widths[0], 3, dilations[0]), layers=layers, slope=0.2
        )

    return build


def _mlp(*hidden: int) -> Callable[[int, int], Head]:
    def build(channels: int, n_classes: int) -> Head:
        rest: list[nn.Module] = []
        for width, wider in zip(hidden, (*hidden[1:], n_classes), strict=True):
            rest += [nn.ReLU(), nn.Conv2d(width, wider, 1)]
        return Head(nn.Conv2d(channels, hidden[0], 1), nn.Sequential(*rest))

    return build


def _datasetgan(channels: int, n_classes: int) -> Head:
    first, second = (128, 32) if n_classes < MANY_CLASSES else (256, 128)
    rest = nn.Sequential(
        nn.ReLU(),
        nn.BatchNorm2d(first),
        nn.Conv2d(first, second, 1),
        nn.ReLU(),
        nn.BatchNorm2d(second),
        nn.Conv2d(second, n_classes, 1),
    )
    head = Head(nn.Conv2d(channels, first, 1), rest)
    for module in head.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=0.02)
    return head


HEADS: Mapping[str, HeadKind] = {
    "mlp-small": HeadKind(_mlp(64), 1, 1, "one hidden layer of 64; ours"),
    "mlp": HeadKind(_mlp(2000, 200), 1, 1, "hidden layers of 2000 and 200; Tritrong 2021"),
    "cnn": HeadKind(_official, 1, 1, "dilated CNN; official code of Tritrong 2021"),
    "cnn-s": HeadKind(_dilated((1, 2, 1, 2, 1)), 3, 1, "5 layers, sees 15 px; bryandlee"),
    "cnn-m": HeadKind(_dilated((1, 2, 4, 1, 2, 4, 1)), 3, 1, "7 layers, sees 31 px; bryandlee"),
    "cnn-l": HeadKind(
        _dilated((1, 2, 4, 8, 1, 2, 4, 8, 1)), 3, 1, "9 layers, sees 63 px; bryandlee"
    ),
    "ensemble": HeadKind(_datasetgan, 1, 10, "ten MLPs; DatasetGAN, Zhang et al. 2021"),
}


def head_kind(name: str) -> HeadKind:
    """The kind of head called `name`.

    Raises:
        InputError: there is none; the known ones are named.
    """
    check_choice("head", name, tuple(HEADS))
    return HEADS[name]


def build_heads(name: str, channels: int, n_classes: int, *, seed: int = 0) -> Ensemble:
    """A head with random weights; those of member i depend only on (seed, i).

    Args:
        name: Of `HEADS`.
        channels: Of the features.
        n_classes: Logits; the background counts.
        seed: Of the weights.

    Raises:
        InputError: no such head, or fewer than 2 classes.
    """
    if n_classes < 2:
        raise InputError(f"A head of {n_classes} class(es). The background counts: at least 2.")
    kind, members = head_kind(name), []
    with torch.random.fork_rng(devices=[]):
        for i in range(kind.members):
            torch.manual_seed(random_generator(seed, i).initial_seed())
            members.append(kind.build(channels, n_classes))
    return Ensemble(members)


@torch.no_grad()
def class_probabilities(heads: Ensemble, columns: Hypercolumns, latents: Latents) -> Tensor:
    """What every member says of every pixel, (M, B, K + 1, *columns.size), on the latents' device.

    Beside the result and what `columns` uses, members whose first layer is 1x1 need one projection,
    as many of them at once as fit into `columns.memory`; the others need the maps of all layers.

    Args:
        heads: Trained; they answer in evaluation mode.
        columns: The features.
        latents: Of B images.
    """
    heads.eval()
    members = heads.heads
    if not members[0].is_projecting:
        return _from_rows(members, columns, latents)
    width = members[0].first.out_channels
    height, length = columns.size
    n = max(1, columns.memory // (4 * len(latents) * width * height * length))
    answers = []
    for start in range(0, len(members), n):
        some = members[start : start + n]
        weights, biases = zip(*(head.projection() for head in some), strict=True)
        projected = columns.project(latents, torch.cat(weights), torch.cat(biases))
        parts = list(projected.split(width, dim=1))
        del projected  # each part is given up to the layers that follow, and they forget it
        answers += [rest_in_rows(head, parts.pop(0), columns.memory).softmax(1) for head in some]
    return torch.stack(answers)


def _from_rows(members: Sequence[Head], columns: Hypercolumns, latents: Latents) -> Tensor:
    halo = members[0].halo
    blocks = []
    for first, end, block in columns.rows(latents, halo=halo):
        kept = slice(first - max(first - halo, 0), None)
        logits = [head(block)[:, :, kept][:, :, : end - first] for head in members]
        blocks.append(torch.stack(logits).softmax(dim=2))
    return torch.cat(blocks, dim=3)


def rest_in_rows(head: Head, projected: Tensor, memory: int) -> Tensor:
    """The layers behind the first one, each in blocks of rows that `memory` bytes suffice for.

    Beside a block, what a layer takes and what it gives are held; without gradients.

    Args:
        head: Its first layer is 1x1.
        projected: (B, O, H, W), what the first layer gives.
        memory: For the activations of a block; the least that can be done is one row.

    Returns:
        Logits (B, K + 1, H, W).
    """
    with torch.no_grad():
        stage: list[nn.Module] = []
        for module in head.rest:
            stage.append(module)
            if isinstance(module, nn.Conv2d):
                projected = _convolved(stage[:-1], module, projected, memory)
                stage = []
        return projected


def _convolved(before: Sequence[nn.Module], layer: nn.Conv2d, x: Tensor, memory: int) -> Tensor:
    """A convolution, and what comes before it pixel by pixel, in blocks of rows."""
    height, width = x.shape[2:]
    halo = layer.dilation[0] * (layer.kernel_size[0] // 2)
    result = x.new_empty(len(x), layer.out_channels, height, width)
    channels = COPIES * len(x) * max(layer.in_channels, layer.out_channels)
    for first, end in row_blocks((height, width), channels, halo, memory):
        top = max(first - halo, 0)
        part = x[:, :, top : end + halo]
        for module in before:
            part = module(part)
        result[:, :, first:end] = layer(part)[:, :, first - top : end - top]
    return result


def jensen_shannon(probabilities: Tensor) -> Tensor:
    """How far members disagree in each pixel, in [0, 1]: the entropy of their mean less their own.

    Args:
        probabilities: (M, B, K, H, W).

    Returns:
        (B, H, W), in units of log(K).

    Source: Zhang et al. 2021 (DatasetGAN), section 3.2, after Kuo et al. 2018.
    """
    own = entropy(probabilities.flatten(0, 1)).unflatten(0, probabilities.shape[:2])
    return (entropy(probabilities.mean(dim=0)) - own.mean(dim=0)).clamp(min=0)


def entropy(probabilities: Tensor) -> Tensor:
    """(B, K, H, W) to (B, H, W), in units of log(K): 0 for a sure answer, 1 for none."""
    logs = probabilities.clamp(min=LEAST).log()
    return -(probabilities * logs).sum(dim=1) / math.log(probabilities.shape[1])
