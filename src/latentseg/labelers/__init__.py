"""Labelers turn generated images into masks; the methods of the papers are labelers.

Nothing heavy is imported until one of the names is used: the command line reads the registry.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from latentseg.labelers.registry import find_kind, kinds, labelers_for, load_labeler

if TYPE_CHECKING:
    from latentseg.labelers.protocols import Labeler, Labelled

__all__ = ["Labeler", "Labelled", "find_kind", "kinds", "labelers_for", "load_labeler"]


def __getattr__(name: str) -> Any:
    if name not in ("Labeler", "Labelled"):
        raise AttributeError(f"module 'latentseg.labelers' has no attribute {name!r}")
    return getattr(import_module("latentseg.labelers.protocols"), name)
