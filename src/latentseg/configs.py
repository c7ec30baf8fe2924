"""Frozen dataclasses as JSON and back; every mistake in a field is named."""

import math
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from latentseg.errors import InputError
from latentseg.files import check_keys

Config = TypeVar("Config")

PLAIN = {bool: "true or false", int: "an integer", float: "a number", str: "a text"}


def from_json(kind: type[Config], values: Mapping[str, Any], where: Path | str) -> Config:
    """Builds the dataclass `kind` from what `dataclasses.asdict` and JSON made of it.

    Lists become tuples, at every depth; a field that is a dataclass is read in the same way.

    Raises:
        InputError: a field is unknown, missing or of another type, or the values do not fit
            together.
    """
    if not isinstance(values, Mapping):
        raise InputError(f"{where}: expected a JSON object, found {_shown(values)}.")
    declared = {field.name: field for field in fields(cast(Any, kind))}
    check_keys(values, set(declared), where)
    for name, field in declared.items():
        if name not in values and field.default is MISSING and field.default_factory is MISSING:
            raise InputError(f"{where}: the field {name!r} is missing.")
    hints = get_type_hints(kind)
    read = {name: _read(hints[name], value, f"{where}: `{name}`") for name, value in values.items()}
    try:
        return kind(**read)
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{where}: the values do not fit together ({error}).") from error


def _read(hint: Any, value: Any, where: str) -> Any:
    """The value of a field whose type is `hint`, from JSON."""
    if get_origin(hint) in (Union, types.UnionType):
        return _read_one_of(get_args(hint), value, where)
    if get_origin(hint) is tuple:
        return _read_tuple(get_args(hint), value, where)
    if is_dataclass(hint):
        return from_json(cast(type, hint), value, where)
    if get_origin(hint) is Literal:
        check_choice(where, value, get_args(hint))
    elif hint is type(None):
        if value is not None:
            raise InputError(f"{where}: expected null, found {_shown(value)}.")
    elif hint in PLAIN:
        accepted = (int, float) if hint is float else (hint,)
        if type(value) not in accepted:
            raise InputError(f"{where}: expected {PLAIN[hint]}, found {_shown(value)}.")
    return _frozen(value)


def _read_one_of(hints: Sequence[Any], value: Any, where: str) -> Any:
    if value is None and type(None) in hints:
        return None
    *first, last = (hint for hint in hints if hint is not type(None))
    for hint in first:
        try:
            return _read(hint, value, where)
        except InputError:
            continue
    return _read(last, value, where)


def _read_tuple(hints: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{where}: expected a list, found {_shown(value)}.")
    each = hints[:1] * len(value) if hints[1:] == (...,) else hints
    if len(each) != len(value):
        raise InputError(f"{where}: expected {len(each)} values, found {len(value)}.")
    return tuple(
        _read(hint, item, f"{where}[{i}]")
        for i, (hint, item) in enumerate(zip(each, value, strict=True))
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
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        shown = name if "`" in name else f"`{name}`"
        listed = ", ".join("none" if choice is None else str(choice) for choice in choices)
        raise InputError(f"{shown}: expected one of {listed}, found {_shown(value)}.")


def check_range(
    config: Any,
    names: Sequence[str],
    least: float = -math.inf,
    most: float = math.inf,
    *,
    above: float = -math.inf,
) -> None:
    """Raises an error unless the fields `names` are finite and within bounds, or are None.

    Args:
        config: The dataclass.
        names: Its fields.
        least, most: The bounds, both allowed.
        above: A bound that is not allowed itself.

    Raises:
        InputError: one is not; the field and its bounds are named.
    """
    for name in names:
        value = getattr(config, name)
        if value is None:
            continue
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (is_number and math.isfinite(value) and least <= value <= most and value > above):
            bounds = _bounds(least, most, above)
            raise InputError(f"`{name}`: expected {bounds}, found {_shown(value)}.")


def _bounds(least: float, most: float, above: float) -> str:
    if above > -math.inf:
        return f"above {above:g}" + ("" if most == math.inf else f", at most {most:g}")
    if least == -math.inf:
        return "a finite number" if most == math.inf else f"at most {most:g}"
    return f"at least {least:g}" if most == math.inf else f"{least:g} to {most:g}"


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
