"""Every family together: golden files are told apart, converted, and searched for directions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError, LatentsegError, UnsafeFileError
from latentseg.generators import load_generator
from latentseg.generators.abilities import abilities
from latentseg.generators.conversion import convert
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import HasFeatures, HasVariants
from latentseg.generators.registry import families, identify
from latentseg.labelers.directions_settings import SETTINGS
from latentseg.labelers.fit_directions import fit_directions
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import GOLDEN, assert_close, cases, golden
from tests.generators.tiny import TINY, one_of_each

# The folder of the golden cases, and the family that reads them.
FAMILY_OF = {
    "autoencoderkl": "autoencoder",
    "bigbigan": "bigbigan",
    "biggan": "biggan",
    "dcgan": "dcgan",
    "diffusers-consistency": "diffusion",
    "diffusers-ddim": "diffusion",
    "gan-stability": "gan-stability",
    "hf-biggan": "biggan-deep",
    "mobilestylegan": "mobilestylegan",
    "progan": "progan",
    "r3gan": "r3gan",
    "rosinality-stylegan2": "stylegan2",
    "selfcond": "selfcond",
    "studiogan": "studiogan",
    "stylegan-xl": "stylegan-xl",
    "stylegan1": "stylegan1",
    "stylegan2-ada": "stylegan2",
    "stylegan3": "stylegan3",
}
CASES = [name for folder in FAMILY_OF for name in cases(folder)]


def options_of(name: str, folder: Path) -> dict[str, object]:
    """What the files of a case do not say."""
    if name == "stylegan1/rosinality32":
        return {"size": 32}  # the file has layers for 1024 px, all of them random
    if not name.startswith("autoencoderkl"):
        return {}
    np.save(folder / "codes.npy", golden(name).expected["z"].numpy())
    return {"latents": str(folder / "codes.npy")}


def test_every_golden_case_belongs_to_a_family() -> None:
    folders = {path.parents[1].name for path in GOLDEN.glob("*/*/case.json")}
    assert folders - {"torch-export"} == set(FAMILY_OF)
    assert len(CASES) == 43


@pytest.mark.parametrize("name", CASES)
def test_golden_file_is_of_one_family_only(name: str) -> None:
    checkpoint = golden(name).checkpoint
    expected = FAMILY_OF[name.partition("/")[0]]
    accepted = {family for family, each in families().items() if not each.objection(checkpoint)}
    # These two are stored alike: the name of the file decides, and whoever names the family.
    alike = {"biggan", "bigbigan"} if expected in ("biggan", "bigbigan") else {expected}
    assert accepted == alike
    assert identify(checkpoint).name == expected
    assert all(identify(checkpoint, family).name == family for family in alike)


@pytest.mark.parametrize("name", one_of_each(CASES, "/"))
def test_golden_file_converts_to_a_folder_that_draws_the_same(name: str, tmp_path: Path) -> None:
    case = golden(name)
    options = options_of(name, tmp_path)
    imported = load_generator(case.path, device="cpu", options=options)
    folder = convert(case.path, tmp_path / "out", options=options, quiet=True)
    converted = load_generator(folder, device="cpu")
    latents = imported.sample(torch.arange(2))
    again = converted.sample(torch.arange(2))
    torch.testing.assert_close(again.values, latents.values)
    assert_close(converted(again), imported(latents))
    assert converted.info.licence == imported.info.licence
    card = (folder / "README.md").read_text()
    assert imported.info.licence in card
    assert imported.info.sha256 in card


@pytest.fixture(params=one_of_each(TINY))
def tiny(request: pytest.FixtureRequest) -> SavedGenerator:
    return TINY[request.param]()


def test_saved_folder_draws_the_same(tiny: SavedGenerator, tmp_path: Path) -> None:
    save_generator(tiny, tmp_path, card="", origin={})
    opened = load_folder(tmp_path)
    latents, again = tiny.sample(torch.arange(3)), opened.sample(torch.arange(3))
    torch.testing.assert_close(again.values, latents.values)
    torch.testing.assert_close(opened(again), tiny(latents), atol=1e-5, rtol=1e-5)
    assert replace(opened.info, sha256="") == replace(tiny.info, sha256="")
    alone = load_generator(tmp_path / "generator.safetensors", device="cpu")
    torch.testing.assert_close(alone(again), tiny(latents), atol=1e-5, rtol=1e-5)


def test_directions_are_found(tiny: SavedGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latentseg.labelers.fit_directions.RADII", (2.0,))
    config = replace(SETTINGS["ours"], steps=2, restart_steps=1, restarts=1, batch=2)
    labeler = fit_directions(tiny, config=config, seed=0, quiet=True)
    labelled = labeler.label(tiny.sample(torch.arange(2)))
    assert labelled.masks.shape == (2, *tiny.info.size)
    assert all(direction.isfinite().all() for direction in labeler.directions.values())


@pytest.fixture(scope="module")
def built() -> list[SavedGenerator]:
    return [build() for build in TINY.values()]


@pytest.mark.parametrize("name", families())
def test_abilities_are_as_declared(name: str, built: list[SavedGenerator]) -> None:
    found = {
        each
        for generator in built
        if generator.info.family == name
        for each in abilities(generator)
    }
    assert found == set(families()[name].abilities)


def test_chosen_classes_alone_are_drawn(tiny: SavedGenerator) -> None:
    if tiny.info.n_classes < 2:
        with pytest.raises(InputError, match=r"none: it is unconditional|0 to 0"):
            tiny.with_classes((1,))
        return
    one = tiny.with_classes((1,))
    labels = one.sample(torch.arange(20)).labels
    assert labels is not None
    assert set(labels.tolist()) == {1}
    assert one.info.classes == (1,)
    with pytest.raises(InputError, match=f"0 to {tiny.info.n_classes - 1}"):
        tiny.with_classes((tiny.info.n_classes,))


@pytest.mark.parametrize("name", families())
def test_published_networks_can_be_built(name: str) -> None:
    for config in families()[name].published.values():
        with torch.device("meta"):
            network = families()[name].build(config)
        assert sum(tensor.numel() for tensor in network.parameters()) > 100_000
        assert min(config.size) >= 32


def test_wrong_family_is_refused_with_those_that_fit() -> None:
    path = golden("dcgan/rgb64").path
    with pytest.raises(InputError, match=r"not a biggan checkpoint: .* Families that fit: dcgan"):
        load_generator(f"biggan:{path}")


def test_file_of_no_family_is_told_what_was_missed(tmp_path: Path) -> None:
    torch.save({"linear.weight": torch.zeros(2, 2)}, tmp_path / "own.pt")
    with pytest.raises(InputError, match=r"'linear\.weight'; no family knows it") as error:
        load_generator(tmp_path / "own.pt")
    assert all(f"{name}: " in str(error.value) for name in families())
    with pytest.raises(CorruptFileError, match="neither a safetensors"):
        load_generator(write(tmp_path / "page.pkl", b"<html>404</html>"))


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_cut_and_flipped_files_are_refused_or_read(tmp_path: Path) -> None:
    rng = torch.Generator().manual_seed(0)
    for name in ("dcgan/rgb64", "stylegan2-ada/cond16-orig", "progan/scales2-legacy-alpha"):
        whole = golden(name).path.read_bytes()
        for _ in range(25):
            cut = int(torch.randint(len(whole), (), generator=rng))
            with pytest.raises(LatentsegError):
                load_generator(write(tmp_path / "cut", whole[:cut]))
        for _ in range(25):
            flipped = bytearray(whole)
            flipped[int(torch.randint(len(whole), (), generator=rng))] ^= 1 << 6
            refuses_or_opens(write(tmp_path / "flipped", bytes(flipped)))


def refuses_or_opens(path: Path) -> None:
    try:
        load_generator(path, device="cpu")
    except LatentsegError as error:
        assert path.name in str(error)  # noqa: PT017


def test_conversion_is_done_once_and_only_into_its_own_folder(tmp_path: Path) -> None:
    path, other = golden("dcgan/rgb64").path, golden("selfcond/selfcond64").path
    out = convert(path, tmp_path / "out", quiet=True)
    before = (out / "MANIFEST.json").stat().st_mtime_ns
    assert convert(path, out, quiet=True) == out
    assert (out / "MANIFEST.json").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="another generator"):
        convert(other, out, quiet=True)
    with pytest.raises(InputError, match="another generator"):
        convert(path, out, name="renamed", quiet=True)
    (tmp_path / "full").mkdir()
    write(tmp_path / "full" / "diary.txt", b"mine")
    with pytest.raises(InputError, match="not empty"):
        convert(path, tmp_path / "full", quiet=True)
    with pytest.raises(InputError, match="a generator of latentseg already"):
        convert(out, tmp_path / "again", quiet=True)


def test_interrupted_conversion_is_made_again(tmp_path: Path) -> None:
    path = golden("dcgan/rgb64").path
    whole = convert(path, tmp_path / "whole", quiet=True)
    part = convert(path, tmp_path / "part", quiet=True)
    for name in ("MANIFEST.json", "README.md", "generator.safetensors"):
        (part / name).unlink()
    convert(path, part, quiet=True)
    names = ("MANIFEST.json", "README.md", "generator.safetensors", "config.json", "samples.png")
    assert all((part / name).read_bytes() == (whole / name).read_bytes() for name in names)


def test_origin_names_the_file_and_its_embedded_sources(tmp_path: Path) -> None:
    case = golden("stylegan2-ada/uncond32")
    out = convert(case.path, tmp_path, quiet=True, licence="CC0", name="mine", half=True)
    config = json.loads((out / "config.json").read_text())
    assert config["origin"]["sha256"] == open_checkpoint(case.path).sha256
    assert all(len(digest) == 64 for digest in config["origin"]["embedded_sources"])
    assert config["origin"]["embedded_sources"]
    assert (config["licence"], config["name"]) == ("CC0", "mine")
    assert str(case.path.parent) not in json.dumps(config)


def test_unknown_option_is_refused_with_those_that_exist() -> None:
    path = golden("dcgan/rgb64").path
    with pytest.raises(InputError, match="has no colour"):
        load_generator(path, options={"colour": 1})


def test_variants_and_features_come_in_parts_of_any_size(
    tiny: SavedGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents, seeds = tiny.sample(torch.arange(3)), torch.arange(5, 8)

    def drawn() -> list[torch.Tensor]:
        variants = [tiny.variants(latents, seeds, 1)] if isinstance(tiny, HasVariants) else []
        features = tiny.features(latents) if isinstance(tiny, HasFeatures) else []
        return [tiny(latents), *variants, *features]

    whole = drawn()
    monkeypatch.setattr("latentseg.generators.chunks.PIXELS", tiny.info.size[0] * tiny.info.size[1])
    for actual, expected in zip(drawn(), whole, strict=True):
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_network_of_many_times_the_size_of_its_file_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Parts of a file may be used many times over: here one that is not unfolds too far.
    monkeypatch.setattr("latentseg.generators.family.SMALL_BYTES", 0)
    monkeypatch.setattr("latentseg.generators.family.MOST_TIMES", 0.2)
    with pytest.raises(UnsafeFileError, match="unfolds to a network of"):
        load_generator(golden("dcgan/rgb64").path)
