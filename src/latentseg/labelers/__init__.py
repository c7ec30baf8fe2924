"""Labelers turn generated images into masks; the methods of the papers are labelers."""

from pathlib import Path

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import read_json
from latentseg.generators.protocols import Generator
from latentseg.labelers.protocols import Labeler, Labelled

__all__ = ["METHODS", "Labeler", "Labelled", "labelers_for", "load_labeler"]

METHODS: dict[str, type] = {"directions": Generator}  # what each method needs of a generator


def labelers_for(generator: Generator) -> tuple[str, ...]:
    """The methods that `generator` can serve."""
    return tuple(method for method, needed in METHODS.items() if isinstance(generator, needed))


def load_labeler(folder: Path | str, generator: Generator) -> Labeler:
    """Reads a labeler that was fitted to `generator`.

    Raises:
        InputError: the folder holds no labeler, or it was fitted to another generator.
        CorruptFileError: one of its files is damaged.
    """
    from latentseg.labelers.directions import DirectionsLabeler

    loaders = {"directions": DirectionsLabeler.load}
    path = Path(folder) / "labeler.json"
    if not path.is_file():
        raise InputError(
            f"{folder}: holds no labeler (no labeler.json). "
            f"Make one with: latentseg fit directions {generator.info.name} {folder}"
        )
    description = read_json(path)
    method = description.get("method") if isinstance(description, dict) else None
    if method not in loaders:
        raise CorruptFileError(
            f"{path}: unknown method {method!r}. This version knows: {', '.join(loaders)}."
        )
    return loaders[method](folder, generator)
