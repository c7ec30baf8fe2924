"""The folder of a labeler: labeler.json, tensors, and a manifest that is written last."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import (
    read_json,
    read_safetensors,
    verify_manifest,
    write_json,
    write_manifest,
    write_safetensors,
)
from latentseg.generators.protocols import Generator
from latentseg.labelers.kinds import LabelerKind
from latentseg.labelers.naming import NAMES

DESCRIPTION = "labeler.json"
FORMAT = 1


@dataclass(frozen=True)
class SavedLabeler:
    """What a labeler's folder says of it.

    Attributes:
        folder: The folder.
        description: The content of labeler.json.
        config: The configuration that it records.
    """

    folder: Path
    description: dict[str, Any]
    config: Any

    @property
    def seed(self) -> int:
        """Of the random numbers with which the labeler was fitted."""
        return self["seed"]

    def __getitem__(self, name: str) -> Any:
        """A field of labeler.json.

        Raises:
            CorruptFileError: it is missing.
        """
        if name not in self.description:
            raise CorruptFileError(f"{self.folder / DESCRIPTION}: the field {name!r} is missing.")
        return self.description[name]

    def tensors(self, file: str) -> dict[str, Tensor]:
        """The tensors of one of its files.

        Raises:
            CorruptFileError: it is damaged.
        """
        return read_safetensors(self.folder / file)


def write_labeler(
    folder: Path | str,
    info: Mapping[str, Any],
    tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes a labeler's files and, last, the manifest of its folder.

    Args:
        folder: May hold a report already. Its classes.json, if there is one, may be changed later,
            and is not in the manifest.
        info: What labeler.json says: `Labeler.info`.
        tensors: By the name of their file, and by their own.
    """
    folder = Path(folder)
    for file, values in (tensors or {}).items():
        write_safetensors(folder / file, dict(values))
    write_json(folder / DESCRIPTION, {"format": FORMAT, **info})
    write_manifest(folder, keep=lambda path: path.name != NAMES)


def read_labeler(kind: LabelerKind[Any], folder: Path | str, generator: Generator) -> SavedLabeler:
    """Reads the finished folder of a labeler of `generator`.

    Raises:
        InputError: the folder is not finished, of another format, or belongs to another generator;
            an option is unknown.
        CorruptFileError: a file is damaged.
    """
    folder = Path(folder)
    verify_manifest(folder)
    path = folder / DESCRIPTION
    description = read_json(path)
    if not isinstance(description, dict):
        raise CorruptFileError(f"{path}: expected a JSON object.")
    if description.get("format") != FORMAT:
        raise InputError(
            f"{path}: format {description.get('format')}; this version reads {FORMAT}. "
            "Fit the labeler again."
        )
    saved = SavedLabeler(folder, description, kind.options(description.get("options"), path))
    difference = generator_difference(saved["generator"], generator)
    if difference is not None:
        raise InputError(
            f"{folder}: fitted to a generator with {difference}. "
            f"Fit again: latentseg fit {kind.name} {generator.info.name} OUT"
        )
    return saved


def generator_difference(recorded: dict[str, Any], generator: Generator) -> str | None:
    """How a generator that was recorded in a file differs from `generator`; None if it does not."""
    given = json.loads(json.dumps(generator.info.to_json()))
    # A bank may hold one style per layer where the generator draws one style for all.
    if given["latent"][-len(recorded["latent"]) :] == recorded["latent"]:
        given["latent"] = recorded["latent"]
    for name in ("latent", "n_classes", "sha256"):
        if recorded[name] != given[name]:
            return f"{name} {recorded[name]!r}; this one has {given[name]!r}"
    return None
