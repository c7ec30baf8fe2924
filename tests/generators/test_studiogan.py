"""StudioGAN against what its official networks compute, and its own promises."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators import load_generator
from latentseg.generators.families import studiogan
from latentseg.generators.families.studiogan import (
    FAMILY,
    StudioGANConfig,
    objection,
)
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.noise_generator import LayeredNoiseGenerator, NoiseGenerator
from latentseg.generators.priors import Prior
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.seeds import derive_seeds
from latentseg.weights.containers import Checkpoint
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_studiogan import TINY

CASES = cases("studiogan")
OTHERS = [
    "biggan/ajbrock32",
    "selfcond/selfcond64",
    "mobilestylegan/tiny32",
    "stylegan2-ada/cond32",
]


def opened(checkpoint: Checkpoint, options: Mapping[str, Any]) -> SavedGenerator:
    imported = FAMILY.read(checkpoint, options)
    info = GeneratorInfo(
        name="golden",
        size=imported.config.size,
        latent=(),
        n_classes=imported.config.n_classes,
        space="",
        licence="none",
        source="golden",
        sha256="",
        family="studiogan",
    )
    return FAMILY.generator(imported, info, checkpoint.path)


def latents(case: Case, generator: SavedGenerator) -> Latents:
    labels = case.expected["labels"] if generator.info.n_classes else None
    return Latents(case.expected["z"], labels)


def changed(name: str, tmp_path: Path, **tensors: Tensor | None) -> Path:
    """The file of a case with other parameters; None leaves one out."""
    content = torch.load(golden(name).path, weights_only=True)
    state = {key: value for key, value in content["state_dict"].items() if key not in tensors}
    state |= {key: value for key, value in tensors.items() if value is not None}
    path = tmp_path / "model=G-best-weights-step=1.pth"
    torch.save({"state_dict": state}, path)
    return path


def test_all_golden_cases_are_there() -> None:
    assert len(CASES) == 14


@pytest.mark.parametrize("name", CASES)
def test_images_and_features_equal_the_official_ones(name: str) -> None:
    case = golden(name)
    assert objection(case.checkpoint) is None
    generator = opened(case.checkpoint, {})
    given = latents(case, generator)
    assert isinstance(generator, LayeredNoiseGenerator | NoiseGenerator)
    assert_close(generator(given), case.expected["image"])
    features = generator.features(given)
    names = [key for key in case.expected if key.startswith("features.")]
    assert len(names) == 2
    for key in names:
        index = int(key.split(".")[2])  # features.blocks.INDEX.0
        assert_close(features[index][:1], case.expected[key])


@pytest.mark.parametrize("name", CASES)
def test_configuration_is_read_from_the_keys(name: str) -> None:
    case = golden(name)
    config = opened(case.checkpoint, {}).network.config
    assert isinstance(config, StudioGANConfig)
    given = case.card["arguments"]
    is_conditional = "GGAN" not in name
    assert config.size == (given["img_size"],) * 2
    assert config.z_dim == given["z_dim"]
    assert config.n_classes == (given["num_classes"] if is_conditional else 0)
    assert config.channels[-1] == given["g_conv_dim"]
    assert config.architecture == case.card["class"].split(".")[1]


@pytest.mark.parametrize("name", CASES)
def test_saved_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    case = golden(name)
    generator = opened(case.checkpoint, {})
    save_generator(generator, tmp_path, card="card", origin={})
    given = latents(case, generator)
    torch.testing.assert_close(load_folder(tmp_path)(given), generator(given))


@pytest.mark.parametrize("name", OTHERS)
def test_files_of_other_families_are_refused(name: str) -> None:
    assert objection(golden(name).checkpoint)


@pytest.mark.parametrize(
    ("added", "reason"),
    [
        ("synthesis.b4.const", "StyleGAN"),
        ("blocks.0.0.conv2d3.weight", "big_resnet_deep"),
        ("info_mix_linear.weight", "InfoGAN"),
    ],
)
def test_other_networks_of_studiogan_are_refused_by_name(
    added: str, reason: str, tmp_path: Path
) -> None:
    path = changed("studiogan/C-GGAN64", tmp_path, **{added: torch.zeros(1)})
    with pytest.raises(InputError, match=reason):
        load_generator(f"studiogan:{path}")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("A-SAGAN64", "blocks.1.0.conv2d2.weight_u"),
        ("A-SAGAN64", "blocks.1.0.conv2d1.weight_orig"),
        ("A-SAGAN64", "blocks.4.0.bn1.bn.running_mean"),
        ("C-BigGAN64", "blocks.0.0.bn1.gain.weight_orig"),
        ("C-GGAN64", "bn4.bias"),
    ],
)
def test_missing_or_misshaped_parameter_is_named(name: str, key: str, tmp_path: Path) -> None:
    named = key.removesuffix("_orig").replace(".", r"\.")
    for tensor in (None, torch.zeros(1, 1, 7)):
        path = changed(f"studiogan/{name}", tmp_path, **{key: tensor})
        with pytest.raises(CorruptFileError, match=named):
            load_generator(f"studiogan:{path}", device="cpu")


def test_parameters_of_other_parts_are_left_out(tmp_path: Path) -> None:
    case = golden("studiogan/C-GGAN64")
    path = changed("studiogan/C-GGAN64", tmp_path, **{"shared.weight": torch.zeros(3, 4)})
    generator = load_generator(f"studiogan:{path}", device="cpu")
    assert_close(generator(Latents(case.expected["z"])), case.expected["image"])


def test_what_the_file_does_not_say_is_noted() -> None:
    notes = FAMILY.read(golden("studiogan/A-SNGAN64").checkpoint, {}).notes
    assert [word in note for word, note in zip(("ReLU", "normal"), notes, strict=True)] == [
        True
    ] * 2


def test_file_that_fits_two_architectures_is_noted_and_read_as_the_option_says() -> None:
    checkpoint = golden("studiogan/C-SNGAN64").checkpoint  # 10 classes, z of 10
    assert "option architecture" in FAMILY.read(checkpoint, {}).notes[-1]
    imported = FAMILY.read(checkpoint, {"architecture": "big_resnet"})
    assert len(imported.notes) == 2
    assert (imported.config.n_classes, imported.config.z_dim) == (0, 50)
    opened(checkpoint, {"architecture": "big_resnet"})
    with pytest.raises(
        InputError, match="`architecture`: the parameters are of a resnet, found 'big_resnet'"
    ):
        FAMILY.read(golden("studiogan/C-SAGAN64").checkpoint, {"architecture": "big_resnet"})


@pytest.mark.parametrize("statistics", ["batch", "moving"])
def test_unknown_statistics_are_refused_and_named(statistics: str) -> None:
    with pytest.raises(InputError, match=rf"`statistics`: .*{statistics}"):
        FAMILY.read(golden("studiogan/C-GGAN64").checkpoint, {"statistics": statistics})


def test_standing_statistics_are_those_of_the_images_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(studiogan, "STANDING", (3, 8))
    checkpoint = golden("studiogan/A-GGAN64").checkpoint
    running = FAMILY.read(checkpoint, {})
    standing = FAMILY.read(checkpoint, {"statistics": "standing"})
    again = FAMILY.read(checkpoint, {"statistics": "standing"}).weights
    assert all(torch.equal(tensor, again[name]) for name, tensor in standing.weights.items())
    for name, tensor in standing.weights.items():
        is_statistic = "running" in name or "tracked" in name
        assert torch.equal(tensor, running.weights[name]) != is_statistic
    # The first norm sees the output of the linear layer.
    seeds = derive_seeds(np.arange(3)[:, None], np.arange(8)).flatten()
    z, _ = Prior((running.config.z_dim,)).draw(seeds)
    weight, bias = running.weights["linear0.weight"], running.weights["linear0.bias"]
    seen = (z @ weight.T + bias).unflatten(1, (-1, 16)).mean(dim=(0, 2))
    torch.testing.assert_close(standing.weights["blocks.0.0.bn1.running_mean"], seen)


def test_truncation_cuts_z_off_and_keeps_its_scale() -> None:
    case = golden("studiogan/C-BigGAN64")
    generator = load_generator(f"studiogan:{case.path}", device="cpu", options={"truncation": 0.5})
    z = generator.sample(torch.arange(300)).values
    assert z.abs().max() <= 0.5
    assert z.abs().max() > 0.49


def test_classes_are_drawn_by_their_weights() -> None:
    case = golden("studiogan/C-BigGAN64")
    weights = (0, 1, 0, 3, 0, 0, 0, 0, 0)
    generator = load_generator(
        f"studiogan:{case.path}", device="cpu", options={"class_weights": weights}
    )
    labels = generator.sample(torch.arange(100)).labels
    assert labels is not None
    assert set(labels.tolist()) == {1, 3}


def test_unconditional_resnet_has_no_variants() -> None:
    assert {name: isinstance(make(), LayeredNoiseGenerator) for name, make in TINY.items()} == {
        "studiogan, resnet": False,
        "studiogan, resnet, conditional": True,
        "studiogan, big_resnet": True,
        "studiogan, big_resnet, conditional": True,
    }


@pytest.mark.parametrize("name", ["studiogan, resnet, conditional", "studiogan, big_resnet"])
def test_variants_of_all_layers_are_the_images_of_the_seeds(name: str) -> None:
    generator = TINY[name]()
    assert isinstance(generator, LayeredNoiseGenerator)
    seeds = torch.arange(3)
    x = generator.variants(generator.sample(torch.tensor([7])), seeds, keep=0)
    torch.testing.assert_close(x[0], generator(generator.sample(seeds)), atol=1e-5, rtol=1e-5)


def test_another_class_in_late_blocks_keeps_the_coarse_features() -> None:
    generator = TINY["studiogan, resnet, conditional"]()
    network = generator.network
    z = generator.sample(torch.arange(1)).values
    own, other = (network.conditions(z, torch.tensor([label])) for label in (0, 1))  # pyright: ignore[reportCallIssue]
    mixed = torch.cat([own[:, :2], other[:, 2:]], dim=1)
    features, mixed_features = (network.synthesis(rows)[1] for rows in (own, mixed))  # pyright: ignore[reportCallIssue]
    assert torch.equal(features[0], mixed_features[0])
    assert not torch.allclose(features[-1], mixed_features[-1])


def test_classes_must_be_given_to_a_conditional_network() -> None:
    with pytest.raises(InputError, match="class labels"):
        TINY["studiogan, resnet, conditional"]()(Latents(torch.zeros(1, 6)))


@pytest.mark.parametrize(
    "fields", [{"architecture": "deep_conv"}, {"architecture": "big_resnet", "z_dim": 7}]
)
def test_configuration_of_no_network_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(
        InputError, match=r"`architecture`: .* found 'deep_conv'|`z_dim`: .* found 7"
    ):
        StudioGANConfig(**{"architecture": "resnet", "channels": (4, 2), "z_dim": 4, **fields})


@pytest.mark.parametrize("name", FAMILY.published)
def test_published_configurations_are_those_of_their_names(name: str) -> None:
    config = FAMILY.published[name]
    assert config.size == ((128, 128) if name.endswith("128") else (64, 64))
    with torch.device("meta"):
        assert FAMILY.build(config).config == config
