"""DCGAN against what the official network computes, and its reader."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latentseg.errors import CorruptFileError
from latentseg.generators.families.dcgan import DCGAN, FAMILY
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, HasFeatures, HasVariants, Latents
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import assert_close, cases, golden

CASE = golden("dcgan/rgb64")


def opened(path: Path) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(open_checkpoint(path), {})
    info = GeneratorInfo("tiny", imported.config.size, (), 0, "", "MIT", "test", "", FAMILY.name)
    return FAMILY.generator(imported, info, path)


def trunk(*widths: int, n_colours: int, kernel: int = 4, has_bias: bool = False) -> nn.Sequential:
    """A generator as the official example writes it, with statistics that count."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for index, (fewer, width) in enumerate(zip(widths, [*widths[1:], n_colours], strict=True)):
        shape = (4, 2, 1) if index else (kernel, 1, 0)
        layers.append(nn.ConvTranspose2d(fewer, width, *shape, bias=has_bias))
        layers += [nn.BatchNorm2d(width), nn.ReLU()]
    network = nn.Sequential(*layers[:-2], nn.Tanh())
    for _ in range(3):
        network(torch.randn(16, widths[0], 1, 1))
    for layer in network:
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    return network.eval()


def saved(network: nn.Sequential, folder: Path) -> Path:
    state = {f"main.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save(state, folder / "netG.pth")
    return folder / "netG.pth"


def altered(folder: Path, name: str, value: Tensor | None) -> Path:
    """The checkpoint with one parameter replaced or, for None, left out."""
    state = torch.load(CASE.path, weights_only=True)
    del state[name]
    torch.save(state if value is None else {**state, name: value}, folder / "netG.pth")
    return folder / "netG.pth"


def test_all_golden_cases_are_there() -> None:
    assert cases("dcgan") == ["dcgan/rgb64"]


def test_golden_tensors_are_reproduced() -> None:
    generator, expected = opened(CASE.path), dict(CASE.expected)
    assert isinstance(generator, HasFeatures)
    assert isinstance(generator.network, DCGAN)
    latents = Latents(expected.pop("z").flatten(1))
    assert_close(generator(latents), expected.pop("image"))
    features = generator.features(latents)
    assert_close(features[0], expected.pop("features.main.2"))
    # This one is before the ReLU: the batch normalisation that is folded into the convolution.
    before = generator.network.layers[2](features[1])
    assert_close(before, expected["features.main.7"])
    assert_close(features[2], F.relu(expected.pop("features.main.7")))
    assert not expected


def test_saved_folder_draws_the_same(tmp_path: Path) -> None:
    generator = opened(CASE.path)
    save_generator(generator, tmp_path, card="", origin={})
    again, latents = load_folder(tmp_path), generator.sample(torch.arange(2))
    torch.testing.assert_close(again(latents), generator(latents))


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("widths", "kernel", "size"),
    [((6, 8, 8), 4, 16), ((6, 8), 7, 14), ((6, 8, 8, 8, 8, 8), 4, 128)],
)
@pytest.mark.parametrize("n_colours", [1, 3])
def test_other_depths_and_colours_equal_the_official_layers(
    widths: tuple[int, ...],
    kernel: int,
    size: int,
    n_colours: int,
    has_bias: bool,
    tmp_path: Path,
) -> None:
    network = trunk(*widths, n_colours=n_colours, kernel=kernel, has_bias=has_bias)
    generator = opened(saved(network, tmp_path))
    latents = generator.sample(torch.arange(2))
    assert generator.info.size == (size, size)
    assert generator.info.latent == (6,)
    assert_close(generator(latents), network(latents.values[..., None, None]).expand(-1, 3, -1, -1))
    assert not isinstance(generator, HasVariants)


def test_file_is_known_by_its_names() -> None:
    assert FAMILY.objection(CASE.checkpoint) is None
    parallel = {f"module.{name}": x for name, x in CASE.checkpoint.tree.items()}
    assert FAMILY.objection(replace(CASE.checkpoint, tree=parallel)) is None


@pytest.mark.parametrize(
    "name", ["progan/scales3", "stylegan1/lernapparat32", "studiogan/A-GGAN64"]
)
def test_other_files_are_objected_to(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint) == "no parameter 'main.0.weight'"


def test_discriminator_is_objected_to(tmp_path: Path) -> None:
    layers = [nn.Conv2d(3, 8, 4), nn.LeakyReLU(), nn.Conv2d(8, 8, 4), nn.BatchNorm2d(8)]
    checkpoint = open_checkpoint(saved(nn.Sequential(*layers), tmp_path))
    assert FAMILY.objection(checkpoint) == "no parameter 'main.1.running_mean'"


def test_file_with_more_than_a_generator_is_objected_to() -> None:
    tree = {**CASE.checkpoint.tree, "head.weight": CASE.checkpoint.tree["main.0.weight"]}
    objection = FAMILY.objection(replace(CASE.checkpoint, tree=tree))
    assert objection == "unknown parameter 'head.weight'"


@pytest.mark.parametrize("name", ["main.1.bias", "main.4.running_var", "main.7.weight"])
def test_missing_or_misshapen_parameter_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=re.escape(f"{name!r} is missing")):
        opened(altered(tmp_path, name, None))
    with pytest.raises(CorruptFileError, match=re.escape(f"{name!r} has shape (5,)")):
        opened(altered(tmp_path, name, torch.ones(5)))


def test_missing_or_misshapen_layer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"'main\.3\.weight' is missing"):
        opened(altered(tmp_path, "main.3.weight", None))
    path = altered(tmp_path, "main.3.weight", torch.ones(31, 16, 4, 4))
    with pytest.raises(CorruptFileError, match=r"'main\.3\.weight' .* expected \(32, any, 4, 4\)"):
        opened(path)


def test_kernel_of_unknown_stride_is_refused(tmp_path: Path) -> None:
    path = altered(tmp_path, "main.6.weight", torch.ones(16, 8, 3, 3))
    with pytest.raises(CorruptFileError, match=r"'main\.6\.weight' .* expected \(16, any, 4, 4\)"):
        opened(path)


def test_other_numbers_of_colours_are_refused(tmp_path: Path) -> None:
    path = altered(tmp_path, "main.12.weight", torch.ones(4, 2, 4, 4))
    with pytest.raises(CorruptFileError, match="1 or 3 colours"):
        opened(path)
