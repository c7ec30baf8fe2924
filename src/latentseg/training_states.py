"""States on disk: complete and verified, or not there at all."""

import shutil
from pathlib import Path

from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import (
    MANIFEST,
    read_safetensors,
    refuse_links,
    verify_manifest,
    write_manifest,
    write_safetensors,
)
from latentseg.progress import say

KEPT = 2
_STATE = "state.safetensors"


def save_state(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Writes tensors into `folder`; the manifest comes last, so a kill leaves no half state."""
    (folder / MANIFEST).unlink(missing_ok=True)
    write_safetensors(folder / _STATE, tensors)
    write_manifest(folder)


def load_state(folder: Path) -> dict[str, Tensor]:
    """Reads what `save_state` wrote.

    Raises:
        InputError: there is no complete state.
        CorruptFileError: it was damaged since.
    """
    verify_manifest(folder)
    return read_safetensors(folder / _STATE)


class Checkpoints:
    """The last two states of a training, one folder `step-0001500` each.

    Args:
        folder: Made when the first state is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Saves the state after `step` steps, then deletes all but the last two."""
        save_state(self.folder / f"step-{step:07d}", tensors)
        for old in self._newest_first()[KEPT:]:
            shutil.rmtree(old)

    def load(self) -> tuple[int, dict[str, Tensor]]:
        """Step and tensors of the newest undamaged state; (0, {}) if there is none.

        A damaged one is named on stderr and deleted, and the one before it is taken.
        """
        for folder in self._newest_first():
            try:
                return int(folder.name.removeprefix("step-")), load_state(folder)
            except (InputError, CorruptFileError) as error:
                say(f"warning: checkpoint {folder.name} is not used. {error}")
                shutil.rmtree(folder)
        return 0, {}

    def newest(self) -> Path | None:
        """The folder of the newest state."""
        return next(iter(self._newest_first()), None)

    def delete(self) -> None:
        """Deletes all states."""
        refuse_links(self.folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _newest_first(self) -> list[Path]:
        refuse_links(self.folder)
        return sorted(self.folder.glob("step-*"), reverse=True)
