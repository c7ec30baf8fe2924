"""Frozen dataclasses as JSON, and back with every mistake named."""

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from latentseg.errors import InputError
from latentseg.files import check_keys

Config = TypeVar("Config")


def from_json(kind: type[Config], values: Mapping[str, Any], where: Path | str) -> Config:
    """Builds the dataclass `kind` from what `dataclasses.asdict` and JSON made of it.

    Lists become tuples, at every depth; a field that is a dataclass is read in the same way.

    Raises:
        InputError: a field is unknown or missing, or the values do not fit together.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a JSON object, found {values!r}.")
    declared = {field.name: field for field in fields(kind)}  # pyright: ignore[reportArgumentType]
    check_keys(values, set(declared), where)
    for name, field in declared.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}: the field {name!r} is missing.")
    hints = get_type_hints(kind)
    return kind(
        **{
            name: from_json(hints[name], value, f"{where}: {name}")
            if is_dataclass(hints[name])
            else _frozen(value)
            for name, value in values.items()
        }
    )


def check_choices(config: Any) -> None:
    """Raises an error unless every field whose type is a `Literal` holds one of its values.

    Raises:
        InputError: one does not; the field and its choices are named.
    """
    for name, hint in get_type_hints(type(config)).items():
        if get_origin(hint) is Literal:
            check_choice(name, getattr(config, name), get_args(hint))


def check_choice(name: str, value: object, choices: Sequence[object]) -> None:
    """Raises an error unless `value`, of the field `name`, is one of `choices`.

    Raises:
        InputError: it is not.
    """
    if value not in choices:
        raise InputError(
            f"`{name}`: expected one of {', '.join(map(str, choices))}, found {value!r}."
        )


def check_range(
    config: Any, names: Sequence[str], least: float, most: float = float("inf")
) -> None:
    """Raises an error unless the fields `names` lie between `least` and `most`, or are None.

    Raises:
        InputError: one does not; the field and its bounds are named.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and not least <= value <= most:
            bounds = f"at least {least:g}" if most == float("inf") else f"{least:g} to {most:g}"
            raise InputError(f"`{name}`: expected {bounds}, found {value}.")


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
