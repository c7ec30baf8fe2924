"""BigGAN against what the official network computes, and its own promises."""

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.biggan import (
    FAMILY,
    BigGAN,
    BigGANConfig,
    normalised,
    upsampled_conv,
)
from latentseg.generators.family import Options, SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_biggan import tiny

INFO = GeneratorInfo("tiny", (0, 0), (), 0, "", "MIT", "test", "", FAMILY.name)
CASES = cases("biggan")


def opened(path: Path, options: Options | None = None) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(open_checkpoint(path), options or {})
    info = replace(INFO, size=imported.config.size, n_classes=imported.config.n_classes)
    return FAMILY.generator(imported, info, path)


def network_of(case: Case, options: Options | None = None) -> BigGAN:
    network = opened(case.path, options).network
    assert isinstance(network, BigGAN)
    return network


def altered(path: Path, folder: Path, changes: Mapping[str, Tensor | None]) -> Path:
    """The checkpoint with parameters replaced or, for None, left out."""
    state = {**torch.load(path, weights_only=True), **changes}
    kept = {name: tensor for name, tensor in state.items() if tensor is not None}
    torch.save(kept, folder / path.name)
    return folder / path.name


def test_all_golden_cases_are_there() -> None:
    assert CASES == ["biggan/ajbrock128", "biggan/ajbrock32"]


@pytest.mark.parametrize("name", CASES)
def test_golden_tensors_are_reproduced(name: str) -> None:
    case = golden(name)
    expected, network = dict(case.expected), network_of(case)
    z, labels = expected.pop("z"), expected.pop("labels")
    image, maps = network.draw(z, labels)
    assert_close(image, expected.pop("image"))
    embedding = network.shared(labels)
    assert_close(embedding, expected.pop("embedding"))
    if "image.mixed" in expected:
        mean = expected.pop("embedding.mean")
        assert_close(embedding.mean(dim=0).view_as(mean), mean)
        mixed = network.embedded_conditions(z[:1], mean.view(1, -1))
        assert_close(network.synthesis(mixed)[0], expected.pop("image.mixed"))
    names = [
        f"features.blocks.{i}.{j}"
        for i in range(len(network.blocks))
        for j in range(2 if i in network.config.attention else 1)
    ]
    for feature, activations in zip(names, maps, strict=True):
        if feature in expected:
            assert_close(activations[:1], expected.pop(feature))
    assert not expected


@pytest.mark.parametrize("name", CASES)
def test_converted_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    generator = opened(golden(name).path)
    save_generator(generator, tmp_path, card="", origin={})
    latents = generator.sample(torch.arange(2))
    torch.testing.assert_close(load_folder(tmp_path)(latents), generator(latents))


def test_only_biggan_files_are_accepted() -> None:
    for name in CASES:
        assert FAMILY.objection(golden(name).checkpoint) is None
    for name in ("studiogan/A-BigGAN64", "hf-biggan/deep32", "dcgan/rgb64"):
        assert "linear.weight" in (FAMILY.objection(golden(name).checkpoint) or "")
    assert "BigBiGAN" in (FAMILY.doubt(golden("bigbigan/bigbigan128").checkpoint) or "")


def test_configuration_beside_the_file_is_used(tmp_path: Path) -> None:
    source = golden("biggan/ajbrock32").path
    beside = source.with_name("state_dict_best0.pth")
    assert FAMILY.read(open_checkpoint(source), {}).notes == ()
    alone = Path(shutil.copy(source, tmp_path))
    notes = FAMILY.read(open_checkpoint(alone), {}).notes
    assert [note.split()[0] for note in notes] == ["bn_eps", "sn_eps"]
    config = {"BN_eps": 0.25, "SN_eps": 1e-6}
    torch.save({"config": config}, tmp_path / beside.name)
    imported = FAMILY.read(open_checkpoint(alone), {})
    assert (imported.config.bn_eps, imported.notes) == (0.25, ())
    assert FAMILY.read(open_checkpoint(alone), {"bn_eps": 0.5}).config.bn_eps == 0.5


def test_activation_other_than_relu_is_refused(tmp_path: Path) -> None:
    path = Path(shutil.copy(golden("biggan/ajbrock32").path, tmp_path))
    torch.save({"config": {"G_activation": nn.SiLU()}}, tmp_path / "state_dict_best0.pth")
    with pytest.raises(InputError, match="SiLU"):
        FAMILY.read(open_checkpoint(path), {})


def test_ports_from_tensorflow_are_known_by_what_they_lack(tmp_path: Path) -> None:
    state = torch.load(golden("biggan/ajbrock32").path, weights_only=True)
    path = tmp_path / "biggan-128.pth"
    torch.save({name: x for name, x in state.items() if not name.endswith("sv0")}, path)
    imported = FAMILY.read(open_checkpoint(path), {})
    assert imported.config.bn_eps == 1e-4
    assert all("TF Hub" in note for note in imported.notes)


@pytest.mark.parametrize("layer", ["stored", "running"])
def test_statistics_of_other_normalisation_layers_are_read(layer: str, tmp_path: Path) -> None:
    case = golden("biggan/ajbrock32")
    state = torch.load(case.path, weights_only=True)
    renamed = {name.replace("stored_", f"bn.{layer}_"): x for name, x in state.items()}
    renamed["blocks.0.0.bn1.bn.accumulation_counter"] = torch.zeros(1)
    renamed["output_layer.0.bn.num_batches_tracked"] = torch.tensor(3)
    torch.save(renamed, tmp_path / case.path.name)
    shutil.copy(case.path.with_name("state_dict_best0.pth"), tmp_path)
    network = opened(tmp_path / case.path.name).network
    assert isinstance(network, BigGAN)
    assert_close(
        network.draw(case.expected["z"], case.expected["labels"])[0], case.expected["image"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "linear.bias",
        "shared.weight",
        "blocks.1.0.conv2.weight",
        "blocks.0.0.bn1.gain.weight",
        "blocks.1.1.gamma",
        "blocks.2.0.conv1.u0",
        "output_layer.0.stored_var",
    ],
)
def test_missing_or_misshapen_parameter_is_named(name: str, tmp_path: Path) -> None:
    source = golden("biggan/ajbrock32").path
    for changed in (None, torch.ones(2, 3, 1), torch.zeros(0)):
        path = altered(source, tmp_path, {name: changed})
        with pytest.raises(CorruptFileError, match=name):
            opened(path)


def test_singular_vector_that_does_not_fit_is_named(tmp_path: Path) -> None:
    path = altered(golden("biggan/ajbrock32").path, tmp_path, {"linear.u0": torch.ones(1, 3)})
    with pytest.raises(CorruptFileError, match=r"linear\.u0.*linear\.weight"):
        opened(path)


def test_latent_that_is_not_hierarchical_is_refused(tmp_path: Path) -> None:
    source = golden("biggan/ajbrock32").path
    path = altered(source, tmp_path, {"linear.weight": torch.ones(320, 16)})
    with pytest.raises(CorruptFileError, match="hierarchical latent"):
        opened(path)


@pytest.mark.parametrize("option", ["bn_eps", "sn_eps"])
@pytest.mark.parametrize("value", ["much", -1, 0, float("nan"), [1]])
def test_nonsense_for_eps_is_refused(option: str, value: object) -> None:
    with pytest.raises(InputError, match=option):
        opened(golden("biggan/ajbrock32").path, {option: value})


def test_spectral_norm_is_one_step_from_the_stored_vector() -> None:
    weight, u = torch.randn(5, 4, 3, 3), torch.randn(1, 5)
    matrix = weight.flatten(1)
    v = F.normalize(u @ matrix)
    expected = weight / (F.normalize(v @ matrix.T) @ matrix @ v.T)
    torch.testing.assert_close(normalised(weight, u, 1e-6), expected)
    converged = weight / torch.linalg.matrix_norm(matrix, 2)
    assert not torch.allclose(expected, converged, rtol=1e-3)


@pytest.mark.parametrize("side", [5, 16, 17])
def test_upsampled_convolution_is_repeating_pixels_and_the_convolution(side: int) -> None:
    x, conv = torch.randn(2, 3, side, side), nn.Conv2d(3, 4, 3, padding=1)
    expected = conv(F.interpolate(x, scale_factor=2.0))
    torch.testing.assert_close(upsampled_conv(x, conv), expected, atol=1e-5, rtol=1e-5)


def test_class_changes_only_the_blocks_and_is_needed() -> None:
    network = tiny().network
    assert isinstance(network, BigGAN)
    z = torch.randn(1, 8).expand(2, -1)
    conditions = network.conditions(z, torch.tensor([0, 1]))
    first = conditions[:, 0].clone()
    swapped = torch.cat([first.flip(0)[:, None], conditions[:, 1:]], dim=1)
    assert torch.equal(network.synthesis(swapped)[0], network.synthesis(conditions)[0])
    assert not torch.equal(*network.synthesis(conditions)[0])
    with pytest.raises(InputError, match="class labels"):
        network.draw(z, None)


def test_published_networks_have_the_official_shape() -> None:
    sizes = {"biggan-128": (128, 120), "biggan-256": (256, 140), "biggan-512": (512, 128)}
    for name, (side, latent) in sizes.items():
        with torch.device("meta"):
            network = BigGAN(FAMILY.published[name])
        assert (network.config.size, network.latent) == ((side, side), (latent,))
    with torch.device("meta"):
        network = BigGAN(BigGANConfig())
    assert round(sum(p.numel() for p in network.parameters()) / 1e6, 1) == 70.4
