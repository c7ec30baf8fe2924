"""labeler.json: what a labeler's folder says of it, checked against the generator at hand."""

import json
from pathlib import Path
from typing import Any

from latentseg.errors import InputError
from latentseg.files import read_json, verify_manifest
from latentseg.generators.protocols import Generator

DESCRIPTION = "labeler.json"


def read_description(folder: Path, generator: Generator, *, format: int) -> dict[str, Any]:
    """The content of labeler.json in a finished folder of a labeler of `generator`.

    Raises:
        InputError: the folder is not finished, of another format, or belongs to another generator.
        CorruptFileError: a file is damaged.
    """
    verify_manifest(folder)
    path = folder / DESCRIPTION
    description = read_json(path)
    if description.get("format") != format:
        raise InputError(
            f"{path}: format {description.get('format')}; this version reads {format}. "
            "Fit the labeler again."
        )
    difference = generator_difference(description["generator"], generator)
    if difference is not None:
        raise InputError(
            f"{folder}: fitted to a generator with {difference}. "
            f"Fit again: latentseg fit {description['method']} {generator.info.name} OUT"
        )
    return description


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
