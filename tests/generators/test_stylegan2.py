"""StyleGAN2 against what the official networks compute, its files, and its own promises."""

import pickle
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan2 import (
    StyleGAN2,
    StyleGAN2Config,
    filter_kernel,
    modulated_conv,
    upfirdn,
)
from latentseg.generators.families.stylegan2_files import CLAMP_NOTE, FAMILY
from latentseg.generators.family import Imported, Sampling
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.weights.containers import Checkpoint, open_checkpoint
from tests.generators.golden import assert_close, cases, golden
from tests.generators.tiny_stylegan2 import tiny

NVIDIA, ROSINALITY = cases("stylegan2-ada"), cases("rosinality-stylegan2")
BOTH = torch.arange(2)  # the seeds of the two latents of a case


@dataclass(frozen=True)
class Given:
    """Stands for the prior of a generator: seeds 0, 1, ... draw the given latents."""

    z: Tensor
    labels: Tensor | None

    def draw(self, seeds: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.z[seeds], None if self.labels is None else self.labels[seeds]


def generator_of(imported: Imported, **choices: Any) -> StyleGenerator:
    info = GeneratorInfo(
        name="test",
        size=imported.config.size,
        latent=(),
        n_classes=imported.config.n_classes,
        space="",
        licence=FAMILY.licence,
        source="test",
        sha256="",
        family=FAMILY.name,
    )
    imported = replace(imported, sampling=Sampling(**choices))
    generator = FAMILY.generator(imported, info, "file")
    assert isinstance(generator, StyleGenerator)
    return generator


def computed(imported: Imported, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """What both official codes were asked for, by our generators."""
    labels = expected["onehot"].argmax(1) if "onehot" in expected else None

    def generator(**choices: Any) -> StyleGenerator:
        made = generator_of(imported, **choices)
        made.prior = Given(expected["z"], labels)  # pyright: ignore[reportAttributeAccessIssue]
        return made

    full, cut = generator(psi=1.0), generator(psi=0.7, cutoff=3)
    latents = full.sample(BOTH)
    ws = latents.values[:, None].repeat(1, full.n_layers, 1)
    image = full(latents)
    return {
        "w": latents.values,
        "ws": ws,
        "ws.mixed": torch.cat([ws[:1, :2], ws[1:, 2:]], dim=1),
        "ws.psi0.7.cutoff3": cut.sample(BOTH).values,
        "image": image,
        "image.z": image[:1],
        "image.mixed": full.variants(latents[:1], BOTH, keep=2)[:, 1],
        "image.nonoise": generator(psi=1.0, noise="none")(latents[:1]),
        "image.psi0.7": generator(psi=0.7)(generator(psi=0.7).sample(BOTH[:1])),
        "image.psi0.7.cutoff3": cut(cut.sample(BOTH[:1])),
        **features_of(full, latents[:1]),
    }


def features_of(generator: StyleGenerator, latents: Latents) -> dict[str, Tensor]:
    """The activations by the names of both official codes."""
    maps = generator.features(latents)
    named = {"features.synthesis.b4": maps[0], "features.conv1": maps[0]}
    for index, features in enumerate(maps[1:]):
        resolution = 8 * 2 ** (index // 2)
        named[f"features.convs.{index}"] = features
        named[f"features.synthesis.b{resolution}.conv{index % 2}"] = features
        named[f"features.synthesis.b{resolution}"] = features
    return named


@pytest.mark.parametrize("name", NVIDIA)
def test_nvidia_pickles_draw_what_the_official_network_draws(name: str) -> None:
    case = golden(name)
    checkpoint = case.checkpoint
    assert FAMILY.objection(checkpoint) is None
    imported = FAMILY.read(checkpoint, {})
    assert imported.notes == ()
    actual = computed(imported, case.expected)
    for tensor in case.expected.keys() - case.card["inputs"]:
        assert_close(actual[tensor], case.expected[tensor])


@pytest.mark.parametrize("name", ROSINALITY)
def test_rosinality_checkpoints_draw_what_the_official_network_draws(name: str) -> None:
    case = golden(name)
    checkpoint = case.checkpoint
    assert FAMILY.objection(checkpoint) is None
    imported = with_given(FAMILY.read(checkpoint, {}), case.expected)
    actual = computed(imported, case.expected)
    for tensor in case.expected.keys() - case.card["inputs"]:
        assert_close(actual[tensor], case.expected[tensor])


def with_given(imported: Imported, expected: dict[str, Tensor]) -> Imported:
    """With the noise and the centre of truncation that a case gives because its file does not."""
    weights = dict(imported.weights)
    if "latent_avg" in expected:
        weights["mapping.w_avg"] = expected["latent_avg"]
    noises = [name for name in imported.weights if name.endswith("noise_const")]
    for index, name in enumerate(noises):
        if f"noise.{index}" in expected:
            weights[name] = expected[f"noise.{index}"][0, 0]
    return replace(imported, weights=weights)


def test_all_golden_files_are_there() -> None:
    assert len(NVIDIA) == 4
    assert len(ROSINALITY) == 3


def test_what_a_rosinality_file_leaves_open_is_filled_in_and_noted() -> None:
    notes = {
        name.partition("/")[2]: " ".join(FAMILY.read(golden(name).checkpoint, {}).notes)
        for name in ROSINALITY
    }
    for word, names in {
        "mapping": {"converted32", "old16", "training32"},
        "mean style": {"old16", "training32"},
        "noise": {"old16"},
        "filter": {"old16"},
    }.items():
        assert {name for name, text in notes.items() if word in text} >= names
    assert "noise" not in notes["training32"]
    assert "mean style" not in notes["converted32"]
    case = golden("rosinality-stylegan2/old16")
    first, second = (FAMILY.read(case.checkpoint, {}) for _ in range(2))
    assert all(torch.equal(first.weights[name], second.weights[name]) for name in first.weights)


def test_the_mean_style_of_a_file_without_one_is_that_of_its_latents() -> None:
    generator = generator_of(FAMILY.read(golden("rosinality-stylegan2/old16").checkpoint, {}))
    w = generator.network.style(torch.randn(20000, 16, generator=torch.manual_seed(1)), None)
    centre = generator.network.centre(None)
    assert ((w.mean(dim=0) - centre).abs() < 0.1 * w.std(dim=0)).all()


@pytest.mark.parametrize("name", [*NVIDIA, *ROSINALITY])
def test_a_converted_file_draws_the_same(name: str, tmp_path: Path) -> None:
    generator = generator_of(FAMILY.read(golden(name).checkpoint, {}), psi=0.5, cutoff=2)
    save_generator(generator, tmp_path, card="", origin={})
    loaded = load_folder(tmp_path)
    latents = generator.sample(BOTH)
    assert torch.equal(loaded.sample(BOTH).values, latents.values)
    torch.testing.assert_close(loaded(latents), generator(latents))


# Synthetic files of the layouts of which there are no golden ones.


@pytest.fixture
def network_class(monkeypatch: pytest.MonkeyPatch) -> type:
    """`dnnlib.tflib.network.Network`, which exists while a file is written."""
    network = type("Network", (), {"__module__": "dnnlib.tflib.network"})
    for name in ("dnnlib", "dnnlib.tflib", "dnnlib.tflib.network"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr(sys.modules["dnnlib.tflib.network"], "Network", network, raising=False)
    return network


def tensorflow_variables(network: StyleGAN2) -> dict[str, np.ndarray | np.generic]:
    """The weights of a network of 16 px under the names that TensorFlow's code gives them."""
    ours = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    variables: dict[str, Any] = {"dlatent_avg": ours["mapping.w_avg"]}
    fully_connected = {f"fc{i}": f"Dense{i}" for i in range(network.config.mapping_layers)}
    if network.config.n_classes:
        fully_connected["embed"] = "LabelEmbed"
    for layer, scope in fully_connected.items():
        variables[f"mapping/{scope}/weight"] = ours[f"mapping.{layer}.weight"].T
        variables[f"mapping/{scope}/bias"] = ours[f"mapping.{layer}.bias"]
    variables["synthesis/4x4/Const/const"] = ours["synthesis.b4.const"][None]
    for index, layer in enumerate(("b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1")):
        noise = ours[f"synthesis.{layer}.noise_const"]
        variables[f"synthesis/noise{index}"] = noise[None, None]
    for layer, scope in {
        "b4.conv1": "4x4/Conv",
        "b4.torgb": "4x4/ToRGB",
        "b8.conv0": "8x8/Conv0_up",
        "b8.conv1": "8x8/Conv1",
        "b8.torgb": "8x8/ToRGB",
        "b8.skip": "8x8/Skip",
        "b16.conv0": "16x16/Conv0_up",
        "b16.conv1": "16x16/Conv1",
        "b16.torgb": "16x16/ToRGB",
        "b16.skip": "16x16/Skip",
    }.items():
        for kind in ("weight", "bias", "noise_strength", "affine.weight", "affine.bias"):
            name = f"synthesis.{layer}.{kind}"
            if name not in ours:
                continue
            value = ours[name]
            if kind == "weight":
                value = value.transpose(2, 3, 1, 0)
                value = value[::-1, ::-1] if layer.endswith(("conv0", "skip")) else value
            if kind == "affine.weight":
                value = value.T
            if kind == "affine.bias":
                value = value - 1
            theirs = kind.replace("affine.", "mod_")
            # TensorFlow gives a number as a numpy scalar.
            variables[f"synthesis/{scope}/{theirs}"] = value if value.ndim else value[()]
    return variables


def write_tensorflow(
    path: Path, network_class: type, variables: dict[str, Any], **given: Any
) -> Checkpoint:
    static_kwargs = {"resolution": 16, "mapping_layers": 1, **given}

    def network(values: dict[str, Any], **more: Any) -> Any:
        made = network_class()
        made.version, made.variables, made.static_kwargs = 4, list(values.items()), static_kwargs
        made.components, made.build_module_src = more, "raise SystemExit('this was run')"
        return made

    def below(prefix: str) -> dict[str, Any]:
        return {
            name.removeprefix(prefix): value
            for name, value in variables.items()
            if name.startswith(prefix)
        }

    top = {name: value for name, value in variables.items() if "/" not in name}
    parts = {name: network(below(f"{name}/")) for name in ("mapping", "synthesis")}
    networks = (network({}), network({}), network(top, **parts))
    path.write_bytes(pickle.dumps(networks, protocol=4))
    return open_checkpoint(path)


@pytest.mark.parametrize("architecture", ["skip", "orig", "resnet"])
def test_tensorflow_pickles_are_renamed(
    architecture: str, network_class: type, tmp_path: Path
) -> None:
    generator = tiny(n_classes=3, architecture=architecture, mapping_layers=2, conv_clamp=2.0)
    network = generator.network
    assert isinstance(network, StyleGAN2)
    variables = tensorflow_variables(network)
    checkpoint = write_tensorflow(
        tmp_path / "gan.pkl", network_class, variables, mapping_layers=2, conv_clamp=2.0
    )
    assert FAMILY.objection(checkpoint) is None
    imported = FAMILY.read(checkpoint, {})
    latents = generator.sample(BOTH)
    again = generator_of(imported)
    assert imported.notes == ()
    assert_close(again.sample(BOTH).values, latents.values)
    assert_close(again(latents), generator(latents))


def test_tensorflow_pickles_of_stylegan1_and_missing_variables_are_told(
    network_class: type, tmp_path: Path
) -> None:
    path = tmp_path / "gan.pkl"
    style = {"synthesis/4x4/Conv/StyleMod/weight": np.zeros((2, 2), np.float32)}
    objection = FAMILY.objection(write_tensorflow(path, network_class, style))
    assert objection is not None
    assert "StyleGAN 1" in objection
    network = tiny().network
    assert isinstance(network, StyleGAN2)
    variables = tensorflow_variables(network)
    without = {k: v for k, v in variables.items() if k != "synthesis/8x8/Conv1/mod_bias"}
    with pytest.raises(CorruptFileError, match="synthesis/8x8/Conv1/mod_bias"):
        FAMILY.read(write_tensorflow(path, network_class, without), {})
    with pytest.raises(InputError, match="nonlinearity: activation 'relu'"):
        FAMILY.read(write_tensorflow(path, network_class, variables, nonlinearity="relu"), {})
    with pytest.raises(CorruptFileError, match="resample_kernel"):
        FAMILY.read(write_tensorflow(path, network_class, variables, resample_kernel=None), {})


def studiogan(path: Path, **fields: Any) -> tuple[StyleGAN2, Checkpoint]:
    network = tiny(**fields).network
    assert isinstance(network, StyleGAN2)
    torch.save({"state_dict": network.state_dict(), "optimizer": {"state": {}}}, path)
    return network, open_checkpoint(path)


def test_studiogan_checkpoints_are_read_and_their_clamp_is_chosen(tmp_path: Path) -> None:
    network, checkpoint = studiogan(tmp_path / "gan.pth", n_classes=4, conv_clamp=256.0)
    assert FAMILY.objection(checkpoint) is None
    imported = FAMILY.read(checkpoint, {})
    assert CLAMP_NOTE in imported.notes
    ws = torch.randn(2, network.n_layers, 6)
    assert_close(generator_of(imported)(Latents(ws)), network(ws))
    free, close = (FAMILY.read(checkpoint, {"conv_clamp": clamp}) for clamp in (0, 0.5))
    assert free.config.conv_clamp is None
    assert CLAMP_NOTE not in free.notes
    assert generator_of(close)(Latents(ws)).abs().max() <= 0.5 * len(network.config.channels)
    for nonsense in ("much", -1, True):
        with pytest.raises(InputError, match="conv_clamp"):
            FAMILY.read(checkpoint, {"conv_clamp": nonsense})
    with pytest.raises(InputError, match="conv_clamp"):
        FAMILY.read(golden(ROSINALITY[0]).checkpoint, {"conv_clamp": 1})


def test_missing_unknown_and_misshapen_parameters_are_named(tmp_path: Path) -> None:
    checkpoint = golden("rosinality-stylegan2/old16").checkpoint
    del checkpoint.tree["g_ema"]["convs.1.conv.modulation.bias"]
    with pytest.raises(CorruptFileError, match=r"convs\.1\.conv\.modulation\.bias"):
        FAMILY.read(checkpoint, {})
    checkpoint.tree["g_ema"]["input.input"] = torch.zeros(())
    with pytest.raises(CorruptFileError, match=r"input\.input"):
        FAMILY.read(checkpoint, {})
    _, checkpoint = studiogan(tmp_path / "gan.pth")
    for name, value, word in (
        ("mapping.fc0.weight", torch.zeros(6), "mapping.fc0.weight"),
        ("synthesis.b8.conv1.bias", torch.zeros(3), "synthesis.b8.conv1.bias"),
        ("synthesis.b8.more", torch.zeros(3), "synthesis.b8.more"),
        ("synthesis.b4.const", torch.zeros(8, 4000, 4), "16000 pixels of a side"),
    ):
        changed = {**checkpoint.tree["state_dict"], name: value}
        with pytest.raises(CorruptFileError, match=word):
            generator_of(FAMILY.read(replace(checkpoint, tree={"state_dict": changed}), {}))


def test_nvidia_attributes_that_are_not_understood_are_named() -> None:
    for name, value, word in (
        ("activation", "relu", "synthesis.b4.conv1: activation 'relu'"),
        ("conv_clamp", "wide", "conv_clamp"),
    ):
        checkpoint = golden(NVIDIA[0]).checkpoint
        node = checkpoint.tree["G_ema"]
        for part in ("synthesis", "b4", "conv1"):
            node = node.state["_modules"][part]
        node.state[name] = value
        with pytest.raises((CorruptFileError, InputError), match=word):
            FAMILY.read(checkpoint, {})
    checkpoint = golden(NVIDIA[0]).checkpoint
    del checkpoint.tree["G_ema"].state["_modules"]["mapping"].state["_modules"]["fc1"]
    with pytest.raises(CorruptFileError, match=r"mapping\.fc1"):
        FAMILY.read(checkpoint, {})
    del checkpoint.tree["G_ema"].state["img_resolution"]
    with pytest.raises(CorruptFileError, match="img_resolution"):
        FAMILY.read(replace(checkpoint, _modules={}), {})


@pytest.mark.parametrize(
    "name", ["stylegan3/r16", "r3gan/cond32", "mobilestylegan/tiny32", "stylegan1/rosinality32"]
)
def test_files_of_other_families_are_objected_to(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint)


# What the network promises by itself.


def test_options_choose_how_is_drawn() -> None:
    with pytest.raises(InputError, match="nonsense"):
        FAMILY.check_options({"nonsense": 1})
    with pytest.raises(InputError, match="psi"):
        FAMILY.sampling(Sampling(), {"psi": 2})
    generator = tiny(Sampling(noise="random"))
    latents = generator.sample(BOTH)
    assert not torch.equal(generator(latents), generator(latents))
    one_class = tiny(Sampling(class_weights=(0.0, 1.0, 0.0)), n_classes=3)
    assert one_class.sample(torch.arange(9)).labels.tolist() == [1] * 9  # pyright: ignore[reportOptionalMemberAccess]


@pytest.mark.parametrize("size", [(48, 32), (32, 48), (24, 40)])
def test_other_shapes_than_squares_are_drawn(size: tuple[int, int]) -> None:
    generator = tiny(size=size)
    assert generator(generator.sample(BOTH)).shape == (2, 3, *size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (18, 16)}, "multiples of 4"),
        ({"architecture": "plain"}, "`architecture`: expected one of .* found 'plain'"),
        ({"resample_filter": (1, 2)}, "symmetric"),
        ({"img_channels": 4}, "`img_channels`: expected 1 or 3, found 4"),
    ],
)
def test_impossible_configurations_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StyleGAN2Config(**{"size": (16, 16), "channels": (8, 8, 8), **fields})


def test_grey_images_have_three_equal_channels() -> None:
    generator = tiny(img_channels=1)
    x = generator(generator.sample(BOTH))
    assert x.shape == (2, 3, 16, 16)
    assert torch.equal(x[:, 0], x[:, 2])


def test_half_precision_draws_nearly_the_same() -> None:
    generator = tiny()
    latents = generator.sample(torch.arange(4))
    exact = generator(latents)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = generator(latents)
    assert rough.dtype == torch.float32
    assert (rough - exact).abs().max() < 0.03 * (exact.max() - exact.min())


def test_channels_last_draws_the_same() -> None:
    generator = tiny()
    latents = generator.sample(BOTH)
    expected = generator(latents)
    generator.network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    torch.testing.assert_close(generator(latents), expected, atol=1e-5, rtol=1e-5)


def test_one_style_per_layer_is_addressable() -> None:
    generator = tiny()
    assert isinstance(generator, StyleGenerator)
    w = generator.sample(BOTH)
    ws = w.with_values(w.values[:, None].repeat(1, generator.n_layers, 1))
    assert_close(generator(ws), generator(w))
    step = torch.zeros(generator.n_layers, 6)
    step[-1] = 1
    moved = generator.shift(ws, step)
    assert not torch.equal(generator(moved), generator(w))
    torch.testing.assert_close(moved.values[:, -1], w.values + generator.spread)
    assert torch.equal(moved.values[:, 0], w.values)


def test_variants_keep_the_first_layers_and_change_the_rest() -> None:
    generator = tiny()
    assert isinstance(generator, StyleGenerator)
    latents, seeds = generator.sample(BOTH), torch.arange(5, 8)
    others = generator.variants(latents, seeds, keep=0)
    expected = generator(generator.sample(seeds))
    torch.testing.assert_close(others[0], expected, atol=1e-5, rtol=1e-5)


def test_a_conditional_network_asks_for_labels() -> None:
    network = tiny(n_classes=3).network
    assert isinstance(network, StyleGAN2)
    with pytest.raises(InputError, match="class labels"):
        network.style(torch.randn(2, 6), None)


def test_spread_is_the_standard_deviation_of_w() -> None:
    generator = tiny(Sampling(psi=1.0))
    assert isinstance(generator, StyleGenerator)
    sampled = generator.sample(torch.arange(3000)).values
    torch.testing.assert_close(generator.spread, sampled.std(dim=0), rtol=0.1, atol=0.01)


def test_published_configurations_have_the_known_number_of_parameters() -> None:
    with torch.device("meta"):
        counts = {
            name: sum(parameter.numel() for parameter in FAMILY.build(config).parameters())
            for name, config in FAMILY.published.items()
        }
    # Karras et al. 2020, table 1 (config f, 1024 px), and Karras et al. 2020 (ADA, 256 px).
    assert round(counts["stylegan2-1024"] / 1e6) == 30
    assert round(counts["stylegan2-ada-256"] / 1e6, 1) == 24.8
    assert all(a.size <= b.size for a, b in pairwise(list(FAMILY.published.values())[:3]))


def test_upsampling_equals_zero_insertion_and_the_filter() -> None:
    from scipy.signal import convolve2d

    kernel = filter_kernel((1, 3, 3, 1))
    x = torch.randn(1, 1, 5, 6)
    inserted = torch.zeros(10, 12)
    inserted[::2, ::2] = x[0, 0]
    full = convolve2d(inserted.numpy(), 4 * kernel.numpy(), mode="full")
    expected = torch.from_numpy(full)[1:11, 1:13]
    actual = upfirdn(x, kernel, up=2, gain=4)[0, 0]
    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 5, 10, 10, 5, 1)])
def test_upsampling_convolution_is_centred_for_every_filter(taps: tuple[int, ...]) -> None:
    kernel, weight, x = filter_kernel(taps), torch.randn(1, 1, 3, 3), torch.randn(1, 1, 5, 6)
    pad = len(taps) - 1
    both = torch.nn.functional.conv2d(weight, 4 * kernel[None, None], padding=pad)
    whole = torch.nn.functional.conv_transpose2d(x, both, stride=2)
    margin = len(taps) // 2
    expected = whole[:, :, margin:-margin, margin:-margin]
    actual = modulated_conv(x, weight, torch.ones(1, 1), kernel)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
