"""Self-conditioned GAN and GAN-stability against what the official networks compute."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators import load_generator
from latentseg.generators.families import gan_stability, selfcond
from latentseg.generators.families.resnet_gan import ResNetGAN, ResNetGANConfig
from latentseg.generators.family import Family, SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.noise_generator import NoiseGenerator
from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.weights.containers import Checkpoint, open_checkpoint
from tests.generators.golden import Case, assert_close, cases, golden
from tests.generators.tiny_resnet_gan import TINY

FAMILIES = {"selfcond": selfcond.FAMILY, "gan-stability": gan_stability.FAMILY}
CASES = [name for family in FAMILIES for name in cases(family)]
OTHERS = ["biggan/ajbrock32", "studiogan/C-GGAN64", "dcgan/rgb64", "stylegan2-ada/cond32"]


def family_of(case: str) -> Family:
    return FAMILIES[case.split("/")[0]]


def opened(family: Family, checkpoint: Checkpoint, options: Mapping[str, Any]) -> SavedGenerator:
    imported = family.read(checkpoint, options)
    info = GeneratorInfo(
        name="golden",
        size=imported.config.size,
        latent=(),
        n_classes=imported.config.n_classes,
        space="",
        licence="none",
        source="golden",
        sha256="",
        family=family.name,
    )
    return family.generator(imported, info, checkpoint.path)


def latents(case: Case, generator: SavedGenerator) -> Latents:
    labels = case.expected["labels"] if generator.info.n_classes else None
    return Latents(case.expected["z"], labels)


def changed(name: str, tmp_path: Path, **tensors: Tensor | None) -> Path:
    """The file of a case with other parameters of its generator; None leaves one out."""
    content = torch.load(golden(name).path, weights_only=True)
    for part in ("generator", "generator_test"):
        for key, tensor in tensors.items():
            del content[part][key]
            if tensor is not None:
                content[part][key] = tensor
    torch.save(content, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def test_all_golden_cases_are_there() -> None:
    assert len(CASES) == 3


@pytest.mark.parametrize("name", CASES)
def test_images_of_both_weights_equal_the_official_ones(name: str) -> None:
    case, family = golden(name), family_of(name)
    assert family.objection(case.checkpoint) is None
    for weights, key in (("raw", "image"), ("average", "image.generator_test")):
        generator = opened(family, case.checkpoint, {"weights": weights})
        expected = case.expected[key]
        assert_close(generator(latents(case, generator))[: len(expected)], expected)


@pytest.mark.parametrize("name", CASES)
def test_features_equal_the_official_activations(name: str) -> None:
    case = golden(name)
    generator = opened(family_of(name), case.checkpoint, {"weights": "raw"})
    network = generator.network
    assert isinstance(network, ResNetGAN)
    assert isinstance(generator, NoiseGenerator)
    found = dict(zip(network.names, generator.features(latents(case, generator)), strict=True))
    if "resnet.2" in found:  # its list has the doublings of the size between the blocks
        found["resnet.3"] = F.interpolate(found["resnet.2"], scale_factor=2)
    names = [key for key in case.expected if key.startswith("features.")]
    assert len(names) == 2
    for key in names:
        assert_close(found[key.removeprefix("features.")], case.expected[key])


@pytest.mark.parametrize("name", CASES)
def test_configuration_is_read_from_the_keys(name: str) -> None:
    case = golden(name)
    config = opened(family_of(name), case.checkpoint, {}).network.config
    assert isinstance(config, ResNetGANConfig)
    given = case.card["arguments"]
    assert config.size == (given["size"],) * 2
    assert config.z_dim == given["z_dim"]
    assert config.n_classes == (given["nlabels"] if given["nlabels"] > 1 else 0)
    assert config.channels[-1] == given["nfilter"]
    assert config.architecture == case.card["class"].split(".")[2]


@pytest.mark.parametrize("name", CASES)
def test_saved_folder_draws_the_same(name: str, tmp_path: Path) -> None:
    case = golden(name)
    generator = opened(family_of(name), case.checkpoint, {})
    save_generator(generator, tmp_path, card="card", origin={})
    given = latents(case, generator)
    torch.testing.assert_close(load_folder(tmp_path)(given), generator(given))


@pytest.mark.parametrize(
    ("family", "key"), [("selfcond", "image"), ("gan-stability", "image.generator_test")]
)
def test_default_weights_are_those_of_the_usual_sampler(family: str, key: str) -> None:
    case = golden(cases(family)[0])
    generator = opened(FAMILIES[family], case.checkpoint, {})
    expected = case.expected[key]
    assert_close(generator(latents(case, generator))[: len(expected)], expected)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_the_other_family_are_refused(family: str, name: str) -> None:
    is_own = name.startswith(f"{family}/")
    assert (FAMILIES[family].objection(golden(name).checkpoint) is None) == is_own


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_files_of_other_families_are_refused(family: str, name: str) -> None:
    assert FAMILIES[family].objection(golden(name).checkpoint)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("selfcond/selfcond64", "resnet_3_0.conv_0.weight"),
        ("selfcond/selfcond64", "resnet_3_0.conv_s.weight"),
        ("selfcond/selfcond64", "fc.bias"),
        ("gan-stability/lsun32", "resnet.2.conv_1.weight"),
        ("gan-stability/lsun32", "resnet.6.conv_1.bias"),
        ("gan-stability/lsun32", "conv_img.bias"),
    ],
)
def test_missing_or_misshaped_parameter_is_named(name: str, key: str, tmp_path: Path) -> None:
    for tensor in (None, torch.zeros(1, 1, 7)):
        path = changed(name, tmp_path, **{key: tensor})
        with pytest.raises(CorruptFileError, match=key.replace(".", r"\.")):
            load_generator(f"{name.split('/')[0]}:{path}", device="cpu")


def test_embedding_wider_than_the_layer_that_takes_it_is_refused(tmp_path: Path) -> None:
    key = "get_latent.embedding.weight"
    path = changed("selfcond/selfcond64", tmp_path, **{key: torch.ones(11, 30)})
    with pytest.raises(CorruptFileError, match=r"fc\.weight.*get_latent\.embedding\.weight"):
        load_generator(f"selfcond:{path}", device="cpu")


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_weights_are_refused_and_named(family: str) -> None:
    with pytest.raises(InputError, match="`weights`: expected one of raw, average, found 'newest'"):
        FAMILIES[family].read(golden(cases(family)[0]).checkpoint, {"weights": "newest"})


def test_weights_that_are_not_in_the_file_are_named(tmp_path: Path) -> None:
    content = torch.load(golden("gan-stability/lsun32").path, weights_only=True)
    del content["generator_test"]
    torch.save(content, tmp_path / "model.pt")
    checkpoint = open_checkpoint(tmp_path / "model.pt")
    with pytest.raises(CorruptFileError, match="generator_test"):
        gan_stability.FAMILY.read(checkpoint, {})
    assert gan_stability.FAMILY.read(checkpoint, {"weights": "raw"}).config.size == (32, 32)


def test_clusters_are_drawn_by_their_weights() -> None:
    case = golden("selfcond/selfcond64")
    weights = (0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 5)
    generator = load_generator(
        f"selfcond:{case.path}", device="cpu", options={"class_weights": weights}
    )
    labels = generator.sample(torch.arange(100)).labels
    assert labels is not None
    assert set(labels.tolist()) == {2, 10}


# What the official networks do one after the other.
PLANS = {
    "resnet": ["resnet.0", "double", "resnet.2", "double", "resnet.4"],
    "resnet2": "double".join(f" resnet_{i}_0 resnet_{i}_1 " for i in range(6)).split(),
    "resnet3": [step for i in range(6) for step in (f"resnet_{i}_0", "double")],
    "resnet4": "double".join(f" resnet_{i}_0 " for i in range(7)).split(),
}


def random_state(plan: list[str], kernel: int) -> dict[str, Tensor]:
    """Official parameters: z of 5, 3 classes embedded in 2, maps of 4 and then of 2 channels."""
    blocks = [step for step in plan if step != "double"]
    torch.manual_seed(0)
    state = {"embedding.weight": torch.randn(3, 2), "fc.weight": torch.randn(4 * 2 * 2, 7)}
    for name in blocks:
        in_channels, out_channels = (4, 2) if name == blocks[0] else (2, 2)
        state[f"{name}.conv_0.weight"] = torch.randn(2, in_channels, 3, 3)
        state[f"{name}.conv_1.weight"] = torch.randn(out_channels, 2, 3, 3)
        state |= {f"{name}.conv_{i}.bias": torch.randn(2) for i in range(2)}
    state[f"{blocks[0]}.conv_s.weight"] = torch.randn(2, 4, 1, 1)
    state["conv_img.weight"] = torch.randn(3, 2, kernel, kernel) / kernel
    return {**state, "fc.bias": torch.randn(16), "conv_img.bias": torch.randn(3)}


def drawn_plainly(
    plan: list[str], state: dict[str, Tensor], latents: Latents, *, is_unit: bool
) -> Tensor:
    """Images by the formulas of Mescheder et al., nothing folded."""

    def conv(name: str, x: Tensor) -> Tensor:
        weight = state[f"{name}.weight"]
        return F.conv2d(x, weight, state.get(f"{name}.bias"), padding=weight.shape[-1] // 2)

    classes = state["embedding.weight"][latents.labels]
    classes = F.normalize(classes, dim=1) if is_unit else classes
    rows = torch.cat([latents.values, classes], dim=1)
    x = F.linear(rows, state["fc.weight"], state["fc.bias"]).view(-1, 4, 2, 2)
    for step in plan:
        if step == "double":
            x = F.interpolate(x, scale_factor=2)
            continue
        inner = conv(
            f"{step}.conv_1", F.leaky_relu(conv(f"{step}.conv_0", F.leaky_relu(x, 0.2)), 0.2)
        )
        x = (conv(f"{step}.conv_s", x) if step == plan[0] else x) + 0.1 * inner
    return conv("conv_img", F.leaky_relu(x, 0.2)).tanh()


@pytest.mark.parametrize("architecture", PLANS)
def test_each_plan_is_read_and_drawn_as_its_formulas_say(architecture: str, tmp_path: Path) -> None:
    plan, is_late = PLANS[architecture], architecture in ("resnet3", "resnet4")
    state = random_state(plan, kernel=7 if is_late else 3)
    torch.save({"generator": state, "generator_test": state}, tmp_path / "model.pt")
    generator = load_generator(tmp_path / "model.pt", device="cpu")
    assert generator.info.family == "gan-stability"
    latents = generator.sample(torch.arange(3))
    expected = drawn_plainly(plan, state, latents, is_unit=not is_late)
    assert_close(generator(latents), expected)


def test_classes_must_be_given_to_a_conditional_network() -> None:
    with pytest.raises(InputError, match="class labels"):
        TINY["selfcond"]()(Latents(torch.zeros(1, 6)))


def test_configuration_of_no_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"`architecture`: .* found 'resnet5'"):
        ResNetGANConfig("resnet5", (4, 2))


@pytest.mark.parametrize("family", FAMILIES)
def test_published_configurations_are_those_of_their_names(family: str) -> None:
    for name, config in FAMILIES[family].published.items():
        assert config.size == (int(name.rpartition("-")[2]),) * 2
        with torch.device("meta"):
            assert FAMILIES[family].build(config).config == config
