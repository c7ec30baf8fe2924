"""What was found for one photo: its record, and its files NAME.*."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.configs import from_json
from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json, read_safetensors, write_safetensors
from latentseg.generators.protocols import Generator, Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.images import Pixels, overlay, to_pixels, write_image, write_mask
from latentseg.inversion.noise_maps import held, noise_maps, with_noise
from latentseg.inversion.search import Found

RECORD = "inversions.json"
FIT = "scaled to cover the generator's size, and cut at the center"
OUTSIDE = 0.5  # own images and photos of its domain lie below, what it cannot draw above


@dataclass(frozen=True)
class Inverted:
    """A photo, and how well it was found.

    Attributes:
        name: Name of the photo and of its files, without suffix.
        photo: Path of the photo.
        sha256: Digest of that file.
        loss: Loss between reconstruction and photo, by the loss that inversions.json names.
        unexplained: That of `losses.unexplained`, at least 0.
        psnr: Peak signal-to-noise ratio of the 8-bit reconstruction, in dB.
        error: Mean absolute difference between the two, in [0, 1].
        label: Class label of the latent; None for an unconditional generator.
        warning: Why the result is not to be trusted, or "".
        confidence: Confidence of the labeler in the mask, in [0, 1]; None without a labeler.
        refused_by: The filter of the labeler that refuses the mask, or "".
    """

    name: str
    photo: str
    sha256: str
    loss: float
    unexplained: float
    psnr: float
    error: float
    label: int | None = None
    warning: str = ""
    confidence: float | None = None
    refused_by: str = ""


def write_found(
    out: Path, found: Found, photo: Path, digest: str, image: Pixels, unexplained: float
) -> Inverted:
    """Writes NAME.safetensors, NAME_photo.png and NAME_reconstruction.png of one photo.

    Args:
        out: Folder of the results.
        found: What was found for the photo, a batch of one.
        photo: Its path.
        digest: Its SHA-256.
        image: (H, W, 3) uint8: the photo as it was searched.
        unexplained: That of the reconstruction.
    """
    tensors = {"latent": found.latents.values[0]}
    if found.latents.labels is not None:
        tensors["label"] = found.latents.labels[0]
    tensors |= {f"noise.{name}": maps[0] for name, maps in found.noise.items()}
    drawn = to_pixels(found.images)[0]
    name, difference = photo.stem, drawn.astype(np.float64) - image
    write_safetensors(out / f"{name}.safetensors", tensors)
    write_image(out / f"{name}_photo.png", image)
    write_image(out / f"{name}_reconstruction.png", drawn)
    return Inverted(
        name=name,
        photo=str(photo),
        sha256=digest,
        loss=float(found.losses[0]),
        unexplained=unexplained,
        psnr=_psnr(difference),
        error=float(np.abs(difference).mean() / 255),
        label=None if found.latents.labels is None else int(found.latents.labels[0]),
        warning=warning_of(unexplained),
    )


def write_mask_of(
    out: Path, inverted: Inverted, image: Pixels, mask: Pixels, *, confidence: float, filter: str
) -> Inverted:
    """Writes NAME_mask.png and NAME_overlay.png, and notes what the labeler says of the mask."""
    write_mask(out / f"{inverted.name}_mask.png", mask)
    write_image(out / f"{inverted.name}_overlay.png", overlay(image, mask))
    return replace(inverted, confidence=confidence, refused_by=filter)


def warning_of(unexplained: float) -> str:
    """Why a reconstruction is not to be trusted, in words; "" if it is near its photo.

    >>> warning_of(0.2), warning_of(0.625)
    ('', 'outside what the generator draws: 62 % of the photo is missing in the reconstruction')
    """
    if unexplained <= OUTSIDE:
        return ""
    if unexplained >= 1:
        lack = "the reconstruction is no closer to the photo than a plain color"
    else:
        lack = f"{unexplained:.0%} of the photo is missing in the reconstruction".replace("%", " %")
    return f"outside what the generator draws: {lack}"


def _psnr(difference: NDArray[np.float64]) -> float:
    """Peak signal-to-noise ratio in dB of 8-bit pixels; at most that of a single wrong level."""
    squares = max(float(np.square(difference).mean()), 1 / difference.size)
    return 10 * math.log10(255**2 / squares)


def read_record(out: Path) -> dict[str, Inverted]:
    """What earlier calls finished, by name; {} if there is no record.

    Raises:
        CorruptFileError: the record is damaged.
    """
    path = out / RECORD
    if not path.is_file():
        return {}
    record = read_json(path)
    photos = record.get("photos") if isinstance(record, dict) else None
    if not isinstance(photos, list) or not all(map(_is_sound, photos)):
        raise CorruptFileError(
            f"{path}: this is not a record of inversions. Remove the folder, and invert again."
        )
    kept = ("{}.safetensors", "{}_photo.png", "{}_reconstruction.png")
    found = [from_json(Inverted, values, path) for values in photos]
    return {
        each.name: each
        for each in found
        if all((out / file.format(each.name)).is_file() for file in kept)
    }


def _is_sound(values: Any) -> bool:
    """Whether values of a record have the types of `Inverted`, and the name is that of a file."""
    if not isinstance(values, Mapping):
        return False
    texts = [values.get(name, "") for name in ("name", "photo", "sha256", "warning", "refused_by")]
    numbers = [values.get(name) for name in ("loss", "unexplained", "psnr", "error")]
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers)
        and Path(texts[0]).name == texts[0] != ""
    )


def read_inverted(path: Path | str, generator: Generator) -> tuple[Generator, Latents]:
    """Reads NAME.safetensors of `invert`.

    Args:
        path: The file.
        generator: The one that was inverted.

    Returns:
        The generator with the noise maps that were found, and the latent, a batch of one. Together
        they draw the reconstruction.

    Raises:
        InputError: there is no such file, or it belongs to another generator.
        CorruptFileError: the file is damaged.
    """
    generator, tensors = held(generator), read_safetensors(path)
    known = noise_maps(generator)
    noise = {
        name.removeprefix("noise."): maps
        for name, maps in tensors.items()
        if name.startswith("noise.")
    }
    latent, shapes = tensors.get("latent"), {generator.info.latent}
    if isinstance(generator, StyleGenerator):
        width = generator.info.latent[-1]
        shapes |= {(width,), (generator.n_layers, width)}
    is_known = all(
        name in known and known[name].shape == maps.shape for name, maps in noise.items()
    )
    if latent is None or tuple(latent.shape) not in shapes or not is_known:
        raise InputError(
            f"{path}: this is not an inversion by generator {generator.info.name!r}. Give the "
            "generator that `latentseg invert` was given."
        )
    if noise and isinstance(generator, StyleGenerator):
        generator = with_noise(generator, noise)
    label = tensors.get("label")
    device = generator.device
    return generator, Latents(
        latent[None].to(device), None if label is None else label[None].to(device)
    )
