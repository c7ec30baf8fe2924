"""Flags of the labelers, made from their configurations: each field is a flag.

A command looks at its own arguments first: the method, the settings and the preset that they name
decide which flags there are, and what their defaults are.
"""

import re
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, make_dataclass, replace
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, get_type_hints

from docstring_parser import parse
from tyro.conf import arg

from latentseg.cli.messages import in_flags, usage_error
from latentseg.errors import InputError
from latentseg.labelers.kinds import LabelerKind
from latentseg.labelers.registry import kinds

GIB = 2**30
OLD_FLAGS = {"--variant": "--settings", "--labels": "--painted"}
OLD_VALUES = {("--foreground", "centre"): "center"}
# Options that measured worse than the one that is kept.
RETIRED = {
    "--colour": "rgb",
    "--normalisation": "correlation",
    "--clustering": "kmeans",
    "--spatial-weight": "0",
}


Painted = Annotated[
    Path, arg(metavar="FOLDER", help="Folder of `latentseg paint`: the painted images.")
]


@dataclass(frozen=True)
class FieldFlag:
    """A field of a configuration as a flag.

    Attributes:
        path: From the configuration to the field: ("refinement", "min_area").
        flag: Name of the flag, without dashes.
        type: What it takes.
        value: Its default.
        help: What it does.
        unit: What a value is multiplied by before it becomes that of the field.
    """

    path: tuple[str, ...]
    flag: str
    type: Any
    value: Any
    help: str
    unit: int = 1


class MethodFlags(Protocol):
    """The flags of all labelers that take part in a command, with their values."""

    names: ClassVar[frozenset[str]]
    by_field: ClassVar[Mapping[str, str]]

    @property
    def configs(self) -> dict[str, Any]:
        """The configuration of each of them, by the method; "combination" for that of two."""
        ...


def flags_of(
    configs: Mapping[str, tuple[Any, Mapping[str, str]]],
    *,
    plain: str = "",
    reserved: Collection[str] = (),
) -> type[MethodFlags]:
    """The flags of several configurations: a dataclass with a field for each, which tyro reads.

    A flag that several of them have, or the command itself, gets the name of its owner before its
    own: --min-area of the method style-mixing becomes --style-mixing-min-area.

    Args:
        configs: By owner: the configuration, which gives the defaults, and names of flags that
            differ from those of the fields, as `LabelerKind.flags` has them.
        plain: The owner whose flags keep their names.
        reserved: Flags of the command, without dashes.
    """
    owned = [
        (owner, entry)
        for owner, (config, names) in configs.items()
        for entry in field_flags(config, names)
    ]
    flags = [entry.flag for _, entry in owned]
    entries, declared = {}, []
    for owner, entry in owned:
        is_shared = entry.flag in reserved or flags.count(entry.flag) > 1
        if is_shared and owner != plain:
            entry = replace(entry, flag=f"{owner.rpartition(':')[2]}-{entry.flag}")
        name = re.sub(r"\W", "_", "_".join((owner, *entry.path)))
        entries[name] = (owner, entry)
        is_said = entry.value is None or entry.value is True or entry.value == ()
        hint = "" if is_said else None
        about = arg(name=entry.flag, help=entry.help, help_behavior_hint=hint)
        declared.append((name, Annotated[entry.type, about], field(default=entry.value)))

    def given_configs(values: Any) -> dict[str, Any]:
        return {owner: given_config(values, owner) for owner in configs}

    def given_config(values: Any, owner: str) -> Any:
        given = {
            entry.path: _in_unit(getattr(values, name), entry.unit)
            for name, (of, entry) in entries.items()
            if of == owner
        }
        try:
            return _with(configs[owner][0], given)
        except InputError as error:
            raise InputError(in_flags(str(error), by_field(owner))) from error

    def by_field(*owners: str) -> dict[str, str]:
        return {entry.path[-1]: f"--{entry.flag}" for of, entry in entries.values() if of in owners}

    members = {
        "configs": property(given_configs),
        "names": frozenset(entry.flag for _, entry in entries.values()),
        "by_field": by_field(*configs),
    }
    return make_dataclass("MethodFlags", declared, frozen=True, namespace=members)


def field_flags(
    config: Any, names: Mapping[str, str], path: tuple[str, ...] = (), prefix: str = ""
) -> list[FieldFlag]:
    """Each field of a configuration as a flag, also those of the dataclasses in it."""
    hints = get_type_hints(type(config))
    helps = {each.arg_name: each.description or "" for each in parse(type(config).__doc__).params}
    found = []
    for each in fields(config):
        value, here = getattr(config, each.name), (*path, each.name)
        flag = names.get(".".join(here), each.name.replace("_", "-"))
        if is_dataclass(value):
            inner = f"{prefix}{flag}-" if flag else prefix
            found += field_flags(value, names, here, inner)
            continue
        kind, unit, help = hints[each.name], 1, " ".join(helps.get(each.name, "").split())
        if each.name == "memory":
            kind, value, unit = float, value / GIB, GIB
            help = help.replace("Bytes that", "GiB that")
        if kind == bool | None:
            kind = Literal["yes", "no"] | None
            value = {True: "yes", False: "no"}.get(value)
        if value is True:  # tyro makes it a flag that begins with no-
            help = f"Do not {help[0].lower()}{help[1:]}"
        found.append(FieldFlag(here, f"{prefix}{flag}", kind, value, help, unit))
    return found


def _in_unit(value: Any, unit: int) -> Any:
    if value in ("yes", "no"):
        return value == "yes"
    return value if unit == 1 else round(value * unit)


def _with(config: Any, given: Mapping[tuple[str, ...], Any]) -> Any:
    """`config` with the values at these paths, all at once: they are checked together."""
    inner = {
        name: {path[1:]: value for path, value in given.items() if path[0] == name}
        for name in {path[0] for path in given if len(path) > 1}
    }
    values = {path[0]: value for path, value in given.items() if len(path) == 1}
    values |= {name: _with(getattr(config, name), each) for name, each in inner.items()}
    return replace(config, **values)


def settings_flag(taking_part: Sequence[LabelerKind[Any]]) -> Any:
    """The type of the flag --settings: which published settings there are.

    They are those of the first kind that has several.
    """
    kind = with_settings(taking_part)
    about = f"Settings of {kind.name} that give the defaults below."
    return Annotated[Literal[tuple(kind.settings)], arg(help=about)]


def with_settings(taking_part: Sequence[LabelerKind[Any]]) -> LabelerKind[Any]:
    """The kind that --settings is about: the first one that has several."""
    return next((kind for kind in taking_part if len(kind.settings) > 1), taking_part[0])


def given(arguments: Sequence[str], flag: str) -> str | None:
    """The value of a flag among unparsed arguments; None if it is not there."""
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith(f"{flag}="):
            return argument.partition("=")[2]
    return None


def renewed(arguments: Sequence[str]) -> list[str]:
    """Arguments with flags of the last version as this one has them, each with a warning.

    Exits with code 2 where a flag asks for what there is no more.
    """
    split = [part for argument in arguments for part in _at_equals(argument)]
    current, i = [], 0
    while i < len(split):
        flag, value = split[i], split[i + 1] if i + 1 < len(split) else ""
        if flag in RETIRED:
            _retire(flag, value)
            i += 2
            continue
        if (flag, value) == ("--mode", "ensemble"):
            _warn("--mode ensemble is now --ensemble.")
            current, i = [*current, "--ensemble"], i + 2
            continue
        if (flag, value) in OLD_VALUES:
            _warn(f"{flag} {value} is now {flag} {OLD_VALUES[flag, value]}.")
            current, i = [*current, flag, OLD_VALUES[flag, value]], i + 2
            continue
        if flag in OLD_FLAGS:
            _warn(f"{flag} is now {OLD_FLAGS[flag]}.")
        current.append(OLD_FLAGS.get(flag, flag))
        i += 1
    return current


def _at_equals(argument: str) -> list[str]:
    """An old flag that is written as --flag=value, in two."""
    flag, equals, value = argument.partition("=")
    is_old = flag in OLD_FLAGS or flag in RETIRED or flag in ("--mode", "--foreground")
    return [flag, value] if equals and is_old else [argument]


def _retire(flag: str, value: str) -> None:
    kept = RETIRED[flag]
    if value != kept and not (kept == "0" and value.strip("0.") == ""):
        usage_error(f"{flag} {value}: measured worse than {kept}, it is no longer offered.")
    _warn(f"{flag} is gone: it is always {kept}.")


def _warn(text: str) -> None:
    print(f"warning: {text} The next version will not know it.", file=sys.stderr)


def refuse_flags_of_others(
    arguments: Sequence[str], flags: type[MethodFlags], *, reserved: Collection[str]
) -> None:
    """Ends the command if it has a flag of a labeler that takes no part, and says whose it is.

    Args:
        arguments: Of the command.
        flags: Those of the labelers that take part.
        reserved: Flags of the command, without dashes.
    """
    known = flags.names | set(reserved)
    theirs = {
        entry.flag: kind.name
        for kind in kinds().values()
        for entry in field_flags(kind.default, kind.flags)
        if entry.flag not in known
    }
    for argument in arguments:
        flag = argument.partition("=")[0].removeprefix("--").removeprefix("no-")
        if argument.startswith("--") and flag in theirs:
            usage_error(f"--{flag}: of the method {theirs[flag]}, which is not asked for.")


def specialized(
    command: Callable[..., None],
    changed: Mapping[str, tuple[Any, Any]],
    removed: Collection[str] = (),
) -> Callable[..., None]:
    """A command whose parameters are known only when its arguments are.

    Args:
        command: A function with keyword-only parameters for its flags.
        changed: Type and default of some of its parameters; `Parameter.empty` makes one required.
        removed: Parameters that are None, and no flags.
    """
    parameters = [
        each.replace(annotation=changed[name][0], default=changed[name][1])
        if name in changed
        else each
        for name, each in signature(command).parameters.items()
        if name not in removed
    ]

    def called(*arguments: Any, **options: Any) -> None:
        command(*arguments, **dict.fromkeys(removed), **options)

    called.__doc__ = command.__doc__
    called.__annotations__ = {each.name: each.annotation for each in parameters}
    called.__signature__ = Signature(parameters)  # pyright: ignore[reportFunctionMemberAccess]
    return called
