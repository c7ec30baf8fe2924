"""Tiny random generators of every family: all `TINY` of the modules tiny_*.py beside this one."""

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from latentseg.generators.family import SavedGenerator

TINY: dict[str, Callable[[], SavedGenerator]] = {}
for path in sorted(Path(__file__).parent.glob("tiny_*.py")):
    TINY |= importlib.import_module(f"tests.generators.{path.stem}").TINY


def one_of_each(names: Iterable[str], separator: str = ", ") -> list[Any]:
    """Names as parameters of a test: what comes before the separator is tried once, else slowly."""
    found: set[str] = set()
    parameters = []
    for name in names:
        family = name.partition(separator)[0]
        marks = pytest.mark.slow if family in found else ()
        parameters.append(pytest.param(name, marks=marks))
        found.add(family)
    return parameters
