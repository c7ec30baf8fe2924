"""What the official networks compute: the cases under tests/data/golden."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from latentseg.files import read_safetensors
from latentseg.weights.containers import Checkpoint, open_checkpoint

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TOLERANCE = 1e-4  # of the range of what is expected


@dataclass(frozen=True)
class Case:
    """One checkpoint in an official layout, and what the official code drew from it."""

    path: Path
    card: dict[str, Any]
    expected: dict[str, Tensor]

    @property
    def checkpoint(self) -> Checkpoint:
        return open_checkpoint(self.path)


def golden(name: str) -> Case:
    """The case FAMILY/CASE; its first file, or, of a diffusers folder, the folder."""
    folder = GOLDEN / name
    card = json.loads((folder / "case.json").read_text())
    first = card["checkpoint"][0]
    is_folder = (folder / "model").is_dir() and not first.endswith(".pt2")
    path = folder / "model" if is_folder else folder / first
    return Case(path, card, read_safetensors(folder / "expected.safetensors"))


def cases(family: str) -> list[str]:
    """The names of all cases of a family."""
    return sorted(f"{family}/{path.parent.name}" for path in (GOLDEN / family).glob("*/case.json"))


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """The bound that every golden case sets: 1e-4 of the range of what is expected."""
    assert actual.shape == expected.shape
    span = expected.max() - expected.min()
    assert (actual - expected).abs().max() <= TOLERANCE * span
