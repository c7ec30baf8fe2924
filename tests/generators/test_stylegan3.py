"""StyleGAN3 against what the official network computes, and its own promises."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentseg.configs import from_json
from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan3 import (
    FAMILY,
    LayerConfig,
    StyleGAN3,
    StyleGAN3Config,
    SynthesisConfig,
    SynthesisLayer,
    downsampled,
    planned,
    upsampled,
)
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_stylegan3 import tiny

INFO = GeneratorInfo("tiny", (0, 0), (), 0, "", "", "test", "", FAMILY.name)
CASES = cases("stylegan3")


def opened(case: Case, **choices: object) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(case.checkpoint, choices)
    imported = replace(imported, sampling=FAMILY.sampling(imported.sampling, choices))
    info = replace(INFO, size=imported.config.size, n_classes=imported.config.n_classes)
    return FAMILY.generator(imported, info, case.path)


def network_of(generator: SavedGenerator) -> StyleGAN3:
    assert isinstance(generator.network, StyleGAN3)
    return generator.network


def truncated(case: Case, w: Tensor, labels: Tensor | None, **choices: object) -> Latents:
    """Styles as `StyleGenerator.sample` truncates them."""
    generator = opened(case, **choices)
    assert isinstance(generator, StyleGenerator)
    return Latents(generator._truncated(w, labels), labels)


def test_all_golden_cases_are_there() -> None:
    assert CASES == ["stylegan3/r16", "stylegan3/t32-cond"]


@pytest.mark.parametrize("name", CASES)
def test_golden_tensors_are_reproduced(name: str) -> None:
    case = golden(name)
    expected, generator = dict(case.expected), opened(case, psi=1.0)
    network = network_of(generator)
    labels = expected.pop("onehot").argmax(1) if "onehot" in expected else None
    w, ws = expected.pop("w"), expected.pop("ws")
    assert_close(network.style(expected.pop("z"), labels), w)
    assert_close(w[:, None].expand_as(ws), ws)
    image, maps = network.draw(ws, "const")
    assert_close(image, expected["image"])
    assert_close(generator(Latents(w, labels)), expected.pop("image"))
    assert_close(generator(Latents(expected.pop("ws.mixed"))), expected.pop("image.mixed"))
    pose = network.synthesis.input(ws[:1, 0])
    assert_close(pose, expected.pop("features.synthesis.input"))
    (feature,) = (key for key in expected if key.startswith("features.synthesis.L"))
    index = int(feature.split(".L")[1].split("_")[0])
    assert_close(maps[index][:1], expected.pop(feature))

    own = None if labels is None else labels[:1]
    near = truncated(case, w[:1], own, psi=0.7)
    assert_close(generator(near), expected.pop("image.psi0.7"))
    cut = truncated(case, w, labels, psi=0.7, cutoff=3)
    assert_close(cut.values, expected.pop("ws.psi0.7.cutoff3"))
    assert_close(generator(cut)[:1], expected.pop("image.psi0.7.cutoff3"))
    assert not expected


@pytest.mark.parametrize("name", CASES)
def test_converted_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    generator = opened(golden(name))
    save_generator(generator, tmp_path, card="", origin={})
    latents = generator.sample(torch.arange(2))
    torch.testing.assert_close(load_folder(tmp_path)(latents), generator(latents))


def test_only_stylegan3_files_are_accepted() -> None:
    for name in CASES:
        assert FAMILY.objection(golden(name).checkpoint) is None
    for name, reason in {
        "stylegan-xl/superres32": "StyleGAN-XL",
        "stylegan2-ada/cond32": "synthesis.input",
        "r3gan/cond32": "synthesis.input",
        "dcgan/rgb64": "G_ema",
    }.items():
        assert reason in (FAMILY.objection(golden(name).checkpoint) or "")


@pytest.mark.parametrize(
    "name",
    [
        "mapping.w_avg",
        "mapping.embed.weight",
        "synthesis.input.freqs",
        "synthesis.L3_52_12.weight",
        "synthesis.L3_52_12.up_filter",
        "synthesis.L3_52_12.magnitude_ema",
        "synthesis.L9_32_3.bias",
    ],
)
@pytest.mark.parametrize("changed", [None, torch.ones(2, 3, 1)])
def test_missing_or_misshapen_parameter_is_named(name: str, changed: Tensor | None) -> None:
    checkpoint = golden("stylegan3/t32-cond").checkpoint
    tensors = checkpoint.module("G_ema").tensors
    del tensors[name]
    if changed is not None:
        tensors[name] = changed
    with pytest.raises(CorruptFileError, match=name):
        FAMILY.read(checkpoint, {})


@pytest.mark.parametrize(
    ("path", "attribute", "value"),
    [
        ("", "z_dim", None),
        ("synthesis", "layer_names", ["L0_16_8", "torgb"]),
        ("synthesis.input", "bandwidth", "wide"),
        ("synthesis.L1_36_12", "up_factor", [2]),
        ("synthesis.L1_36_12", "down_factor", 9),
    ],
)
def test_missing_or_senseless_attribute_is_an_error(
    path: str, attribute: str, value: object
) -> None:
    checkpoint = golden("stylegan3/t32-cond").checkpoint
    attributes = checkpoint.module("G_ema").nodes[path].attributes
    attributes[attribute] = value
    with pytest.raises(CorruptFileError, match="describe itself"):
        FAMILY.read(checkpoint, {})
    del attributes[attribute]
    with pytest.raises(CorruptFileError, match=attribute):
        FAMILY.read(checkpoint, {})


def test_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match="noise"):
        FAMILY.check_options({"noise": "random"})


@pytest.mark.parametrize(
    ("name", "plan"),
    [
        (
            "stylegan3/r16",
            planned(16, n_layers=6, kernel=1, is_radial=True, channel_base=384, channel_max=16),
        ),
        ("stylegan3/t32-cond", planned(32, n_layers=9, channel_base=192, channel_max=12)),
    ],
)
def test_plan_is_the_official_one(name: str, plan: SynthesisConfig) -> None:
    assert FAMILY.read(golden(name).checkpoint, {}).config.synthesis == plan


def test_plan_of_default_width_has_the_official_number_of_parameters() -> None:
    with torch.device("meta"):
        network = StyleGAN3(StyleGAN3Config(planned(256)))
    assert sum(x.numel() for x in network.parameters()) / 1e6 == pytest.approx(28.5, abs=0.05)


def test_features_lie_on_the_image_without_margins() -> None:
    generator = opened(golden("stylegan3/t32-cond"))
    _, maps = network_of(generator).draw(torch.randn(1, 11, 14), "const")
    assert [features.shape[-1] for features in maps] == [16] * 3 + [32] * 6


def test_first_style_moves_the_whole_image() -> None:
    network = network_of(tiny())
    field = network.synthesis.input
    with torch.no_grad():
        # Without rotation, and shifted by a quarter of the image for each unit of w_0.
        field.affine.bias.copy_(torch.tensor([1.0, 0, 0, 0]))
        field.affine.weight.zero_()
        field.affine.weight[2, 0] = 0.25 / field.affine.weight_gain
    still, moved = field(torch.eye(6)[[1, 0]])
    torch.testing.assert_close(moved[:, :, 4:], still[:, :, :-4], atol=1e-5, rtol=1e-5)


def zeros_inserted(x: Tensor, up: int) -> Tensor:
    spread = torch.zeros(*x.shape[:2], *(up * side for side in x.shape[2:]))
    spread[..., ::up, ::up] = x
    return spread


@pytest.mark.parametrize(("up", "crop"), [(2, 0), (2, 3), (4, 5)])
def test_upsampling_is_zero_insertion_and_the_filter(up: int, crop: int) -> None:
    x, taps = torch.randn(2, 3, 7, 9), torch.tensor([1.0, 2, 5, 5, 2, 1])
    kernel = torch.outer(taps, taps).expand(3, 1, 6, 6)
    filtered = F.conv2d(zeros_inserted(x, up), kernel, padding=5, groups=3)
    reached = [up * (side - 1) + 6 for side in (7, 9)]
    expected = filtered[..., crop : reached[0] - crop, crop : reached[1] - crop]
    torch.testing.assert_close(upsampled(x, taps, up, crop), expected, atol=1e-5, rtol=1e-5)


def test_separable_downsampling_is_that_with_the_product_filter() -> None:
    x, taps = torch.randn(2, 3, 17, 20), torch.tensor([1.0, 3, 3, 1])
    expected = downsampled(x, torch.outer(taps, taps), 2)
    torch.testing.assert_close(downsampled(x, taps, 2), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("clamp", [None, 0.5])
def test_gradients_of_a_layer_are_exact(clamp: float | None) -> None:
    torch.manual_seed(0)
    config = LayerConfig(4, 2, up_taps=4, down_taps=4, clamp=clamp)
    layer = SynthesisLayer(config, in_size=4, in_channels=2, w_dim=3).double()
    x, w = torch.randn(1, 2, 4, 4).double(), torch.randn(1, 3).double()
    assert torch.autograd.gradcheck(layer, (x.requires_grad_(), w.requires_grad_()))
    assert clamp is None or layer(x, w).abs().max() < 1


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="side 64 from 16"):
        SynthesisConfig((LayerConfig(16, 8), LayerConfig(64, 8)), 8)
    with pytest.raises(InputError, match="at least one layer"):
        SynthesisConfig((), 8)
    with pytest.raises(InputError, match="`image_channels`: expected 1 or 3, found 4"):
        SynthesisConfig((LayerConfig(16, 8),), 8, image_channels=4)
    with pytest.raises(InputError, match=r"`layers`\[0\]: unknown field 'sizes'"):
        from_json(
            StyleGAN3Config, {"synthesis": {"layers": [{"sizes": 1}], "input_channels": 8}}, "it"
        )


def test_filters_follow_the_network() -> None:
    network = network_of(tiny(is_r=True))
    images, maps = network.to("meta").draw(torch.empty(2, 6, 6, device="meta"), "const")
    assert images.shape == (2, 3, 16, 16)
    assert {features.device.type for features in maps} == {"meta"}
