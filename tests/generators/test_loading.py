"""Opening generators by name, folder and callable; damaged and foreign folders are refused."""

import json
from pathlib import Path

import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_safetensors, write_manifest, write_safetensors
from latentseg.generators import Generator, list_generators, load_generator
from latentseg.generators.family import SavedGenerator
from latentseg.generators.folders import save_generator
from tests.generators.tiny_stylegan2 import tiny


def saved(generator: SavedGenerator, folder: Path, *, half: bool = False) -> Path:
    save_generator(generator, folder, card="", origin={}, half=half)
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(tiny(), tmp_path / "tiny")


def test_folder_draws_what_was_saved(tmp_path: Path) -> None:
    original = tiny()
    opened = load_generator(saved(original, tmp_path / "g"), device="cpu")
    seeds = torch.arange(3)
    expected, actual = original(original.sample(seeds)), opened(opened.sample(seeds))
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert opened.info.licence == original.info.licence


def test_half_precision_halves_the_file_and_barely_changes_the_image(tmp_path: Path) -> None:
    original = tiny()
    whole, half = (saved(original, tmp_path / str(half), half=half) for half in (False, True))
    sizes = [(out / "generator.safetensors").stat().st_size for out in (whole, half)]
    opened = load_generator(half, device="cpu")
    seeds = torch.arange(3)
    assert sizes[1] < 0.75 * sizes[0]  # the rest is the header
    difference = (opened(opened.sample(seeds)) - original(original.sample(seeds))).abs().max()
    assert difference < 0.02


def test_unknown_name_is_answered_with_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    from latentseg import generators

    bundled = generators.BundledGenerator("pets64", (64, 64), "Apache-2.0", Path("pets64"))
    monkeypatch.setattr(generators, "list_generators", lambda: [bundled])
    with pytest.raises(InputError, match="Perhaps pets64"):
        load_generator("pet64")


def test_flipped_bit_is_refused(folder: Path) -> None:
    path = folder / "generator.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 4
    path.write_bytes(bytes(content))
    with pytest.raises(CorruptFileError, match=r"generator\.safetensors"):
        load_generator(folder)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", 99, "Update latentseg"),
        ("family", "stylegan9", "stylegan9"),
        ("surprise", 1, "unknown field 'surprise'"),
    ],
)
def test_foreign_configuration_is_refused(
    folder: Path, field: str, value: object, message: str
) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, field: value}))
    write_manifest(folder)
    with pytest.raises(InputError, match=message):
        load_generator(folder)


def test_weights_of_another_shape_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["network"]["channels"] = [8, 8, 6]
    (folder / "config.json").write_text(json.dumps(config))
    write_manifest(folder)
    with pytest.raises(CorruptFileError, match="shape"):
        load_generator(folder)


def test_callable_of_ones_own_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_generator.py").write_text(
        "from tests.world import World\n\ndef build():\n    return World()\n"
        "\ndef wrong():\n    return object()\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    assert isinstance(load_generator("own_generator:build", device="cpu"), Generator)
    with pytest.raises(InputError, match="lacks info"):
        load_generator("own_generator:wrong")
    with pytest.raises(InputError, match="has no 'missing'"):
        load_generator("own_generator:missing")
    with pytest.raises(InputError, match="cannot be found"):
        load_generator("no_such_module_here:build")


def test_folder_of_the_first_format_is_read(folder: Path) -> None:
    expected = load_generator(folder, device="cpu")
    config = json.loads((folder / "config.json").read_text())
    psi = config.pop("sampling")["psi"]
    old = {**config, "format": 1, "psi": psi, "trained": config.pop("origin")}
    (folder / "config.json").write_text(json.dumps({k: v for k, v in old.items() if k != "origin"}))
    tensors = read_safetensors(folder / "generator.safetensors")
    named = {name.removeprefix("extra."): tensor for name, tensor in tensors.items()}
    write_safetensors(folder / "generator.safetensors", named)
    write_manifest(folder)
    opened = load_generator(folder, device="cpu")
    latents = opened.sample(torch.arange(2))
    assert torch.equal(latents.values, expected.sample(torch.arange(2)).values)
    torch.testing.assert_close(opened(latents), expected(latents))


def test_choices_of_a_folder_can_be_overridden_but_not_what_it_was_read_with(folder: Path) -> None:
    narrow, wide = (load_generator(folder, options={"psi": psi}) for psi in (0.1, 1.0))
    seeds = torch.arange(50)
    assert narrow.sample(seeds).values.std() < 0.2 * wide.sample(seeds).values.std()
    with pytest.raises(InputError, match="has no conv_clamp"):
        load_generator(folder, options={"conv_clamp": 3})


@pytest.mark.parametrize("bundled", list_generators(), ids=lambda bundled: bundled.name)
def test_bundled_generators_open_and_stay_small(bundled) -> None:
    generator = load_generator(bundled.name, device="cpu")
    images = generator(generator.sample(torch.arange(4)))
    assert images.shape == (4, 3, *bundled.size)
    assert images.std() > 0.2  # a picture, not a plain area
    assert (bundled.folder / "generator.safetensors").stat().st_size <= 6_000_000
    assert bundled.licence
