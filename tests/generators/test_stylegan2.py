"""StyleGAN2 against what the official network computes, and its own promises."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from latentseg.errors import InputError
from latentseg.files import read_safetensors
from latentseg.generators.protocols import GeneratorInfo, HasFeatures, HasVariants
from latentseg.generators.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Generator, upfirdn

GOLDEN = sorted((Path(__file__).parents[1] / "data" / "golden").glob("stylegan2-ada-*.safetensors"))
TOLERANCE = 1e-4  # of the range of what is expected


def official(path: Path) -> tuple[StyleGAN2, dict[str, Tensor]]:
    with safe_open(path, framework="pt") as archive:
        config = StyleGAN2Config.from_json(json.loads(archive.metadata()["config"]), path)
    tensors = read_safetensors(path)
    network = StyleGAN2(config)
    weights = {
        name.removeprefix("weights/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("weights/")
    }
    network.load_state_dict(weights)
    return network.requires_grad_(False), {
        name.removeprefix("expected/"): tensor
        for name, tensor in tensors.items()
        if name.startswith("expected/")
    }


def assert_close(actual: Tensor, expected: Tensor) -> None:
    span = expected.max() - expected.min()
    assert (actual - expected).abs().max() <= TOLERANCE * span


@pytest.fixture(params=GOLDEN, ids=lambda path: path.stem)
def golden(request: pytest.FixtureRequest) -> tuple[StyleGAN2, dict[str, Tensor]]:
    return official(request.param)


def mapped(network: StyleGAN2, expected: dict[str, Tensor]) -> Tensor:
    labels = expected["onehot"].argmax(1) if "onehot" in expected else None
    return network.mapping(expected["z"], labels)


def test_all_golden_files_are_there() -> None:
    assert len(GOLDEN) == 4


def test_mapping_equals_the_official_one(golden: tuple[StyleGAN2, dict[str, Tensor]]) -> None:
    network, expected = golden
    assert_close(mapped(network, expected), expected["w"])


def test_images_equal_the_official_ones(golden: tuple[StyleGAN2, dict[str, Tensor]]) -> None:
    network, expected = golden
    assert_close(network(expected["ws"]), expected["image"])
    assert_close(network(expected["ws"][:1], "none"), expected["image.nonoise"])
    assert_close(network(expected["ws.mixed"]), expected["image.mixed"])


def test_truncation_equals_the_official_one(golden: tuple[StyleGAN2, dict[str, Tensor]]) -> None:
    network, expected = golden
    w = network.mapping.truncate(expected["w"][:1], 0.7)
    ws = w[:, None].expand(-1, network.config.n_layers, -1)
    assert_close(network(ws), expected["image.psi0.7"])
    first = torch.arange(network.config.n_layers)[:, None] < 3
    cut = torch.where(first, ws, expected["ws"][:1])
    assert_close(network(cut), expected["image.psi0.7.cutoff3"])


def test_features_equal_the_official_activations(
    golden: tuple[StyleGAN2, dict[str, Tensor]],
) -> None:
    network, expected = golden
    _, features = network.synthesis(expected["ws"][:1])
    names = ["b4.conv1"] + [f"b{r}.conv{i}" for r in (8, 16, 32) for i in (0, 1)]
    by_name = dict(zip(names, features, strict=False))
    assert_close(by_name["b8.conv0"], expected["features.synthesis.b8.conv0"])
    assert_close(by_name["b4.conv1"], expected["features.synthesis.b4"])
    assert_close(by_name["b16.conv1"], expected["features.synthesis.b16"])


def random_generator(**fields: object) -> StyleGAN2Generator:
    torch.manual_seed(0)
    defaults = {"size": (16, 16), "channels": (16, 12, 8), "z_dim": 8, "w_dim": 8}
    network = StyleGAN2(StyleGAN2Config(**{**defaults, **fields}))  # pyright: ignore[reportArgumentType]
    for name, parameter in network.named_parameters():
        if "noise_strength" in name:
            parameter.data.fill_(0.1)
    config = network.config
    info = GeneratorInfo("tiny", config.size, (8,), config.n_classes, "w", "Apache-2.0", "test", "")
    return StyleGAN2Generator(network, info)


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (24, 40)])
def test_other_shapes_than_squares_are_drawn(size: tuple[int, int]) -> None:
    generator = random_generator(size=size)
    assert generator(generator.sample(torch.arange(2))).shape == (2, 3, *size)


def test_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="multiples of 4"):
        StyleGAN2Config(size=(18, 16), channels=(8, 8, 8))


def test_half_precision_draws_nearly_the_same() -> None:
    generator = random_generator()
    latents = generator.sample(torch.arange(4))
    exact = generator(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = generator(latents)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.03 * (exact.max() - exact.min())


def test_channels_last_draws_the_same() -> None:
    generator = random_generator()
    latents = generator.sample(torch.arange(2))
    expected = generator(latents)
    generator.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(generator(latents), expected, atol=1e-5, rtol=1e-5)


def test_random_noise_differs_and_constant_noise_does_not() -> None:
    generator = random_generator()
    latents = generator.sample(torch.arange(2))
    assert torch.equal(generator(latents), generator(latents))
    generator.noise = "random"
    assert not torch.equal(generator(latents), generator(latents))


def test_one_style_per_layer_is_addressable() -> None:
    generator = random_generator()
    w = generator.sample(torch.arange(2))
    ws = w.with_values(w.values[:, None].repeat(1, generator.network.config.n_layers, 1))
    assert torch.equal(generator(ws), generator(w))
    changed = ws.values.clone()
    changed[:, -1] += 1
    assert not torch.equal(generator(ws.with_values(changed)), generator(w))
    step = torch.zeros(generator.network.config.n_layers, 8)
    step[-1] = 1
    moved = generator.shift(ws, step)
    torch.testing.assert_close(moved.values[:, -1], w.values + generator.spread)
    assert torch.equal(moved.values[:, 0], w.values)


def test_variants_keep_the_first_layers_and_change_the_rest() -> None:
    generator = random_generator()
    assert isinstance(generator, HasVariants)
    latents, seeds = generator.sample(torch.arange(2)), torch.arange(5, 8)
    n_layers = generator.network.config.n_layers
    plain = generator(latents)
    same = generator.variants(latents, seeds, keep=n_layers)
    torch.testing.assert_close(same, plain[:, None].expand_as(same), atol=1e-5, rtol=1e-5)
    others = generator.variants(latents, seeds, keep=0)
    expected = generator(generator.sample(seeds))
    torch.testing.assert_close(others[0], expected, atol=1e-5, rtol=1e-5)


def test_features_have_the_channels_that_were_announced() -> None:
    generator = random_generator()
    assert isinstance(generator, HasFeatures)
    features = generator.features(generator.sample(torch.arange(2)))
    assert tuple(f.shape[1] for f in features) == generator.feature_channels
    assert all(a.shape[2] <= b.shape[2] for a, b in pairwise(features))


def test_classes_are_drawn_from_the_seed_and_needed() -> None:
    generator = random_generator(n_classes=3)
    latents = generator.sample(torch.arange(64))
    assert latents.labels is not None
    assert set(latents.labels.tolist()) == {0, 1, 2}
    with pytest.raises(InputError, match="class labels"):
        generator.network.mapping(torch.randn(2, 8))


def test_spread_is_the_standard_deviation_of_w() -> None:
    generator = random_generator()
    generator.psi = 1.0
    sampled = generator.sample(torch.arange(3000)).values
    torch.testing.assert_close(generator.spread, sampled.std(dim=0), rtol=0.1, atol=0.01)


def test_upsampling_equals_zero_insertion_and_the_filter() -> None:
    from scipy.signal import convolve2d

    from latentseg.generators.stylegan2 import filter_kernel

    kernel = filter_kernel((1, 3, 3, 1))
    x = torch.randn(1, 1, 5, 6)
    inserted = torch.zeros(10, 12)
    inserted[::2, ::2] = x[0, 0]
    full = convolve2d(inserted.numpy(), 4 * kernel.numpy(), mode="full")
    expected = torch.from_numpy(full)[1:11, 1:13]
    actual = upfirdn(x, kernel, up=2, gain=4)[0, 0]
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)
