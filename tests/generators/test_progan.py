"""ProGAN against what the official network computes, and its reader."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.progan import FAMILY, ProGAN
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, HasFeatures, HasVariants, Latents
from latentseg.weights.containers import Checkpoint
from latentseg.weights.records import Record
from tests.generators.golden import assert_close, cases, golden
from tests.generators.tiny_progan import TINY

CASES = cases("progan")


def opened(checkpoint: Checkpoint) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(checkpoint, {})
    info = GeneratorInfo("tiny", imported.config.size, (), 0, "", "MIT", "test", "", FAMILY.name)
    return FAMILY.generator(imported, info, checkpoint.path)


def altered(
    change_weights: Callable[[dict[str, Any]], None] = lambda weights: None, **settings: Any
) -> Checkpoint:
    """The case without blending, with other weights and settings; None leaves a setting out."""
    checkpoint = golden("progan/scales3").checkpoint
    weights = dict(checkpoint.tree["avgG"])
    change_weights(weights)
    config = checkpoint.tree["config"]
    assert isinstance(config, Record)
    fields = {**config.state, **settings}
    kept = {name: value for name, value in fields.items() if value is not None}
    return replace(checkpoint, tree={"config": kept, "avgG": weights})


def test_all_golden_cases_are_there() -> None:
    assert CASES == ["progan/scales2-legacy-alpha", "progan/scales3"]


@pytest.mark.parametrize("name", CASES)
def test_golden_tensors_are_reproduced(name: str) -> None:
    case = golden(name)
    generator, expected = opened(case.checkpoint), dict(case.expected)
    assert isinstance(generator, HasFeatures)
    latents = Latents(expected.pop("z"))
    assert_close(generator(latents), expected.pop("image"))
    features = [each[:1] for each in generator.features(latents)]
    assert_close(features[0].flatten(1), expected.pop("features.formatLayer"))
    assert_close(features[1], expected.pop("features.groupScale0.0"))
    ((last, feature),) = expected.items()
    assert last == f"features.scaleLayers.{len(features) // 2 - 2}.1"
    assert_close(features[-1], feature)


@pytest.mark.parametrize("name", CASES)
def test_saved_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    generator = opened(golden(name).checkpoint)
    save_generator(generator, tmp_path, card="", origin={})
    again, latents = load_folder(tmp_path), generator.sample(torch.arange(2))
    torch.testing.assert_close(again(latents), generator(latents))


@pytest.mark.parametrize("name", CASES)
def test_files_are_known_by_their_names(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint) is None


@pytest.mark.parametrize("name", ["dcgan/rgb64", "stylegan1/rosinality32", "stylegan3/r16"])
def test_other_files_are_objected_to(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint) == (
        "no parameter 'formatLayer.weight' under 'avgG'"
    )


def test_file_without_settings_is_objected_to() -> None:
    checkpoint = altered()
    without = replace(checkpoint, tree={"avgG": checkpoint.tree["avgG"]})
    assert FAMILY.objection(without) == "no 'config'"


@pytest.mark.parametrize(
    "name", ["formatLayer.weight", "scaleLayers.1.0.bias", "toRGBLayers.3.bias"]
)
def test_missing_or_misshapen_parameter_is_named(name: str) -> None:
    stored_name = re.sub(r"\.(\w+)$", r".module.\1", name)
    with pytest.raises(CorruptFileError, match=re.escape(f"{name!r} is missing")):
        opened(altered(lambda weights: weights.pop(stored_name)))
    with pytest.raises(CorruptFileError, match=re.escape(f"{name!r} has shape (2, 2, 2)")):
        opened(altered(lambda weights: weights.update({stored_name: torch.ones(2, 2, 2)})))


def test_names_of_older_files_are_understood() -> None:
    def shortened(weights: dict[str, Any]) -> None:
        for name in list(weights):
            weights[name.replace(".module", "")] = weights.pop(name)

    case = golden("progan/scales3")
    checkpoint = altered(shortened)
    assert FAMILY.objection(checkpoint) is None
    assert_close(opened(checkpoint)(Latents(case.expected["z"])), case.expected["image"])


def drawn(**settings: Any) -> Tensor:
    return opened(altered(**settings))(Latents(golden("progan/scales3").expected["z"]))


def test_settings_that_change_the_image_are_heeded() -> None:
    plain = drawn()
    torch.testing.assert_close(drawn(lossMode="DCGAN"), plain.tanh())
    assert torch.equal(drawn(lossMode="Logistic"), plain)
    for settings in ({"alpha": 0.5}, {"leakyness": 0.1}, {"equalizedlR": False}):
        assert not torch.allclose(drawn(**settings), plain)


def test_settings_that_are_not_there_have_their_defaults() -> None:
    without = drawn(alpha=None, leakyness=None, equalizedlR=None, lossMode=None)
    assert torch.equal(without, drawn())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"alpha": "half"}, "'alpha' in 'config' is a str, expected float"),
        ({"alpha": 7}, "`alpha`: expected 0 to 1, and 0 for a single scale, found 7.0"),
        ({"equalizedlR": 1}, "'equalizedlR' in 'config' is a int, expected bool"),
    ],
)
def test_settings_of_nonsense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(CorruptFileError, match=re.escape(message)):
        opened(altered(**settings))


def test_conditional_network_is_refused() -> None:
    with pytest.raises(InputError, match="trained with attributes"):
        opened(altered(categoryVectorDim=4))


def test_settings_that_are_none_are_refused() -> None:
    checkpoint = altered()
    with pytest.raises(CorruptFileError, match="'config' holds no settings"):
        opened(replace(checkpoint, tree={**checkpoint.tree, "config": [1]}))


def test_grey_images_have_three_equal_colours() -> None:
    generator = TINY["progan, grey"]()
    x = generator(generator.sample(torch.arange(2)))
    assert torch.equal(x[:, 0], x[:, 1])
    assert torch.equal(x[:, 0], x[:, 2])


def test_one_scale_is_drawn_and_there_are_no_variants() -> None:
    def only_first(weights: dict[str, Any]) -> None:
        for name in [name for name in weights if name.startswith("scaleLayers")]:
            del weights[name]

    generator = opened(altered(only_first, alpha=0.5))
    assert isinstance(generator.network, ProGAN)
    assert generator(generator.sample(torch.arange(2))).shape == (2, 3, 4, 4)
    assert not isinstance(generator, HasVariants)
