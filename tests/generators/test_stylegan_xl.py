"""StyleGAN-XL against what the official network computes, and its own promises."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.stylegan_xl import FAMILY, StyleGANXL, staged
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_stylegan_xl import tiny

INFO = GeneratorInfo("tiny", (0, 0), (), 0, "", "", "test", "", FAMILY.name)
NAME = "stylegan-xl/superres32"


def opened(case: Case, **choices: object) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(case.checkpoint, choices)
    imported = replace(imported, sampling=FAMILY.sampling(imported.sampling, choices))
    info = replace(INFO, size=imported.config.size, n_classes=imported.config.n_classes)
    return FAMILY.generator(imported, info, case.path)


def truncated(case: Case, w: Tensor, labels: Tensor, **choices: object) -> Latents:
    """Styles as `StyleGenerator.sample` truncates them."""
    generator = opened(case, **choices)
    assert isinstance(generator, StyleGenerator)
    return Latents(generator._truncated(w, labels), labels)


def test_all_golden_cases_are_there() -> None:
    assert cases("stylegan-xl") == [NAME]


def test_golden_tensors_are_reproduced() -> None:
    case = golden(NAME)
    expected, generator = dict(case.expected), opened(case, psi=1.0)
    network = generator.network
    assert isinstance(network, StyleGANXL)
    labels = expected.pop("onehot").argmax(1)
    w, ws = expected.pop("w"), expected.pop("ws")
    assert_close(network.style(expected.pop("z"), labels), w)
    assert_close(w[:, None].expand_as(ws), ws)
    image, maps = network.draw(ws, "const")
    assert_close(image, expected["image"])
    assert_close(generator(Latents(w, labels)), expected.pop("image"))
    assert_close(generator(Latents(expected.pop("ws.mixed"))), expected.pop("image.mixed"))
    assert_close(maps[-1][:1], expected.pop("features.synthesis.L8_32_8"))

    near = truncated(case, w[:1], labels[:1], psi=0.7)
    assert_close(generator(near), expected.pop("image.psi0.7"))
    cut = truncated(case, w, labels, psi=0.7, cutoff=3)
    assert_close(cut.values, expected.pop("ws.psi0.7.cutoff3"))
    assert_close(generator(cut)[:1], expected.pop("image.psi0.7.cutoff3"))
    assert not expected


def test_converted_folder_draws_the_same_and_keeps_no_path_of_the_stem(tmp_path: Path) -> None:
    generator = opened(golden(NAME))
    save_generator(generator, tmp_path, card="", origin={})
    latents = generator.sample(torch.arange(2))
    torch.testing.assert_close(load_folder(tmp_path)(latents), generator(latents))
    assert not [path for path in tmp_path.iterdir() if b"example.org" in path.read_bytes()]


def test_path_of_the_stem_is_in_the_file_but_not_read() -> None:
    checkpoint = golden(NAME).checkpoint
    assert "path_stem" in checkpoint.module("G_ema").nodes[""].attributes
    imported = FAMILY.read(checkpoint, {})
    assert "example.org" not in json.dumps([asdict(imported.config), imported.notes])


def test_only_stylegan_xl_files_are_accepted() -> None:
    assert FAMILY.objection(golden(NAME).checkpoint) is None
    for name, reason in {
        "stylegan3/t32-cond": "mapping.embed",
        "stylegan3/r16": "mapping.embed",
        "stylegan2-ada/cond32": "synthesis.input",
        "dcgan/rgb64": "G_ema",
    }.items():
        assert reason in (FAMILY.objection(golden(name).checkpoint) or "")


@pytest.mark.parametrize(
    "name",
    [
        "mapping.w_avg",
        "mapping.embed.weight",
        "mapping.embed_proj.bias",
        "synthesis.L5_36_16.down_filter",
        "synthesis.L9_32_3.weight",
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


def test_missing_attribute_is_named() -> None:
    checkpoint = golden(NAME).checkpoint
    del checkpoint.module("G_ema").nodes[""].attributes["c_dim"]
    with pytest.raises(CorruptFileError, match="c_dim"):
        FAMILY.read(checkpoint, {})


def test_unknown_option_is_named() -> None:
    with pytest.raises(InputError, match="path_stem"):
        FAMILY.check_options({"path_stem": "stem.pkl"})


def test_stages_are_the_official_ones() -> None:
    read = FAMILY.read(golden(NAME).checkpoint, {}).config.synthesis
    plan = staged(((16, 6), (32, 4)), channel_base=256, channel_max=16)
    # The case was made with a stem that does not clamp.
    stem = [replace(layer, clamp=None) for layer in plan.layers[:4]]
    assert read == replace(plan, layers=(*stem, *plan.layers[4:]))


def test_truncation_leads_to_the_mean_style_of_the_class() -> None:
    network = tiny().network
    assert isinstance(network, StyleGANXL)
    centre = network.centre(torch.tensor([2, 0]))
    assert torch.equal(centre, network.mapping.w_avg[[2, 0]])
    assert not torch.equal(centre[0], centre[1])


def test_class_is_needed() -> None:
    network = tiny().network
    assert isinstance(network, StyleGANXL)
    with pytest.raises(InputError, match="class labels"):
        network.style(torch.randn(2, 6), None)
