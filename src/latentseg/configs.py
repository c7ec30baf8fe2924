"""Frozen dataclasses as JSON, and back with every mistake named."""

from collections.abc import Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, TypeVar

from latentseg.errors import InputError
from latentseg.files import check_keys

Config = TypeVar("Config")


def from_json(kind: type[Config], values: Mapping[str, Any], where: Path | str) -> Config:
    """Builds the dataclass `kind` from what `dataclasses.asdict` and JSON made of it.

    Lists become tuples, at every depth.

    Raises:
        InputError: a field is unknown or missing, or the values do not fit together.
    """
    declared = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    check_keys(values, set(declared), where)
    for name, field in declared.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}: the field {name!r} is missing.")
    return kind(**{name: _frozen(value) for name, value in values.items()})


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
