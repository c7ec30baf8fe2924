"""A generator's own folder: generator.safetensors, config.json, README.md, MANIFEST.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from latentseg.configs import from_json
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
from latentseg.generators.family import Imported, Options, Sampling, SavedGenerator
from latentseg.generators.protocols import GeneratorInfo
from latentseg.generators.registry import find_family
from latentseg.plain_data import parse_json
from latentseg.weights.containers import Checkpoint

FORMAT = 2
FILES = ("generator.safetensors", "MANIFEST.json")  # what shows that a folder is one of ours
NO_OPTIONS: Options = {}
FIELDS = {"format", "family", "name", "licence", "source", "sampling", "network", "origin"}
FORMAT_1_FIELDS = {*FIELDS - {"sampling", "origin"}, "psi", "trained"}
FORMAT_1_EXTRAS = {"spread"}
EXTRA = "extra."  # stands before the names of tensors that are not the network's


def save_generator(
    generator: SavedGenerator,
    folder: Path | str,
    *,
    card: str,
    origin: Mapping[str, Any],
    half: bool = False,
) -> None:
    """Writes a generator folder; complete once its MANIFEST.json is there.

    Args:
        generator: Its identity card goes into config.json; the licence travels to all that is made
            from it.
        folder: Made if missing, files in it are replaced.
        card: Text of README.md, Markdown.
        origin: How it was trained, or which file it was converted from; JSON values.
        half: Store float16, half the size.
    """
    folder = Path(folder)
    (folder / "MANIFEST.json").unlink(missing_ok=True)
    tensors: dict[str, Tensor] = dict(generator.network.state_dict())
    tensors |= {EXTRA + name: tensor for name, tensor in generator.extras.items()}
    if half:
        tensors = {
            name: tensor.half() if tensor.is_floating_point() else tensor
            for name, tensor in tensors.items()
        }
    info = generator.info
    config = {
        "format": FORMAT,
        "family": info.family,
        "name": info.name,
        "licence": info.licence,
        "source": info.source,
        "sampling": generator.sampling.to_json(),
        "network": asdict(generator.network.config),  # pyright: ignore[reportArgumentType]
        "origin": dict(origin),
    }
    # The weights say what they are, so that the one file can be passed on alone.
    metadata = {"generator": json.dumps(config)}
    write_safetensors(folder / "generator.safetensors", tensors, metadata)
    write_json(folder / "config.json", config)
    write_text(folder / "README.md", card)
    write_manifest(folder)


def load_folder(folder: Path | str, options: Options = NO_OPTIONS) -> SavedGenerator:
    """Reads a generator folder, verified against its manifest.

    Args:
        folder: As `save_generator` wrote it.
        options: Choices of its family that go before the saved ones.

    Raises:
        InputError: not a generator folder, of an unknown family or a newer format, or without
            such choices.
        CorruptFileError: damaged.
    """
    folder = Path(folder)
    verify_manifest(folder)
    config = read_json(folder / "config.json")
    weights = folder / "generator.safetensors"
    where = folder / "config.json"
    return _build(config, where, options, weights, read_safetensors(weights), sha256(weights))


def load_file(checkpoint: Checkpoint, options: Options = NO_OPTIONS) -> SavedGenerator:
    """The weights file of a generator folder alone, by its metadata.

    Raises:
        InputError: of an unknown family or a newer format.
        CorruptFileError: damaged.
    """
    try:
        config = parse_json(checkpoint.metadata["generator"])
    except ValueError as error:
        raise CorruptFileError(f"{checkpoint.path}: its metadata is not JSON ({error}).") from error
    path = checkpoint.path
    return _build(config, path, options, path, checkpoint.tree, checkpoint.sha256)


def _build(
    config: Any,
    where: Path,
    options: Options,
    file: Path,
    weights: Mapping[str, Tensor],
    digest: str,
) -> SavedGenerator:
    """The generator of a description, read from `where`, and of the tensors in `file`."""
    if not isinstance(config, dict):
        raise CorruptFileError(f"{where}: expected a JSON object.")
    config = _current(config, where)
    check_keys(config, FIELDS, where)
    if missing := FIELDS - config.keys():
        raise CorruptFileError(f"{where}: the field {min(missing)!r} is missing.")
    family = find_family(config["family"])
    family.check_choices(options)
    tensors = {
        EXTRA + name if name in FORMAT_1_EXTRAS else name: tensor.float()
        if tensor.is_floating_point()
        else tensor
        for name, tensor in weights.items()
    }
    imported = Imported(
        config=from_json(family.config, config["network"], where),
        weights={name: tensor for name, tensor in tensors.items() if not name.startswith(EXTRA)},
        sampling=family.sampling(Sampling.from_json(config["sampling"], where), options),
        extras={
            name.removeprefix(EXTRA): tensor
            for name, tensor in tensors.items()
            if name.startswith(EXTRA)
        },
    )
    info = GeneratorInfo(
        name=config["name"],
        size=imported.config.size,
        latent=(),
        n_classes=imported.config.n_classes,
        space="",
        licence=config["licence"],
        source=config["source"],
        sha256=digest,
        family=family.name,
    )
    return family.generator(imported, info, file)


def _current(config: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """`config` in the present format.

    Raises:
        InputError: it is of a newer one.
    """
    if config.get("format") not in (1, FORMAT):
        raise InputError(
            f"{where}: format {config.get('format')!r}; this version reads 1 to {FORMAT}. "
            "Update latentseg."
        )
    if config["format"] == FORMAT:
        return config
    check_keys(config, FORMAT_1_FIELDS, where)
    kept = {name: value for name, value in config.items() if name not in ("psi", "trained")}
    return {**kept, "sampling": {"psi": config["psi"]}, "origin": config["trained"]}
