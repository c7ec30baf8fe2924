"""R3GAN against what the official network computes, and its own promises."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.r3gan import FAMILY, R3GAN, R3GANConfig
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, HasVariants, Latents
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_r3gan import tiny

INFO = GeneratorInfo("tiny", (0, 0), (), 0, "", "", "test", "", FAMILY.name)
NAME = "r3gan/cond32"
PREFIX = "features.Model.MainLayers."


def opened(case: Case) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(case.checkpoint, {})
    info = replace(INFO, size=imported.config.size, n_classes=imported.config.n_classes)
    return FAMILY.generator(imported, info, case.path)


def test_all_golden_cases_are_there() -> None:
    assert cases("r3gan") == [NAME]


def test_golden_tensors_are_reproduced() -> None:
    case = golden(NAME)
    expected, generator = dict(case.expected), opened(case)
    network = generator.network
    assert isinstance(network, R3GAN)
    z, labels = expected.pop("z"), expected.pop("onehot").argmax(1)
    assert_close(generator(Latents(z, labels)), expected.pop("image"))
    _, maps = network.draw(z, labels)
    for feature in [name for name in expected if name.startswith(PREFIX)]:
        assert_close(maps[int(feature.removeprefix(PREFIX))][:1], expected.pop(feature))
    assert not expected


def test_configuration_is_that_of_the_shapes() -> None:
    assert FAMILY.read(golden(NAME).checkpoint, {}).config == R3GANConfig(
        widths=(16, 16, 12, 8),
        blocks=(2, 1, 1, 1),
        cardinalities=(4, 2, 2, 2),
        z_dim=12,
        n_classes=6,
        embed_features=8,
    )


def test_unconditional_file_is_read() -> None:
    checkpoint = golden(NAME).checkpoint
    tensors = checkpoint.module("G_ema").tensors
    del tensors["Model.EmbeddingLayer.weight"]
    config = FAMILY.read(checkpoint, {}).config
    assert (config.z_dim, config.n_classes) == (20, 0)


def test_half_precision_weights_become_float32() -> None:
    checkpoint = golden(NAME).checkpoint
    tensors = checkpoint.module("G_ema").tensors
    tensors.update({name: tensor.bfloat16() for name, tensor in tensors.items()})
    weights = FAMILY.read(checkpoint, {}).weights
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_converted_folder_draws_the_same(tmp_path: Path) -> None:
    generator = opened(golden(NAME))
    save_generator(generator, tmp_path, card="", origin={})
    latents = generator.sample(torch.arange(2))
    torch.testing.assert_close(load_folder(tmp_path)(latents), generator(latents))


def test_only_r3gan_files_are_accepted() -> None:
    assert FAMILY.objection(golden(NAME).checkpoint) is None
    for name, reason in {
        "stylegan3/r16": "Model.MainLayers.0",
        "stylegan2-ada/cond32": "Model.MainLayers.0",
        "dcgan/rgb64": "G_ema",
    }.items():
        assert reason in (FAMILY.objection(golden(name).checkpoint) or "")


@pytest.mark.parametrize(
    "name",
    [
        "Model.AggregationLayer.Layer.weight",
        "Model.MainLayers.0.Layers.0.Basis",
        "Model.MainLayers.0.Layers.0.LinearLayer.weight",
        "Model.MainLayers.0.Layers.2.NonLinearity1.Bias",
        "Model.MainLayers.1.Layers.0.Resampler.Kernel",
        "Model.MainLayers.2.Layers.0.LinearLayer.Layer.weight",
        "Model.MainLayers.3.Layers.1.LinearLayer2.Layer.weight",
    ],
)
@pytest.mark.parametrize("changed", [None, torch.ones(2, 3, 1)])
def test_missing_or_misshapen_parameter_is_named(name: str, changed: Tensor | None) -> None:
    checkpoint = golden(NAME).checkpoint
    tensors = checkpoint.module("G_ema").tensors
    del tensors[name]
    if changed is not None:
        tensors[name] = changed
    with pytest.raises(CorruptFileError, match=name):
        FAMILY.read(checkpoint, {})


def test_stage_without_blocks_is_refused() -> None:
    checkpoint = golden(NAME).checkpoint
    tensors = checkpoint.module("G_ema").tensors
    for name in [name for name in tensors if name.startswith("Model.MainLayers.1.Layers.1")]:
        del tensors[name]
    with pytest.raises(CorruptFileError, match="no residual block"):
        FAMILY.read(checkpoint, {})


def test_groups_that_do_not_fit_are_refused_with_the_file() -> None:
    case = golden(NAME)
    checkpoint = case.checkpoint
    name = "Model.MainLayers.1.Layers.1.LinearLayer2.Layer.weight"
    checkpoint.module("G_ema").tensors[name] = torch.ones(32, 5, 3, 3)
    with pytest.raises(CorruptFileError, match=rf"{case.path.name}.* 6 groups"):
        FAMILY.read(checkpoint, {})


def test_stages_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="one number for each stage"):
        R3GANConfig(widths=(8, 8), blocks=(1,), cardinalities=(1, 1))
    with pytest.raises(InputError, match="3 groups"):
        R3GANConfig(widths=(8,), blocks=(1,), cardinalities=(3,))


def test_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match="psi"):
        FAMILY.check_options({"psi": 0.5})


def test_noise_enters_once_so_there_are_no_variants() -> None:
    assert not isinstance(tiny(), HasVariants)


def test_class_is_needed() -> None:
    network = tiny(n_classes=3).network
    assert isinstance(network, R3GAN)
    with pytest.raises(InputError, match="class labels"):
        network.draw(torch.randn(2, 6), None)
