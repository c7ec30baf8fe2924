"""BigGAN-deep against what the official network computes, and its own promises."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.biggan_deep import FAMILY, BigGANDeep, BigGANDeepConfig, row_for
from latentseg.generators.family import Options, SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import assert_close, cases, golden

INFO = GeneratorInfo("tiny", (0, 0), (), 0, "", "MIT", "test", "", FAMILY.name)
CASE = "hf-biggan/deep32"


def opened(path: Path, options: Options | None = None) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(open_checkpoint(path), options or {})
    sampling = FAMILY.sampling(imported.sampling, options or {})
    info = replace(INFO, size=imported.config.size, n_classes=imported.config.n_classes)
    return FAMILY.generator(replace(imported, sampling=sampling), info, path)


def network_of(generator: SavedGenerator) -> BigGANDeep:
    assert isinstance(generator.network, BigGANDeep)
    return generator.network


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = golden(CASE).path.parent
    for name in ("config.json", "pytorch_model.bin"):
        shutil.copy(source / name, tmp_path / name)
    return tmp_path


def test_golden_tensors_are_reproduced() -> None:
    assert cases("hf-biggan") == [CASE]
    case = golden(CASE)
    expected, network = dict(case.expected), network_of(opened(case.path))
    z, labels = expected.pop("z"), expected.pop("onehot").argmax(dim=1)
    image, maps = network.draw(z, labels)
    assert_close(image, expected.pop("image"))
    for i in (1, 2):
        assert_close(maps[i][:1], expected.pop(f"features.generator.layers.{i}"))
    first = network.conditions(z, labels)[:1, 0]
    assert_close(network.generator.gen_z(first), expected.pop("features.generator.gen_z"))
    for truncation in ("0.43", "0.7", "1"):
        network = network_of(opened(case.path, {"truncation": float(truncation)}))
        image, _ = network.draw(z[:1], labels[:1])
        assert_close(image, expected.pop(f"image.truncation{truncation}"))
    assert not expected


def test_folder_and_renamed_files_are_read_as_the_weights_with_their_configuration(
    folder: Path,
) -> None:
    expected = golden(CASE).expected
    z, labels = expected["z"], expected["onehot"].argmax(dim=1)
    assert FAMILY.objection(open_checkpoint(folder)) is None
    assert_close(network_of(opened(folder)).draw(z, labels)[0], expected["image"])
    for name in ("config.json", "pytorch_model.bin"):
        (folder / name).rename(folder / f"biggan-deep-128-{name}")
    renamed = folder / "biggan-deep-128-pytorch_model.bin"
    assert FAMILY.objection(open_checkpoint(renamed)) is None
    assert_close(network_of(opened(renamed)).draw(z, labels)[0], expected["image"])
    assert "no config.json" in (FAMILY.objection(open_checkpoint(folder)) or "")


def test_only_biggan_deep_files_are_accepted(folder: Path) -> None:
    assert FAMILY.objection(golden(CASE).checkpoint) is None
    for name in ("biggan/ajbrock32", "studiogan/A-BigGAN64", "diffusers-ddim/uncond16"):
        assert FAMILY.objection(golden(name).checkpoint)
    (folder / "pytorch_model.bin").unlink()
    assert "pytorch_model.bin" in (FAMILY.objection(open_checkpoint(folder)) or "")
    (folder / "config.json").write_text("{}")
    assert "attention_layer_position" in (FAMILY.objection(open_checkpoint(folder)) or "")


def test_converted_folder_keeps_every_truncation(tmp_path: Path) -> None:
    path = golden(CASE).path
    save_generator(opened(path), tmp_path, card="", origin={})
    for options in ({}, {"truncation": 1.0}):
        imported, converted = opened(path, options), load_folder(tmp_path, options)
        latents, again = (each.sample(torch.arange(3)) for each in (imported, converted))
        assert torch.equal(latents.values, again.values)
        torch.testing.assert_close(converted(again), imported(latents))


def test_truncation_scales_latents_cut_off_at_two() -> None:
    seeds = torch.arange(500)
    wide = opened(golden(CASE).path, {"truncation": 1.0}).sample(seeds).values
    narrow = opened(golden(CASE).path).sample(seeds).values
    assert 1.9 < wide.abs().max() <= 2
    torch.testing.assert_close(narrow, 0.4 * wide)
    assert opened(golden(CASE).path).sampling.truncation == 0.4


@pytest.mark.parametrize(
    ("truncation", "exact", "fixed"),
    [
        (0.4, 0.4, 0.4),
        (1.0, 1.0, 1.0),
        (0.14, 0.16, 0.14),
        (0.28, 0.3, 0.28),
        (0.56, 0.58, 0.56),
        (0.58, 0.56, 0.58),
        (0.94, 0.92, 0.94),
        (0.405, 0.415, 0.405),
        (0.43, 0.43, 0.43),
    ],
)
def test_rows_of_statistics_are_the_official_ones_or_the_right_ones(
    truncation: float, exact: float, fixed: float
) -> None:
    statistics = torch.linspace(0, 1, 51, dtype=torch.float64)[:, None]  # of truncation t: t
    for rows, expected in (("exact", exact), ("fixed", fixed)):
        found = row_for(truncation, 51, rows).of(statistics)
        torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float64))


def test_option_rows_changes_images_between_rows_only() -> None:
    path = golden(CASE).path
    for truncation, is_same in ((0.4, True), (0.405, False)):
        exact, fixed = (
            opened(path, {"truncation": truncation, "rows": rows}) for rows in ("exact", "fixed")
        )
        latents = exact.sample(torch.arange(2))
        assert torch.equal(exact(latents), fixed(latents)) == is_same
    with pytest.raises(InputError, match=r"`rows`: expected one of .* found 'best'"):
        opened(path, {"rows": "best"})


@pytest.mark.parametrize(
    "name",
    [
        "embeddings.weight",
        "generator.gen_z.weight",
        "generator.layers.0.bn_1.running_vars",
        "generator.layers.3.conv_2.weight",
        "generator.layers.2.gamma",
        "generator.conv_to_rgb.bias",
    ],
)
def test_missing_or_misshapen_parameter_is_named(name: str, folder: Path) -> None:
    path = folder / "pytorch_model.bin"
    state = torch.load(path, weights_only=True)
    key = f"{name}_orig" if f"{name}_orig" in state else name
    for changed in (None, torch.ones(5, 7), torch.tensor(1.0).expand(9, 2, 1).clone()):
        kept = {k: v for k, v in state.items() if k != key}
        torch.save(kept if changed is None else {**kept, key: changed}, path)
        with pytest.raises(CorruptFileError, match=name):
            opened(path)


def test_missing_singular_vector_is_named(folder: Path) -> None:
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    del state["generator.gen_z.weight_v"]
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(CorruptFileError, match=r"generator\.gen_z\.weight_v"):
        opened(folder)


def test_weights_without_configuration_are_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        opened(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("layers", 5),
        ("layers", []),
        ("layers", [[True, 16, 5]]),
        ("layers", [[1, 16, 8]]),
        ("output_dim", 64),
        ("n_stats", 1),
        ("eps", "small"),
        ("num_classes", -3),
        ("colour", 1),
    ],
)
def test_nonsense_in_the_configuration_is_named(field: str, value: object, folder: Path) -> None:
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, field: value}))
    with pytest.raises(InputError, match=field if value != [] else "output_dim|layers"):
        opened(folder)


def test_class_is_needed() -> None:
    with pytest.raises(InputError, match="class labels"):
        network_of(opened(golden(CASE).path)).draw(torch.zeros(1, 8), None)


def test_published_networks_have_the_official_size() -> None:
    millions = {128: 50.4, 256: 55.9, 512: 56.2}
    for side, expected in millions.items():
        config = FAMILY.published[f"biggan-deep-{side}"]
        assert isinstance(config, BigGANDeepConfig)
        with torch.device("meta"):
            network = BigGANDeep(config)
        assert network.config.size == (side, side)
        n_parameters = sum(parameter.numel() for parameter in network.parameters())
        unused = (config.channel_width - 3) * (9 * config.channel_width + 1)  # of conv_to_rgb
        assert round((n_parameters + unused) / 1e6, 1) == expected
