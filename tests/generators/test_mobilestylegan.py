"""MobileStyleGAN against what the official network computes, its files, and its own promises."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.mobilestylegan import (
    MobileStyleGAN,
    MobileStyleGANConfig,
    haar,
    inverse_wavelet,
    official_layers,
)
from latentseg.generators.families.mobilestylegan_files import FAMILY
from latentseg.generators.family import Imported, Sampling
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.weights.containers import Checkpoint
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_mobilestylegan import tiny

CASES = cases("mobilestylegan")
BOTH = torch.arange(2)


class Given:
    """Stands for the prior of a generator: seeds 0, 1, ... draw the given latents."""

    def __init__(self, z: Tensor) -> None:
        self.z = z

    def draw(self, seeds: Tensor) -> tuple[Tensor, None]:
        return self.z[seeds], None


def generator_of(imported: Imported, **choices: Any) -> StyleGenerator:
    info = GeneratorInfo(
        name="test",
        size=imported.config.size,
        latent=(),
        n_classes=0,
        space="",
        licence=FAMILY.licence,
        source="test",
        sha256="",
        family=FAMILY.name,
    )
    sampling = FAMILY.sampling(imported.sampling, choices)
    generator = FAMILY.generator(replace(imported, sampling=sampling), info, "file")
    assert isinstance(generator, StyleGenerator)
    return generator


def given_noise(imported: Imported, expected: dict[str, Tensor]) -> Imported:
    """With the noise that a case gives because its file does not."""
    noise = {"conv1.noise_const": expected["noise.0"][0, 0]}
    for block in range(len(imported.config.channels) - 1):
        for row, layer in enumerate(("conv1", "conv2")):
            noise[f"blocks.{block}.{layer}.noise_const"] = expected[f"noise.{block + 1}"][row, 0]
    return replace(imported, weights={**imported.weights, **noise})


def computed(case: Case) -> dict[str, Tensor]:
    """What the official code was asked for, by our generators."""
    imported = given_noise(FAMILY.read(case.checkpoint, {}), case.expected)

    def generator(**choices: Any) -> StyleGenerator:
        made = generator_of(imported, **choices)
        made.prior = Given(case.expected["z"])  # pyright: ignore[reportAttributeAccessIssue]
        return made

    full = generator(psi=1.0)
    latents = full.sample(BOTH)
    network = full.network
    assert isinstance(network, MobileStyleGAN)
    bands: list[Tensor] = []
    hook = network.bands.register_forward_hook(lambda *parts: bands.append(parts[-1]))
    image, features = full(latents), full.features(latents[:1])
    hook.remove()
    n_blocks = len(imported.config.channels) - 1
    ws = latents.values[:, None].repeat(1, 3 * n_blocks + 2, 1)
    mixed = torch.cat([ws[:1, :2], ws[1:, 2:]], dim=1)
    return {
        "w": latents.values,
        "ws.mixed": mixed,
        "image": image,
        "image.mixed": full(Latents(mixed[:, official_layers(n_blocks)])),
        "image.psi0.5": generator()(generator().sample(BOTH)),
        "image.psi0.7": generator(psi=0.7)(generator(psi=0.7).sample(BOTH)),
        "freq.last": bands[0],
        "features.student.conv1": features[0],
        "features.student.layers.0": features[2],
        "features.student.layers.1.conv1": features[3],
    }


@pytest.mark.parametrize("name", CASES)
def test_checkpoints_draw_what_the_official_network_draws(name: str) -> None:
    case = golden(name)
    assert FAMILY.objection(case.checkpoint) is None
    actual = computed(case)
    for tensor in case.expected.keys() - case.card["inputs"]:
        assert_close(actual[tensor], case.expected[tensor])


def test_the_golden_file_is_there_and_what_it_leaves_open_is_noted() -> None:
    assert len(CASES) == 1
    imported = FAMILY.read(golden(CASES[0]).checkpoint, {})
    assert imported.sampling == Sampling(psi=0.5)
    assert "noise" in " ".join(imported.notes)
    again = FAMILY.read(golden(CASES[0]).checkpoint, {})
    assert all(torch.equal(again.weights[name], imported.weights[name]) for name in again.weights)


@pytest.mark.parametrize("choices", [{}, {"psi": 0.7, "cutoff": 2, "noise": "none"}])
def test_a_converted_file_draws_the_same(choices: dict[str, Any], tmp_path: Path) -> None:
    generator = generator_of(FAMILY.read(golden(CASES[0]).checkpoint, {}), **choices)
    save_generator(generator, tmp_path, card="", origin={})
    loaded = load_folder(tmp_path)
    latents = generator.sample(BOTH)
    assert torch.equal(loaded.sample(BOTH).values, latents.values)
    torch.testing.assert_close(loaded(latents), generator(latents))


def changed(name: str, value: Tensor | None) -> Checkpoint:
    checkpoint = golden(CASES[0]).checkpoint
    state = checkpoint.tree["state_dict"]
    if value is None:
        del state[name]
    else:
        state[name] = value
    return checkpoint


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_mean_style_for_each_layer_is_kept_where_they_differ(is_equal: bool) -> None:
    rows = torch.randn(8, 20)
    if is_equal:
        rows = rows[:1].repeat(8, 1)
    checkpoint = changed("style_mean", rows[None])
    generator = generator_of(FAMILY.read(checkpoint, {}))
    centre = generator.network.centre(None)
    if is_equal:
        assert generator.info.space == "w"
        assert torch.equal(centre, rows[0])
    else:
        assert generator.info.latent == (6, 20)
        assert torch.equal(centre, rows[[0, 1, 2, 4, 5, 6]])


def test_missing_and_misshapen_parameters_are_named() -> None:
    for name in (
        "style_mean",
        "student.conv1.conv.weight",
        "student.layers.1.conv2.conv.weight_dw",
        "student.layers.0.up.modulation.bias",
        "student.idwt.g0_row",
        "mapping_net.layers.2.bias",
    ):
        with pytest.raises(CorruptFileError, match=name):
            FAMILY.read(changed(name, None), {})
    for name, shape, word in (
        ("student.input.input", (24, 4, 4), "student.input.input"),
        ("student.input.input", (1, 24, 4000, 4), "student.input.input"),
        ("student.layers.1.conv1.conv.style_inv", (1, 1, 5, 1, 1), "student.layers.1.conv1"),
        ("student.layers.0.up.idwt.g1_col", (1, 1, 3, 1), "student.layers.0.up.idwt"),
        ("style_mean", (1, 3), "style_mean"),
        ("mapping_net.layers.2.bias", (3,), r"mapping\.1\.bias"),
    ):
        with pytest.raises(CorruptFileError, match=word):
            generator_of(FAMILY.read(changed(name, torch.ones(shape)), {}))


@pytest.mark.parametrize(
    "name", ["stylegan2-ada/cond32", "rosinality-stylegan2/old16", "studiogan/C-BigGAN64"]
)
def test_files_of_other_families_are_objected_to(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint)


def test_options_choose_how_is_drawn() -> None:
    for nonsense in ("nonsense", "class_weights"):
        with pytest.raises(InputError, match=nonsense):
            FAMILY.check_options({nonsense: 1})
    generator = tiny()
    latents = generator.sample(BOTH)
    network = generator.network
    assert isinstance(network, MobileStyleGAN)
    ws = latents.values[:, None].expand(-1, network.n_layers, -1)
    const, random, none = (network.draw(ws, noise)[0] for noise in ("const", "random", "none"))
    assert_close(const, generator(latents))
    assert not torch.allclose(const, random)
    assert not torch.allclose(const, none)


def test_sizes_and_channels_that_cannot_be_drawn_are_refused() -> None:
    with pytest.raises(InputError, match="multiples of 4"):
        MobileStyleGANConfig(size=(18, 16), channels=(8, 8))
    with pytest.raises(InputError, match="multiples of 4"):
        MobileStyleGANConfig(size=(16, 16), channels=(6, 8))


def test_inverse_wavelet_undoes_the_haar_transform() -> None:
    x = torch.randn(2, 5, 6, 8)
    corners = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    a, b, c, d = (corner / 2 for corner in corners)
    low, vertical, horizontal, both = a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d
    high = torch.stack([vertical, horizontal, both], dim=2).flatten(1, 2)
    torch.testing.assert_close(inverse_wavelet(torch.cat([low, high], dim=1), haar()), x)


def test_the_published_configuration_draws_its_size() -> None:
    with torch.device("meta"):
        network = FAMILY.build(FAMILY.published["mobilestylegan-ffhq-1024"])
        assert isinstance(network, MobileStyleGAN)
        image, features = network.draw(torch.empty(1, network.n_layers, 512), "const")
    assert image.shape == (1, 3, 1024, 1024)
    assert tuple(activations.shape[1] for activations in features) == network.feature_channels
