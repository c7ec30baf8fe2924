"""All kinds of labelers: every command, the report and the documents read this table."""

import re
from collections.abc import Collection
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.labelers.kinds import LabelerKind, deferred

if TYPE_CHECKING:
    from latentseg.generators.protocols import Generator
    from latentseg.labelers.protocols import Labeler

# Each has its KIND. Nothing heavy is imported with them.
MODULES = [
    "latentseg.labelers.directions_settings",
    "latentseg.labelers.style_mixing_settings",
    "latentseg.labelers.few_shot_settings",
    "latentseg.labelers.feature_clusters_settings",
]
# Made of two labelers of any kinds; they are not fitted.
COMBINATIONS = {
    "agreement": deferred("latentseg.labelers.agreement:AgreementLabeler.load"),
    "voting": deferred("latentseg.labelers.agreement:VotingLabeler.load"),
}
OWN_FOLDER = re.compile(r"(?P<kind>[\w.]+:[\w.]+):(?P<folder>.+)")


def kinds() -> dict[str, LabelerKind[Any]]:
    """Every kind of labeler by its name."""
    return {kind.name: kind for kind in map(_kind_in, MODULES)}


@cache
def _kind_in(module: str) -> LabelerKind[Any]:
    return import_module(module).KIND


def find_kind(name: str) -> LabelerKind[Any]:
    """The kind of labeler called `name`; `module:callable` imports one of the user's own.

    Raises:
        InputError: there is none, or what the callable gives is no `LabelerKind`.
    """
    if ":" in name:
        return _own_kind(name)
    if name not in kinds():
        raise InputError(
            f"{name}: no such method. Expected one of {', '.join(kinds())}, or module:callable for "
            "one of your own (`latentseg fit --template` prints one to start from)."
        )
    return kinds()[name]


@cache
def _own_kind(reference: str) -> LabelerKind[Any]:
    from dataclasses import replace

    from latentseg.generators.external import import_callable

    kind = import_callable(reference)()
    if not isinstance(kind, LabelerKind):
        raise InputError(
            f"{reference}: gives {type(kind).__name__}, not a LabelerKind. "
            "One to start from: latentseg fit --template"
        )
    return replace(kind, name=reference)


def labelers_for(abilities: Collection[str]) -> tuple[str, ...]:
    """The methods that a generator with these `abilities` can serve."""
    return tuple(
        kind.name for kind in kinds().values() if kind.needs is None or kind.needs in abilities
    )


def load_labeler(folder: Path | str, generator: "Generator") -> "Labeler":
    """Reads a labeler that was fitted to `generator`.

    Args:
        folder: Written by `latentseg fit`. For a labeler of the user's own it is
            `module:callable:FOLDER`, since no file may name the code that is run.
        generator: The one that it was fitted to.

    Raises:
        InputError: the folder holds no labeler, or it was fitted to another generator.
        CorruptFileError: one of its files is damaged.
    """
    own = OWN_FOLDER.fullmatch(str(folder))
    if own:
        return _own_kind(own["kind"]).load(Path(own["folder"]), generator)
    path = Path(folder) / "labeler.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no labeler (no labeler.json). "
            f"Make one with: latentseg fit directions {generator.info.name} {folder}"
        )
    description = read_json(path)
    method = description.get("method") if isinstance(description, dict) else None
    loaders = {**{kind.name: kind.load for kind in kinds().values()}, **COMBINATIONS}
    if method in loaders:
        return loaders[method](Path(folder), generator)
    if isinstance(method, str) and ":" in method:
        raise InputError(
            f"{folder}: made by a labeler of your own, {method}. As no code that a file names is "
            f"run, name it yourself: {method}:{folder}"
        )
    raise CorruptFileError(
        f"{path}: unknown method {method!r}. This version knows: {', '.join(loaders)}."
    )
