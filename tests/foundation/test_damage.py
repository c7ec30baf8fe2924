"""Truncated and flipped bytes: refused by name, or without any effect; no other exception."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from latentseg import files, images
from latentseg.errors import CorruptFileError, InputError

TRUNCATIONS = 60
FLIPS = 140


def damaged(content: bytes, seed: int):
    """Yields damaged versions of `content`: cut short, and with one bit flipped."""
    chance = random.Random(seed)
    for _ in range(TRUNCATIONS):
        yield content[: chance.randrange(len(content))]
    for _ in range(FLIPS):
        flipped = bytearray(content)
        flipped[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        yield bytes(flipped)


def refusal_of(reads_well: Callable[[], bool]) -> str | None:
    """The message of our error, or None if the file was read and found well."""
    try:
        assert reads_well(), "damage that was not noticed"
    except (CorruptFileError, InputError) as error:
        return str(error)
    return None


def write_model(folder: Path) -> None:
    files.write_json(folder / "config.json", {"format": 1, "classes": ["pet"], "threshold": 0.5})
    files.write_safetensors(
        folder / "model.safetensors", {"weight": torch.randn(40, 3)}, {"a": "b"}
    )
    files.write_text(folder / "README.md", "# A model\n")
    images.write_image(folder / "sample.png", np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    files.write_manifest(folder)


def read_model(folder: Path) -> tuple[object, ...]:
    files.verify_manifest(folder)
    weights = files.read_safetensors(folder / "model.safetensors")
    return (
        files.read_json(folder / "config.json"),
        {name: tensor.tolist() for name, tensor in weights.items()},
        (folder / "README.md").read_bytes(),
        images.read_image(folder / "sample.png").tolist(),
    )


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "README.md", "sample.png", files.MANIFEST]
)
def test_a_damaged_folder_is_refused_or_reads_the_same(tmp_path, name):
    write_model(tmp_path)
    intact, content = read_model(tmp_path), (tmp_path / name).read_bytes()
    for version in damaged(content, seed=1):
        (tmp_path / name).write_bytes(version)
        refusal = refusal_of(lambda: read_model(tmp_path) == intact)
        assert refusal is None or tmp_path.name in refusal


def _save(format: str, **options: object) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).save(path, format, exif=exif, **options)

    return write


PICTURES = {
    "jpeg": _save("JPEG"),
    "png": _save("PNG"),
    "webp": _save("WEBP", lossless=True),
    "tiff": _save("TIFF"),
    "tiff deflated": _save("TIFF", compression="tiff_adobe_deflate"),
    "bmp": _save("BMP"),
    "gif": _save("GIF"),
    "ppm": _save("PPM"),
}


@pytest.mark.filterwarnings("ignore")  # Pillow warns of damaged metadata; that may not be fatal
@pytest.mark.parametrize("read", [images.read_image, images.read_mask, images.size_of])
@pytest.mark.parametrize("kind", PICTURES)
def test_a_damaged_picture_raises_nothing_but_our_errors(tmp_path, kind, read):
    path = tmp_path / "photo.png"
    PICTURES[kind](path)
    images.read_image(path)
    content = path.read_bytes()
    refusals = []
    for version in damaged(content, seed=2):
        path.write_bytes(version)
        refusals.append(refusal_of(lambda: read(path) is not None))
    said = [refusal for refusal in refusals if refusal]
    assert said
    assert all("photo.png" in refusal for refusal in said)


@pytest.mark.parametrize("read", [files.read_json, files.read_safetensors])
def test_noise_raises_nothing_but_our_errors(tmp_path, read):
    path, chance = tmp_path / "noise", random.Random(3)
    for length in range(200):
        path.write_bytes(chance.randbytes(length))
        with pytest.raises(CorruptFileError, match="noise"):
            read(path)


@pytest.mark.parametrize("claimed", [0, 1, 2**24, 100_000_001, 2**63, 2**64 - 1])
def test_safetensors_with_a_lying_header_are_refused(tmp_path, claimed):
    path = tmp_path / "a.safetensors"
    path.write_bytes(claimed.to_bytes(8, "little") + b"{}")
    with pytest.raises(CorruptFileError, match=r"a\.safetensors"):
        files.read_safetensors(path)
