"""A mask under the brush: its file, and a journal beside it from which every stroke is undone."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import open_in_place, read_bytes, truncate, write_text
from latentseg.images import Pixels, read_mask, write_mask
from latentseg.plain_data import parse_json

LIMIT = 1000  # strokes that can be undone in one image

Runs = NDArray[np.int64]


@dataclass(frozen=True)
class Edit:
    """A change of a mask.

    Attributes:
        tool: What made it, for example "brush".
        runs: (R, 4): first pixel in reading order, number of pixels, value before, value after.
        joins: Whether it goes on with the edit before it, so that both are undone together.
    """

    tool: str
    runs: Runs
    joins: bool = False

    def reversed(self) -> "Edit":
        """The change back."""
        return replace(self, runs=self.runs[:, [0, 1, 3, 2]])

    def applied(self, mask: Pixels) -> Pixels:
        """A copy of `mask` (H, W) with the change."""
        after = mask.copy()
        flat = after.reshape(-1)
        for start, length, _, value in self.runs.tolist():
            flat[start : start + length] = value
        return after


def edit_between(before: Pixels, after: Pixels, tool: str, *, joins: bool = False) -> Edit:
    """What changes the mask `before` (H, W) to `after`; without runs if they are equal."""
    old, new = before.reshape(-1).astype(np.int64), after.reshape(-1).astype(np.int64)
    change = np.where(old == new, -1, old * 256 + new)
    starts = np.flatnonzero(np.diff(change, prepend=-2))
    lengths = np.diff(starts, append=len(change))
    is_changed = change[starts] >= 0
    starts, lengths = starts[is_changed], lengths[is_changed]
    runs = np.stack([starts, lengths, old[starts], new[starts]], axis=1)
    return Edit(tool, runs, joins)


class PaintedMask:
    """A mask on disk to which strokes are done, undone and redone.

    The mask's file is the truth. The journal is written first, each line with a digest of the mask
    that follows: so a kill between the two is noticed and the stroke completed, and a mask that
    another program changed is taken as it is, without the strokes before.

    Attributes:
        pixels: (H, W) uint8: class ids, 255 where nothing is painted. Not to be written to.
        revision: Grows with every change.
    """

    def __init__(self, mask: Path, journal: Path) -> None:
        """Opens the mask; what a kill left half done is completed.

        Raises:
            InputError: there is no such mask, or its values are not ids.
            CorruptFileError: the mask is damaged.
        """
        self.mask_path, self.journal_path = mask, journal
        self.pixels = read_mask(mask)
        self.done: list[Edit] = []
        self.undone: list[Edit] = []
        self.revision = 0
        self._replay()

    @property
    def undo_steps(self) -> int:
        """How many strokes can be undone."""
        return sum(not edit.joins for edit in self.done)

    @property
    def redo_steps(self) -> int:
        """How many strokes can be done again."""
        return sum(not edit.joins for edit in self.undone)

    def paint(self, after: Pixels, tool: str, *, joins: bool = False) -> None:
        """Makes the mask `after` (H, W) by one stroke; nothing is recorded if nothing changes.

        Args:
            after: The new mask.
            tool: What made it, for example "brush".
            joins: It goes on with the stroke before.

        Raises:
            InputError: it cannot be written. The mask is what it was.
        """
        edit = edit_between(self.pixels, after, tool, joins=joins and bool(self.done))
        if len(edit.runs):
            self._write(_line(edit, after), after)
            self.done.append(edit)
            self.undone.clear()
            self._shorten()

    def undo(self) -> bool:
        """Takes the last stroke back; False if there is none.

        Raises:
            InputError: it cannot be written. The mask is what it was.
        """
        last = self.done[len(self.done) - _last_stroke(self.done) :]
        after = self.pixels
        for edit in reversed(last):
            after = edit.reversed().applied(after)
        if last:
            self._write(json.dumps({"undo": _digest(after)}), after)
            _undo(self.done, self.undone)
        return bool(last)

    def redo(self) -> bool:
        """Does the stroke that was taken back last again; False if there is none.

        Raises:
            InputError: it cannot be written. The mask is what it was.
        """
        again = self.undone[len(self.undone) - _last_stroke(self.undone) :]
        after = self.pixels
        for edit in again:
            after = edit.applied(after)
        if again:
            self._write(json.dumps({"redo": _digest(after)}), after)
            _redo(self.done, self.undone)
        return bool(again)

    def journal_with_ids(self, ids: NDArray[np.uint8]) -> tuple[Pixels, str]:
        """The mask and the text of its journal where class ids became `ids[id]`, (256,)."""
        after = ids[self.pixels]
        return after, _journal(_with_ids(self.done, ids), _with_ids(self.undone, ids), after)

    def _write(self, line: str, after: Pixels) -> None:
        length = self.journal_path.stat().st_size if self.journal_path.exists() else 0
        try:
            self.journal_path.parent.mkdir(parents=True, exist_ok=True)
            with open_in_place(self.journal_path, "ab") as stream:
                stream.write(f"{line}\n".encode())
                stream.flush()
                os.fsync(stream.fileno())
            write_mask(self.mask_path, after)
        except (OSError, InputError) as error:
            if self.journal_path.exists():
                truncate(self.journal_path, length)
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"{self.journal_path}: cannot be written ({error.strerror}). The mask is what it "
                "was before this stroke: make room, and paint it again."
            ) from error
        self.pixels = after
        self.revision += 1

    def _shorten(self) -> None:
        if self.undo_steps > 2 * LIMIT:
            starts = [i for i, edit in enumerate(self.done) if not edit.joins]
            self.done = self.done[starts[-LIMIT] :]
            write_text(self.journal_path, _journal(self.done, self.undone, self.pixels))

    def _replay(self) -> None:
        steps = self._read()
        for name, edit, _ in steps:
            if edit is not None:
                self.done.append(edit)
                self.undone.clear()
            else:
                (_undo if name == "undo" else _redo)(self.done, self.undone)
        if steps and _digest(self.pixels) != steps[-1][2]:
            self._complete(steps[-1])
        self.revision = len(steps)

    def _complete(self, step: "tuple[str, Edit | None, str]") -> None:
        """Does the journal's last step to the mask, if that is what is missing."""
        name, edit, digest = step
        source = self.undone if name == "undo" else self.done
        last = [edit] if edit is not None else source[len(source) - _last_stroke(source) :]
        after = self.pixels
        if name == "undo":
            last = [each.reversed() for each in reversed(last)]
        for each in last:
            after = each.applied(after)
        if _digest(after) == digest:
            write_mask(self.mask_path, after)
            self.pixels = after
        else:
            self.done, self.undone = [], []
            write_text(self.journal_path, "")

    def _read(self) -> "list[tuple[str, Edit | None, str]]":
        """The journal's steps; a last line that a kill tore is cut off, so that more can follow."""
        if not self.journal_path.is_file():
            return []
        content = read_bytes(self.journal_path)
        steps, complete = [], 0
        for line in content.split(b"\n")[:-1]:
            try:
                steps.append(_step(line, self.pixels.size))
            except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
                break
            complete += len(line) + 1
        if complete < len(content):
            truncate(self.journal_path, complete)
        return steps


def _with_ids(edits: Sequence[Edit], ids: NDArray[np.uint8]) -> list[Edit]:
    """The edits where class ids became `ids[id]`; what has no effect any more is left out."""
    mapped: list[Edit] = []
    is_headless = False  # the edit that began this stroke was left out
    for edit in edits:
        runs = edit.runs.copy()
        runs[:, 2:] = ids[runs[:, 2:]]
        runs = runs[runs[:, 2] != runs[:, 3]]
        is_headless = is_headless or not edit.joins
        if len(runs):
            mapped.append(replace(edit, runs=runs, joins=not is_headless))
            is_headless = False
    return mapped


def _last_stroke(edits: Sequence[Edit]) -> int:
    """How many of the last edits are one stroke."""
    for count, edit in enumerate(reversed(edits), start=1):
        if not edit.joins:
            return count
    return len(edits)


def _undo(done: list[Edit], undone: list[Edit]) -> None:
    count = _last_stroke(done)
    undone.extend(done[len(done) - count :])
    del done[len(done) - count :]


def _redo(done: list[Edit], undone: list[Edit]) -> None:
    _undo(undone, done)


def _digest(mask: Pixels) -> str:
    return hashlib.sha256(mask.tobytes()).hexdigest()[:16]


def _line(edit: Edit, after: Pixels | None) -> str:
    line: dict[str, Any] = {"tool": edit.tool, "runs": edit.runs.tolist()}
    if edit.joins:
        line["joins"] = True
    line["mask"] = "" if after is None else _digest(after)
    return json.dumps(line, separators=(",", ":"))


def _journal(done: Sequence[Edit], undone: Sequence[Edit], mask: Pixels) -> str:
    """A journal from which replaying gives these edits; only its last line needs a digest."""
    groups: list[list[Edit]] = []
    for edit in undone:
        if edit.joins and groups:
            groups[-1].append(edit)
        else:
            groups.append([edit])
    again = [edit for group in reversed(groups) for edit in group]
    lines = [_line(edit, None) for edit in [*done, *again]]
    lines += [json.dumps({"undo": ""}) for _ in groups]
    if not lines:
        return ""
    last = json.loads(lines[-1])
    last["undo" if "undo" in last else "mask"] = _digest(mask)
    lines[-1] = json.dumps(last, separators=(",", ":"))
    return "".join(f"{line}\n" for line in lines)


def _step(line: bytes, n_pixels: int) -> "tuple[str, Edit | None, str]":
    """(name, edit, digest) of a journal line; an error of Python's if it is none."""
    value = parse_json(line)
    for name in ("undo", "redo"):
        if name in value:
            return name, None, str(value[name])
    runs = np.array(value["runs"], dtype=np.int64).reshape(-1, 4)
    starts, lengths, ids = runs[:, 0], runs[:, 1], runs[:, 2:]
    if (starts < 0).any() or (lengths < 1).any() or (starts + lengths > n_pixels).any():
        raise ValueError("a run leaves the picture")
    if (ids < 0).any() or (ids > 255).any():
        raise ValueError("a value is no id")
    return "edit", Edit(str(value["tool"]), runs, bool(value.get("joins"))), str(value["mask"])


def check_mask(mask: Pixels, size: tuple[int, int], n_classes: int, where: Path | str) -> None:
    """Refuses a mask of another size, or with values other than 0 to `n_classes` and 255.

    Raises:
        CorruptFileError: it does not fit; the first wrong pixel is named.
    """
    if mask.shape != size:
        raise CorruptFileError(
            f"{where}: {mask.shape[0]} x {mask.shape[1]} pixels; expected {size[0]} x {size[1]} "
            "(height x width)."
        )
    is_wrong = (mask > n_classes) & (mask != 255)
    if is_wrong.any():
        row, column = np.argwhere(is_wrong)[0]
        raise CorruptFileError(
            f"{where}: pixel ({row}, {column}) has the value {mask[row, column]}; expected class "
            f"ids 0-{n_classes}, or 255 for not painted."
        )
