"""Messages of the library in the words of the command line: a field becomes its flag."""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from inspect import Parameter, signature
from typing import Any, NoReturn, get_args

# What the library calls otherwise than the commands do.
OTHER_NAMES = {
    "eval_data": "eval",
    "grouping": "group",
    "groupings": "group",
    "measure": "data",
    "open_browser": "open",
    "options": "option",
    "overlap": "tile-overlap",
    "world": "devices",
}
# "the extra `features`" is a name for pip, no field.
FIELD = re.compile(r"(?<!extra )`([a-z]\w*)`")
OPTION = re.compile(r"([a-z]\w*)=")


def usage_error(text: str) -> NoReturn:
    """Ends the command: it was used in a wrong way."""
    print(f"error: {text}", file=sys.stderr)
    sys.exit(2)


def flags_by_field(command: Callable[..., Any], arguments: Sequence[str] = ()) -> dict[str, str]:
    """The flags of a command, with their dashes, by the names that the library has for them.

    Args:
        command: A function whose keyword-only parameters are its flags.
        arguments: What it was given: its options NAME=VALUE are fields of a generator's family.
    """
    own, inner = {}, {}
    for name, each in signature(command).parameters.items():
        kind = (*get_args(each.annotation), each.annotation)[0]
        if is_dataclass(kind):
            inner |= _flags_of_dataclass(kind)
        elif each.kind is Parameter.KEYWORD_ONLY:
            own[name] = _flag(name)
    found = inner | own
    if "option" in found:
        given = filter(None, map(OPTION.match, arguments))
        found = {each[1]: f"--option {each[1]}" for each in given} | found
    others = {name: f"--{flag}" for name, flag in OTHER_NAMES.items()}
    return {name: flag for name, flag in others.items() if flag in found.values()} | found


def _flags_of_dataclass(kind: Any) -> dict[str, str]:
    own = {each.name: _flag(each.name) for each in fields(kind)}
    return getattr(kind, "by_field", own)


def _flag(name: str) -> str:
    return f"--{name.removesuffix('_masks').replace('_', '-')}"


def in_flags(text: str, flags: Mapping[str, str]) -> str:
    """`text` with flags for the fields in backticks that have one, and the others as they are."""
    return FIELD.sub(lambda found: flags.get(found[1], found[0]), text)
