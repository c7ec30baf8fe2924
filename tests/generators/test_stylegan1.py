"""StyleGAN against what the official ports compute, and the options of its readers."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan1 import StyleGAN1, StyleGAN1Config
from latentseg.generators.families.stylegan1_files import FAMILY
from latentseg.generators.family import Imported
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_stylegan1 import tiny

CASES = cases("stylegan1")
LERNAPPARAT = golden("stylegan1/lernapparat32")
ROSINALITY = golden("stylegan1/rosinality32")


def imported(path: Path, **options: Any) -> Imported:
    """As `registry.import_checkpoint` reads it."""
    found = FAMILY.read(open_checkpoint(path), options)
    return replace(found, sampling=FAMILY.sampling(found.sampling, options))


def opened(path: Path, **options: Any) -> StyleGenerator:
    found = imported(path, **options)
    info = GeneratorInfo("tiny", found.config.size, (), 0, "", "MIT", "test", "", FAMILY.name)
    generator = FAMILY.generator(found, info, path)
    assert isinstance(generator, StyleGenerator)
    return generator


def with_given_noise(case: Case, **options: Any) -> StyleGenerator:
    """The generator of a case with its noise maps, and zeros where it has none."""
    if "step" in case.card["arguments"]:
        options["size"] = 4 * 2 ** case.card["arguments"]["step"]
    generator = opened(case.path, **options)
    found = {name: x for name, x in case.expected.items() if name.startswith("noise.")}
    assert isinstance(generator.network, StyleGAN1)
    synthesis, index = generator.network.synthesis, 0
    for block in range(synthesis.n_blocks):
        maps = synthesis.get_buffer(f"block{block}.noise_const")
        for given in maps:
            given.copy_(found.pop(f"noise.{index}", torch.zeros(1, 1, *given.shape))[0, 0])
            index += 1
    assert not found
    return generator


def rows(w: Tensor, generator: StyleGenerator) -> Tensor:
    """Styles (B, w_dim), one for each layer."""
    return w[:, None].repeat(1, generator.n_layers, 1)


def sampled(generator: StyleGenerator, z: Tensor) -> Tensor:
    """What is drawn where the noise happens to be `z`, (1, z_dim)."""
    generator.prior = replace(generator.prior, bank=z)
    return generator.sample(torch.arange(1)).values


def altered(path: Path, folder: Path, name: str, value: Tensor | None) -> Path:
    """The checkpoint with one parameter replaced or, for None, left out."""
    state = torch.load(path, weights_only=True)
    flat = state.get("g_running", state)
    assert name in flat
    flat.pop(name)
    if value is not None:
        flat[name] = value
    torch.save(state, folder / path.name)
    return folder / path.name


def test_all_golden_cases_are_there() -> None:
    assert [name.partition("/")[2] for name in CASES] == [
        "lernapparat128",
        "lernapparat32",
        "rosinality128",
        "rosinality32",
    ]


@pytest.mark.parametrize("name", CASES)
def test_golden_tensors_are_reproduced(name: str) -> None:
    case = golden(name)
    generator, expected = with_given_noise(case, psi=1.0, cutoff=None), dict(case.expected)
    network = generator.network
    w = network.style(expected.pop("z"), None)
    assert_close(w, expected.pop("w"))
    assert_close(generator(Latents(w)), expected.pop("image"))
    features = generator.features(Latents(w))
    for key in [key for key in expected if key.startswith("features.")]:
        index = int(key.rpartition(".")[2])
        # Per block the output, and the last convolution alone; rosinality's case has the outputs.
        index = index if "results" in key else 2 * index
        assert_close(features[index], expected.pop(key))
    if "image.mixed" in expected:
        ws = rows(w[:1], generator)
        ws[:, :4] = w[1]
        assert_close(generator(Latents(ws)), expected.pop("image.mixed"))
    left = {key for key in expected if not key.startswith("noise.")}
    assert left <= {"ws", "ws.psi0.7.cutoff", "image.psi0.7.cutoff", "image.psi0.7", "mean_style"}


@pytest.mark.parametrize("name", [name for name in CASES if "lernapparat" in name])
def test_golden_truncation_of_datasetgan_is_reproduced(name: str) -> None:
    case = golden(name)
    truncation = case.card["arguments"]["truncation"]
    generator = with_given_noise(case, psi=truncation["threshold"], cutoff=truncation["max_layer"])
    n_layers, expected = generator.n_layers, case.expected
    # The official rows are 18 at any size; those beyond the last layer are never used.
    w = generator.network.style(expected["z"], None)
    assert_close(rows(w, generator), expected["ws"][:, :n_layers])
    ws = torch.cat([sampled(generator, z) for z in expected["z"].split(1)])
    assert_close(ws, expected["ws.psi0.7.cutoff"][:, :n_layers])
    if "image.psi0.7.cutoff" in expected:
        assert_close(generator(Latents(ws)), expected["image.psi0.7.cutoff"])


def test_golden_truncation_of_rosinality_is_reproduced() -> None:
    generator, expected = with_given_noise(ROSINALITY, psi=0.7), ROSINALITY.expected
    generator.network.centre(None).copy_(expected["mean_style"][0])
    w = torch.cat([sampled(generator, z) for z in expected["z"].split(1)])
    assert_close(generator(Latents(w)), expected["image.psi0.7"])


@pytest.mark.parametrize("name", CASES)
def test_saved_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    generator = with_given_noise(golden(name))
    save_generator(generator, tmp_path, card="", origin={})
    again, latents = load_folder(tmp_path), generator.sample(torch.arange(1))
    assert torch.equal(again.sample(torch.arange(1)).values, latents.values)
    torch.testing.assert_close(again(latents), generator(latents))


@pytest.mark.parametrize("name", CASES)
def test_files_are_known_by_their_names(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint) is None


@pytest.mark.parametrize("name", ["dcgan/rgb64", "progan/scales3", "stylegan2-ada/uncond32"])
def test_other_files_are_objected_to(name: str) -> None:
    objection = FAMILY.objection(golden(name).checkpoint)
    assert objection is not None
    assert "progression.0" in objection


@pytest.mark.parametrize(
    ("case", "name"),
    [
        (LERNAPPARAT, "g_synthesis.blocks.8x8.conv0_up.weight"),
        (LERNAPPARAT, "g_mapping.dense0.weight"),
        (LERNAPPARAT, "g_synthesis.torgb.bias"),
        (ROSINALITY, "generator.progression.1.conv1.1.conv.weight_orig"),
        (ROSINALITY, "style.1.linear.bias"),
        (ROSINALITY, "generator.progression.0.noise1.weight_orig"),
    ],
)
def test_missing_or_misshapen_parameter_is_named(case: Case, name: str, tmp_path: Path) -> None:
    options = {"size": 8} if case is ROSINALITY else {}
    with pytest.raises(CorruptFileError, match=re.escape(f"{name!r} is missing")):
        opened(altered(case.path, tmp_path, name, None), **options)
    with pytest.raises(CorruptFileError, match=re.escape(f"{name!r} has shape (2, 2, 2)")):
        opened(altered(case.path, tmp_path, name, torch.ones(2, 2, 2)), **options)


def test_channels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    name = "g_synthesis.blocks.8x8.conv1.weight"
    path = altered(LERNAPPARAT.path, tmp_path, name, torch.ones(16, 3, 3, 3))
    with pytest.raises(CorruptFileError, match=r"block1\.conv2\.weight' has shape \(16, 3, 3, 3\)"):
        opened(path)


def test_another_blur_is_refused(tmp_path: Path) -> None:
    name = "g_synthesis.blocks.8x8.conv0_up.intermediate.kernel"
    path = altered(LERNAPPARAT.path, tmp_path, name, torch.full((1, 1, 3, 3), 1 / 9))
    with pytest.raises(CorruptFileError, match=r"kernel' is not the blur \(1, 2, 1\)"):
        opened(path)


def test_claim_of_a_giant_image_is_refused(tmp_path: Path) -> None:
    state = torch.load(LERNAPPARAT.path, weights_only=True)
    for index in range(40):
        side = 4 * 2**index
        state[f"g_synthesis.blocks.{side}x{side}.epi1.top_epi.noise.weight"] = torch.ones(1)
    torch.save(state, tmp_path / "giant.pt")
    with pytest.raises(CorruptFileError, match=r"has 40 parameters .* expected 1 to 9"):
        opened(tmp_path / "giant.pt")


def test_size_is_what_was_trained(tmp_path: Path) -> None:
    state = torch.load(ROSINALITY.path, weights_only=True)["g_running"]
    for block in range(3, 9):
        state[f"generator.progression.{block}.noise1.weight_orig"].zero_()
    torch.save(state, tmp_path / "100000.model")
    found = imported(tmp_path / "100000.model")
    assert found.config.size == (16, 16)
    assert any("16 px" in note for note in found.notes)
    assert imported(tmp_path / "100000.model", size=8).config.size == (8, 8)
    for block in range(3):
        state[f"generator.progression.{block}.noise1.weight_orig"].zero_()
    torch.save(state, tmp_path / "untrained.model")
    with pytest.raises(InputError, match="give `size`"):
        opened(tmp_path / "untrained.model")


def test_size_is_what_the_name_of_the_file_says() -> None:
    assert imported(golden("stylegan1/rosinality128").path).config.size == (128, 128)


@pytest.mark.parametrize("size", [2048, 33, "large"])
def test_size_of_nonsense_is_refused(size: Any) -> None:
    with pytest.raises(InputError, match="expected one of"):
        opened(ROSINALITY.path, size=size)


def test_options_of_the_other_layout_are_refused() -> None:
    with pytest.raises(InputError, match="`size`: an option of rosinality's files only"):
        opened(LERNAPPARAT.path, size=32)
    with pytest.raises(InputError, match="`average`: not an option"):
        opened(ROSINALITY.path, average="mean.npy")


def test_mean_style_beside_the_file_is_taken_else_measured(tmp_path: Path) -> None:
    path = tmp_path / "alone.pt"
    shutil.copy(LERNAPPARAT.path, path)
    measured = imported(path).weights["mapping.w_avg"]
    mean = torch.linspace(-1, 1, len(measured)).numpy()
    np.save(tmp_path / "elsewhere.npy", np.tile(mean, (18, 1)))
    given = imported(path, average=str(tmp_path / "elsewhere.npy"))
    assert torch.equal(given.weights["mapping.w_avg"], torch.from_numpy(mean))
    shutil.copy(tmp_path / "elsewhere.npy", tmp_path / "avg_latent_stylegan1.npy")
    found = imported(path)
    assert torch.equal(found.weights["mapping.w_avg"], torch.from_numpy(mean))
    assert any("avg_latent_stylegan1.npy" in note for note in found.notes)
    np.save(tmp_path / "average_latent.npy", mean)
    with pytest.raises(InputError, match="say with `average`"):
        opened(path)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((18, 7), np.float32), "has shape"),
        (np.arange(40, dtype=np.float32).reshape(2, 20), "its 2 rows differ"),
        (np.array([{}], dtype=object), "Python objects"),
    ],
)
def test_mean_style_of_nonsense_is_refused(array: np.ndarray, message: str, tmp_path: Path) -> None:
    np.save(tmp_path / "average.npy", array, allow_pickle=True)
    with pytest.raises((InputError, CorruptFileError), match=message):
        opened(LERNAPPARAT.path, average=str(tmp_path / "average.npy"))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY\x01\x00\x10\x00{}"])
def test_mean_style_in_a_damaged_file_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "average.npy").write_bytes(content)
    with pytest.raises(CorruptFileError, match=r"not a complete \.npy"):
        opened(LERNAPPARAT.path, average=str(tmp_path / "average.npy"))


def test_measured_mean_is_that_of_styles() -> None:
    generator = opened(ROSINALITY.path, size=8)
    z = torch.randn(
        4000, generator.network.config.z_dim, generator=torch.Generator().manual_seed(1)
    )
    w = generator.network.style(z, None)
    error = (w.mean(dim=0) - generator.network.centre(None)) / w.std(dim=0)
    assert error.abs().max() < 0.1


def test_layers_of_datasetgan_are_truncated_by_size() -> None:
    assert imported(LERNAPPARAT.path).sampling.cutoff == 8
    assert imported(LERNAPPARAT.path, cutoff=3).sampling.cutoff == 3
    assert imported(ROSINALITY.path, size=8).sampling.cutoff is None
    assert imported(ROSINALITY.path, size=8).sampling.psi == 0.7


@pytest.mark.parametrize("is_rosinality", [True, False])
def test_noise_is_what_was_chosen(is_rosinality: bool) -> None:
    generator = tiny(is_rosinality=is_rosinality)
    network = generator.network
    assert isinstance(network, StyleGAN1)
    ws = torch.randn(2, network.n_layers, 6)
    const, none = network.draw(ws, "const")[0], network.draw(ws, "none")[0]
    assert torch.equal(const, network.draw(ws, "const")[0])
    assert not torch.allclose(const, none)
    assert not torch.equal(network.draw(ws, "random")[0], network.draw(ws, "random")[0])
    assert not torch.equal(*network.draw(ws[:1].repeat(2, 1, 1), "random")[0])


def test_size_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(InputError, match="multiples of 4"):
        StyleGAN1Config(size=(18, 16), channels=(8, 8, 8))
