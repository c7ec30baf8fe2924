"""Decoders of autoencoders against what diffusers computes, and their own promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_safetensors, write_safetensors
from latentseg.generators.families.autoencoder import (
    FAMILY,
    AutoencoderConfig,
    AutoencoderGenerator,
)
from latentseg.generators.families.diffusers_folders import diffusers_class
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo, HasEncoder, Latents
from latentseg.images import cover, read_image, to_pixels, to_tensor, write_image
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import assert_close, golden
from tests.generators.tiny_autoencoder import TINY, VAE, VQ

CASE = "autoencoderkl/lat4"
WEIGHTS = "diffusion_pytorch_model.safetensors"


def opened(path: Path, **options: Any) -> AutoencoderGenerator:
    checkpoint = open_checkpoint(path)
    assert FAMILY.objection(checkpoint) is None
    FAMILY.check_options(options)
    imported = FAMILY.read(checkpoint, options)
    size = imported.config.size
    info = GeneratorInfo("g", size, (), 0, "", "CC0", "", "", family="autoencoder")
    generator = FAMILY.generator(imported, info, path)
    assert isinstance(generator, AutoencoderGenerator)
    return generator


@pytest.fixture
def latents(tmp_path: Path) -> Path:
    np.save(tmp_path / "latents.npy", golden(CASE).expected["z"].numpy())
    return tmp_path / "latents.npy"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    rng = torch.Generator().manual_seed(0)
    for i, size in enumerate([(32, 32), (40, 32), (70, 90)]):
        x = torch.rand(3, *size, generator=rng) * 2 - 1
        write_image(tmp_path / "photos" / f"{i}.png", to_pixels(x))
    return tmp_path / "photos"


def test_golden_case_equals_the_official_network(latents: Path) -> None:
    case = golden(CASE)
    generator, expected = opened(case.path, latents=latents), case.expected
    assert_close(generator(Latents(expected["z"])), expected["image"])
    scale = generator.network.scale
    assert_close(generator(Latents(expected["z"][:1] * scale)), expected["image.unscaled"])
    assert_close(generator.encode(expected["picture"]).values / scale, expected["encoded"])
    middle = generator.features(Latents(expected["z"]))[0]
    assert_close(middle[:1], expected["features.decoder.mid_block"])


@pytest.mark.parametrize("values", [VAE, VQ], ids=["kl", "vq"])
def test_networks_equal_those_of_diffusers(values: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = diffusers_class(values["_class_name"]).from_config(values).eval()
    network.save_pretrained(tmp_path / "model")
    channels, scale, shift = values["latent_channels"], 0.5, values.get("shift_factor", 0)
    z = torch.randn(3, channels, 8, 12)
    np.savez(tmp_path / "latents.npz", z=z.numpy())
    generator = opened(tmp_path / "model", latents=tmp_path / "latents.npz")
    assert generator.info.size == (16, 24)
    with torch.no_grad():
        expected = network.decode(z / scale + shift).sample
        encoded = network.encode(expected)
    assert_close(generator(Latents(z)), expected)
    found = encoded.latents if values is VQ else encoded.latent_dist.mode()
    assert_close(generator.encode(expected).values, (found - shift) * scale)


def test_latents_are_drawn_from_the_bank(latents: Path) -> None:
    z = golden(CASE).expected["z"]
    generator = opened(golden(CASE).path, latents=latents)
    drawn = generator.sample(torch.arange(20)).values
    assert all(any(torch.equal(row, each) for each in z) for row in drawn)
    moved = generator.shift(Latents(z), torch.ones(4, 16, 16)).values - z
    torch.testing.assert_close(moved[0], z.std(dim=0, correction=0))


def test_photos_become_the_bank(photos: Path) -> None:
    generator = opened(golden(CASE).path, photos=photos)
    (bank,) = generator.extras.values()
    assert bank.shape == (3, 4, 16, 16)
    photo = to_tensor(cover(read_image(photos / "2.png"), (32, 32)))[None]
    torch.testing.assert_close(bank[2:], generator.encode(photo).values, atol=1e-5, rtol=1e-5)
    smaller = opened(golden(CASE).path, photos=str(photos), size=16)
    assert smaller.info.size == (16, 16)
    assert smaller.info.latent == (4, 8, 8)


def test_converted_folder_draws_and_encodes_the_same(photos: Path, tmp_path: Path) -> None:
    generator = opened(golden(CASE).path, photos=photos)
    save_generator(generator, tmp_path / "out", card="", origin={})
    again = load_folder(tmp_path / "out", {"bank_noise": 0.0})
    assert isinstance(again, HasEncoder)
    drawn = generator.sample(torch.arange(2))
    torch.testing.assert_close(again.sample(torch.arange(2)).values, drawn.values)
    torch.testing.assert_close(again(drawn), generator(drawn))
    x = golden(CASE).expected["picture"]
    torch.testing.assert_close(again.encode(x).values, generator.encode(x).values)


def test_bank_noise_blurs_the_bank(photos: Path, tmp_path: Path) -> None:
    save_generator(opened(golden(CASE).path, photos=photos), tmp_path / "out", card="", origin={})
    plain, noisy = load_folder(tmp_path / "out"), load_folder(tmp_path / "out", {"bank_noise": 0.5})
    seeds = torch.arange(2)
    difference = noisy.sample(seeds).values - plain.sample(seeds).values
    assert 0.3 < (difference / opened(golden(CASE).path, photos=photos).spread).std() < 0.7


def test_codebook_lets_the_gradient_through() -> None:
    generator = TINY["autoencoder, vq"]()
    z = generator.sample(torch.arange(1)).values.requires_grad_()
    (gradient,) = torch.autograd.grad(generator(Latents(z)).square().sum(), z)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("name", ["diffusers-ddim/uncond16", "hf-biggan/deep32", "dcgan/rgb64"])
def test_other_files_are_objected_to(name: str) -> None:
    assert FAMILY.objection(golden(name).checkpoint)


def test_decoder_without_latents_is_refused_with_advice(latents: Path, photos: Path) -> None:
    path = golden(CASE).path
    with pytest.raises(InputError, match=r"does not know which latents .* photos=FOLDER"):
        opened(path)
    with pytest.raises(InputError, match="expected photos or latents"):
        opened(path, latents=latents, photos=photos)


def test_options_of_nonsense_are_named(latents: Path, photos: Path, tmp_path: Path) -> None:
    path = golden(CASE).path
    with pytest.raises(InputError, match="has no colour"):
        opened(path, colour=1)
    with pytest.raises(
        InputError, match=r"`size`: expected multiples of 2 pixels, found \(15, 15\)"
    ):
        opened(path, photos=photos, size=15)
    with pytest.raises(InputError, match=r"`size`: expected a number of pixels, .* found 'big'"):
        opened(path, photos=photos, size="big")
    with pytest.raises(InputError, match="goes with photos only"):
        opened(path, latents=latents, size=16)
    with pytest.raises(InputError, match="nowhere: there is no such folder"):
        opened(path, photos=tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no such file"):
        opened(path, latents=tmp_path / "nowhere.npy")


def test_banks_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    def refused(message: str, **arrays: Any) -> None:
        np.savez(tmp_path / "bank.npz", **arrays)
        with pytest.raises((InputError, CorruptFileError), match=message):
            opened(golden(CASE).path, latents=tmp_path / "bank.npz")

    refused(r"shape \(3, 8\), not \(N, C, H, W\)", z=np.zeros((3, 8)))
    refused(r"expected finite numbers in \(N, 4, 8, 8\)", z=np.zeros((3, 5, 8, 8)))
    refused("not finite", z=np.full((3, 4, 8, 8), np.nan))
    refused("1 latent; expected at least 2", z=np.zeros((1, 4, 8, 8)))
    refused("2 arrays in it; expected one", a=np.zeros(2), b=np.zeros(2))
    refused("expected numbers, found <U1", z=np.array(["a"]))
    refused("not a complete .npy", z=np.array([{}], dtype=object))
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01")
    with pytest.raises(CorruptFileError, match=r"cut\.npy"):
        opened(golden(CASE).path, latents=tmp_path / "cut.npy")


def test_damaged_weights_and_configurations_are_named(latents: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for path in golden(CASE).path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = read_safetensors(folder / WEIGHTS)
    write_safetensors(folder / WEIGHTS, {**weights, "decoder.conv_in.bias": torch.zeros(3)})
    with pytest.raises(CorruptFileError, match=r"decoder\.conv_in\.bias' has shape \(3,\)"):
        opened(folder, latents=latents)
    weights.pop("decoder.conv_in.bias")
    write_safetensors(folder / WEIGHTS, weights)
    with pytest.raises(CorruptFileError, match=r"decoder\.conv_in\.bias' is missing"):
        opened(folder, latents=latents)
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**values, "in_channels": 1}))
    with pytest.raises(InputError, match="other than RGB"):
        opened(folder, latents=latents)
    with pytest.raises(InputError, match="Not a configuration of diffusers"):
        AutoencoderConfig("[]", (16, 16))
