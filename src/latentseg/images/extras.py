"""Packages that only some files need: imported when such a file is opened."""

import importlib
from typing import Any

from latentseg.errors import InputError


def needed(module: str, extra: str) -> Any:
    """Imports `module`, which comes with the extra `extra` of this package.

    Raises:
        InputError: it is not installed; the command that installs it is named.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"needs the package {module.replace('_', '-')}: pip install 'latentseg[{extra}]'"
        ) from error
