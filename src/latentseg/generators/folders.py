"""A generator's own folder: generator.safetensors, config.json, README.md, MANIFEST.json."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import (
    check_keys,
    read_json,
    read_safetensors,
    sha256,
    verify_manifest,
    write_json,
    write_manifest,
    write_safetensors,
    write_text,
)
from latentseg.generators.protocols import GeneratorInfo
from latentseg.generators.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Generator

FORMAT = 1
FIELDS = {"format", "family", "name", "licence", "source", "network", "psi", "trained"}


def save_generator(
    network: StyleGAN2,
    folder: Path | str,
    *,
    name: str,
    licence: str,
    source: str,
    trained: dict[str, Any],
    card: str,
    psi: float = 0.9,
    half: bool = True,
) -> None:
    """Writes a generator folder; complete once its MANIFEST.json is there.

    Args:
        network: The weights.
        folder: Made if missing, files in it are replaced.
        name, licence, source: Of the card; the licence travels to all that is made from it.
        trained: How it was trained and what was measured, JSON values.
        card: Text of README.md, Markdown.
        psi: Truncation to sample with.
        half: Store float16, half the size.
    """
    folder = Path(folder)
    (folder / "MANIFEST.json").unlink(missing_ok=True)
    info = GeneratorInfo(name, network.config.size, (network.config.w_dim,), 0, "w", "", "", "")
    spread = StyleGAN2Generator(network, info).spread
    tensors: dict[str, Tensor] = network.state_dict() | {"spread": spread}
    if half:
        tensors = {key: value.half() for key, value in tensors.items()}
    write_safetensors(folder / "generator.safetensors", tensors)
    config = {
        "format": FORMAT, "family": "stylegan2", "name": name, "licence": licence,
        "source": source, "psi": psi, "network": network.config.to_json(), "trained": trained,
    }  # fmt: skip
    write_json(folder / "config.json", config)
    write_text(folder / "README.md", card)
    write_manifest(folder)


def load_folder(folder: Path | str) -> StyleGAN2Generator:
    """Reads a generator folder, verified against its manifest.

    Raises:
        InputError: not a generator folder, or of an unknown family or a newer format.
        CorruptFileError: damaged.
    """
    folder = Path(folder)
    verify_manifest(folder)
    config = read_json(folder / "config.json")
    check_keys(config, FIELDS, folder / "config.json")
    if config.get("family") != "stylegan2":
        raise InputError(f"{folder}: unknown generator family {config.get('family')!r}.")
    if config.get("format") != FORMAT:
        raise InputError(
            f"{folder}: format {config.get('format')!r}; this version reads {FORMAT}. "
            "Update latentseg."
        )
    network = StyleGAN2(StyleGAN2Config.from_json(config["network"], folder / "config.json"))
    weights = folder / "generator.safetensors"
    tensors = {name: tensor.float() for name, tensor in read_safetensors(weights).items()}
    spread = tensors.pop("spread")
    load_weights(network, tensors, weights)
    info = GeneratorInfo(
        name=config["name"],
        size=network.config.size,
        latent=(network.config.w_dim,),
        n_classes=network.config.n_classes,
        space="w",
        licence=config["licence"],
        source=config["source"],
        sha256=sha256(weights),
    )
    network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return StyleGAN2Generator(network, info, psi=config["psi"], spread=spread)


def load_weights(network: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Fills `network`, naming the first parameter that is missing, unknown or of another shape.

    Raises:
        CorruptFileError: the tensors do not fit.
    """
    expected = network.state_dict()
    for name in expected.keys() | tensors.keys():
        if name not in tensors:
            raise CorruptFileError(f"{path}: the parameter {name!r} is missing.")
        if name not in expected:
            raise CorruptFileError(f"{path}: unknown parameter {name!r}.")
        if tensors[name].shape != expected[name].shape:
            raise CorruptFileError(
                f"{path}: {name!r} has shape {tuple(tensors[name].shape)}, "
                f"expected {tuple(expected[name].shape)}."
            )
    network.load_state_dict(tensors)
