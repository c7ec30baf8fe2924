"""A generator of the user's own: any importable callable that builds one."""

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from latentseg.errors import InputError
from latentseg.generators.protocols import Generator

TEMPLATE = Path(__file__).with_name("template.py")


def build_external(reference: str) -> Generator:
    """Imports `module:callable`, also from the current folder, and calls it without arguments.

    Raises:
        InputError: there is no such module or callable, or what it builds is not a generator;
            the missing members are named.
    """
    generator = import_callable(reference)()
    members = ("info", "device", "to", "sample", "__call__", "shift")
    missing = [member for member in members if not hasattr(generator, member)]
    if missing:
        raise InputError(
            f"{reference}: what it builds lacks {', '.join(missing)}. A complete generator to "
            "start from: latentseg generators --template"
        )
    return generator


def import_callable(reference: str) -> Callable[..., Any]:
    """What `module:callable` names, imported, also from the current folder.

    Raises:
        InputError: there is no such module or callable.
    """
    module_name, _, attribute = reference.partition(":")
    folder = str(Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise InputError(
            f"{reference}: the module {error.name!r} cannot be found from {folder}."
        ) from error
    except AttributeError as error:
        raise InputError(f"{reference}: {module_name} has no {attribute!r}.") from error


def template_text() -> str:
    """The text of the module `template`: a generator to copy and change."""
    return TEMPLATE.read_text(encoding="utf-8")
