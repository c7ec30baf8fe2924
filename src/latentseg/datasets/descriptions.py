"""dataset.json: what it says of the masks of a dataset, and of where the dataset comes from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentseg.errors import InputError
from latentseg.files import read_json

DESCRIPTION = "dataset.json"
MEANING = ("classes", "ignore", "foreground")  # what it says of the masks; the rest are facts

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Description:
    """What a dataset.json says.

    Attributes:
        where: The file, whether it exists or not; for messages.
        values: All of it; {} without one.
    """

    where: Path
    values: Facts

    @property
    def facts(self) -> dict[str, Any]:
        """License, generator, labeler and the like: all but what the masks mean."""
        return {key: value for key, value in self.values.items() if key not in MEANING}

    @property
    def classes(self) -> tuple[str, ...] | None:
        """Names of the classes, without the background; None if it names none.

        Raises:
            InputError: they are not a list of names.
        """
        names = self.values.get("classes")
        if names is None:
            return None
        if not isinstance(names, list) or not names or not all(map(is_name, names)):
            raise InputError(
                f"{self.where}: classes is {str(names)[:200]!r}; expected a list of names, without "
                "the background."
            )
        return tuple(names)

    def mask_value(self, key: str, default: int | None = None) -> int | None:
        """The mask value that `key` names; None if it says that there is none.

        Raises:
            InputError: it is not a mask value.
        """
        value = self.values.get(key, default)
        if value is not None and (type(value) is not int or not 0 <= value <= 255):
            raise InputError(
                f"{self.where}: {key} is {str(value)[:200]!r}; expected a mask value in 0-255, or "
                "null."
            )
        return value


def read_description(folder: Path | str) -> Description:
    """The dataset.json in `folder`, or that of the folder above it, of which it is a part.

    Raises:
        InputError: it is not a JSON object.
        CorruptFileError: it is not valid JSON.
    """
    folder = Path(folder)
    for path in (folder / DESCRIPTION, folder.absolute().parent / DESCRIPTION):
        if path.is_file():
            values = read_json(path)
            if not isinstance(values, dict):
                raise InputError(
                    f'{path}: expected an object such as {{"classes": ["cat"], "ignore": 255}}.'
                )
            return Description(path, values)
    return Description(folder / DESCRIPTION, {})


def is_name(value: object) -> bool:
    """Whether a value that a file gives can be the name of a class."""
    return isinstance(value, str) and bool(value) and value.isprintable()
