"""Tiny random generators of every family: all `TINY` of the modules tiny_*.py beside this one."""

import importlib
from collections.abc import Callable
from pathlib import Path

from latentseg.generators.family import SavedGenerator

TINY: dict[str, Callable[[], SavedGenerator]] = {}
for path in sorted(Path(__file__).parent.glob("tiny_*.py")):
    TINY |= importlib.import_module(f"tests.generators.{path.stem}").TINY
