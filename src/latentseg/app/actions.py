"""What the page of the painter can do to a painting: each action checks what it is given."""

import tempfile
import threading
from collections import OrderedDict
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from latentseg.app.painting import GALLERY, ClassChange, Painting, PartClass, free_colour
from latentseg.app.previews import Painted, Previews
from latentseg.app.strokes import PaintedMask, check_mask, edit_between
from latentseg.errors import InputError, LatentsegError
from latentseg.files import read_bytes, write_bytes
from latentseg.generators.protocols import Generator
from latentseg.images import IGNORE, Pixels, encode, read_image, read_mask, size_of, to_pixels

KEPT_DRAWINGS = 512
MOST_AT_ONCE = 96  # images to choose from that one request may add
MOST_IN_GALLERY = 5_000
SAME_IMAGE = 2.0  # mean difference, of 255, that other hardware or batches may make
TOOLS = ("brush", "eraser", "polygon", "lasso", "fill", "rest", "clear")


class Refused(Exception):
    """A request that is answered with an HTTP status other than 200.

    Attributes:
        status: The HTTP status.
        more: Further fields of the answer.
    """

    def __init__(self, status: int, message: str, **more: Any) -> None:
        super().__init__(message)
        self.status, self.more = status, more


class Drawings:
    """Draws the images of seeds as PNG, and keeps the last of them."""

    def __init__(self, generator: Generator) -> None:
        self.generator = generator
        self.lock = threading.RLock()  # a generator may keep activations while it draws
        self.kept: OrderedDict[int, bytes] = OrderedDict()

    def draw(self, seed: int) -> tuple[Pixels, int | None]:
        """The image (H, W, 3) uint8 of a seed, and its class label."""
        with self.lock, torch.no_grad():
            latents = self.generator.sample(torch.tensor([seed]))
            label = None if latents.labels is None else int(latents.labels[0])
            return to_pixels(self.generator(latents))[0], label

    def png(self, seed: int) -> bytes:
        """The image of a seed as PNG."""
        with self.lock:
            if seed not in self.kept:
                self.kept[seed] = encode(self.draw(seed)[0])
            self.kept.move_to_end(seed)
            while len(self.kept) > KEPT_DRAWINGS:
                self.kept.popitem(last=False)
            return self.kept[seed]


def check_draws(painting: Painting, drawings: Drawings) -> None:
    """Refuses a generator that draws another image than the first one that was chosen.

    Its card may be the same: options such as the truncation, or other classes, change the images.

    Raises:
        InputError: it does.
    """
    for image in list(painting.images.values())[:1]:
        path = painting.folder / "images" / f"{image.name}.png"
        drawn = drawings.draw(image.seed)[0].astype(np.int16)
        if np.abs(drawn - read_image(path)).mean() > SAME_IMAGE:
            raise InputError(
                f"{path}: the generator draws another image from seed {image.seed}. Give it with "
                "the options and classes with which this painting was begun."
            )


class Painter:
    """What the page asks for, as functions of one painting; they run in threads, one at a time."""

    def __init__(self, painting: Painting, drawings: Drawings, previews: Previews) -> None:
        self.painting, self.drawings, self.previews = painting, drawings, previews
        self.lock = threading.RLock()
        if not painting.gallery:
            painting.draw_more(GALLERY)
        self._want_previews()
        if previews.previewer is not None:
            self._learn(only_done=True)  # what was painted when the painter ran last

    def project(self) -> dict[str, Any]:
        """All that the page shows, without the pixels."""
        with self.lock:
            return self._project()

    def _project(self) -> dict[str, Any]:
        painting = self.painting
        return {
            "folder": painting.folder.resolve().name,
            "generator": painting.generator["name"],
            "size": painting.size,
            "classes": [asdict(part) for part in painting.classes],
            "images": [self._image(name) for name in painting.images],
            "gallery": painting.gallery,
            "next_colour": self._next_colour(),
            "previews": self.preview_status(),
        }

    def image_file(self, name: str) -> bytes:
        """A chosen image as PNG."""
        self._known(name)
        return read_bytes(self.painting.folder / "images" / f"{name}.png")

    def drawing(self, seed: int) -> bytes:
        """An image of the gallery as PNG."""
        if seed not in self.painting.gallery:
            raise Refused(404, f"{seed}: not in the gallery.")
        return self.drawings.png(seed)

    def mask_file(self, name: str) -> bytes:
        """The revision of a mask, 8 bytes, low first; then a byte per pixel in reading order."""
        with self.lock:
            mask = self._known(name)
            return mask.revision.to_bytes(8, "little") + mask.pixels.tobytes()

    def mask_png(self, name: str) -> bytes:
        """A mask as the PNG on disk."""
        self._known(name)
        return read_bytes(self.painting.folder / "masks" / f"{name}.png")

    def choose(self, seed: int, request: dict[str, Any]) -> dict[str, Any]:
        """Adds an image of the gallery to the chosen ones."""
        _check_fields(request, {})
        if seed not in self.painting.gallery:
            raise Refused(404, f"{seed}: not in the gallery.")
        image, label = self.drawings.draw(seed)
        with self.lock:
            chosen = self.painting.choose(seed, image, label)
            self._want_previews()
            return self._image(chosen.name)

    def remove(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Takes an image and its mask out of the painting."""
        _check_fields(request, {})
        with self.lock:
            self._known(name)
            self.painting.remove(name)
            self._want_previews()
            return {}

    def stroke(self, name: str, stroke: dict[str, Any]) -> dict[str, Any]:
        """Paints runs of pixels: {"revision", "tool", "joins", "runs": [[start, length, id]]}."""
        _check_fields(stroke, {"revision": int, "tool": str, "joins": bool, "runs": list})
        if stroke["tool"] not in TOOLS:
            raise Refused(400, f"tool {stroke['tool']!r}: expected one of {', '.join(TOOLS)}.")
        with self.lock:
            mask = self._current(name, stroke["revision"])
            after = mask.pixels.copy()
            self._draw_runs(after, stroke["runs"])
            mask.paint(after, stroke["tool"], joins=stroke["joins"])
            return self._image(name)

    def paint_png(self, name: str, content: bytes) -> dict[str, Any]:
        """Replaces a mask by a PNG of class ids, as one stroke."""
        after = self._decoded(content)
        with self.lock:
            mask = self._known(name)
            check_mask(after, self.painting.size, len(self.painting.classes), name)
            mask.paint(after, "import")
            return self._image(name)

    def undo(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Takes the last stroke back; the answer holds the runs [start, length, id] to draw."""
        _check_fields(request, {"revision": int})
        with self.lock:
            mask = self._current(name, request["revision"])
            before = mask.pixels
            mask.undo()
            return {**self._image(name), "runs": _runs(before, mask.pixels)}

    def redo(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Does the stroke that was taken back last again; the answer is as that of `undo`."""
        _check_fields(request, {"revision": int})
        with self.lock:
            mask = self._current(name, request["revision"])
            before = mask.pixels
            mask.redo()
            return {**self._image(name), "runs": _runs(before, mask.pixels)}

    def start_from_preview(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Paints what the head makes of an image wherever nothing is painted yet."""
        _check_fields(request, {"revision": int})
        with self.lock:
            mask = self._current(name, request["revision"])
            preview = self.previews.mask(self.painting.images[name].seed)
            if preview is None:
                raise Refused(409, "There is no preview of this image yet.")
            before = mask.pixels
            mask.paint(np.where(before == IGNORE, preview, before), "start")
            return {**self._image(name), "runs": _runs(before, mask.pixels)}

    def mark(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Says whether an image is done; the head then learns again."""
        _check_fields(request, {"is_done": bool})
        with self.lock:
            self._known(name)
            self.painting.mark(name, is_done=request["is_done"])
            self._want_previews()
            if request["is_done"] and self.previews.previewer is not None:
                self._learn(only_done=True)
            return self._image(name)

    def change_classes(self, request: dict[str, Any]) -> dict[str, Any]:
        """Adds, renames, recolours, reorders and removes classes, by naming the new list.

        Each class says its id until now ("was"), among the classes that the page knew ("known").
        """
        _check_fields(request, {"classes": list, "known": list, "accept_loss": bool})
        changes = []
        for each in request["classes"]:
            _check_fields(each, {"name": str, "colour": str, "was": (int, type(None))})
            changes.append(ClassChange(PartClass(each["name"], each["colour"]), each["was"]))
        with self.lock:
            if request["known"] != [part.name for part in self.painting.classes]:
                raise Refused(409, "The classes changed elsewhere: load the page again.")
            lost = self.painting.loss(changes)
            if lost and not request["accept_loss"]:
                raise Refused(409, "Paint would be lost.", lost=lost)
            has_learnt = self.previews.status.version > 0
            if self.painting.change_classes(changes):
                self.previews.forget()
                if has_learnt and self._painted(only_done=True):
                    self._learn(only_done=True)
            return self.project()

    def change_gallery(self, request: dict[str, Any]) -> dict[str, Any]:
        """Draws more images to choose from ("more"), or others in the place of some ("again")."""
        _check_fields(request, {"more": int, "again": list})
        if not 0 <= request["more"] <= MOST_AT_ONCE:
            raise Refused(400, f"more: expected 0 to {MOST_AT_ONCE}.")
        with self.lock:
            if len(self.painting.gallery) + request["more"] > MOST_IN_GALLERY:
                raise Refused(400, f"The gallery holds at most {MOST_IN_GALLERY} images.")
            again = [seed for seed in self.painting.gallery if seed in request["again"]]
            if again:
                self.painting.draw_again(again)
            if request["more"]:
                self.painting.draw_more(request["more"])
            self._want_previews()
            return {"gallery": self.painting.gallery}

    def learn(self, request: dict[str, Any]) -> dict[str, Any]:
        """The head learns now, from every image with paint."""
        _check_fields(request, {})
        with self.lock:
            self._learn(only_done=False)
        return self.preview_status()

    def preview_status(self) -> dict[str, Any]:
        """What the preview panel shows."""
        versions = self.previews.versions()
        shown = [{"seed": s, "version": versions[s]} for s in self.previews.wanted if s in versions]
        return {**asdict(self.previews.status), "shown": shown}

    def preview(self, seed: int) -> bytes:
        """What the head makes of an image, as one byte per pixel in reading order."""
        mask = self.previews.mask(seed)
        if mask is None:
            raise Refused(404, f"{seed}: no preview.")
        return mask.tobytes()

    def _known(self, name: str) -> PaintedMask:
        if name not in self.painting.images:
            raise Refused(404, f"{name}: no such image.")
        return self.painting.masks[name]

    def _current(self, name: str, revision: int) -> PaintedMask:
        mask = self._known(name)
        if mask.revision != revision:
            raise Refused(409, "The mask changed elsewhere; it is loaded again.", stale=True)
        return mask

    def _image(self, name: str) -> dict[str, Any]:
        mask = self.painting.masks[name]
        counts = np.bincount(mask.pixels.ravel(), minlength=256)
        return {
            **asdict(self.painting.images[name]),
            "revision": mask.revision,
            "undo": mask.undo_steps,
            "redo": mask.redo_steps,
            "painted": float(1 - counts[IGNORE] / mask.pixels.size),
            "counts": counts[: len(self.painting.classes) + 1].tolist(),
        }

    def _next_colour(self) -> str:
        taken = {part.colour for part in self.painting.classes}
        return next(colour for k in range(256) if (colour := free_colour(k)) not in taken)

    def _painted(self, *, only_done: bool) -> list[Painted]:
        return [
            (name, image.seed, self.painting.masks[name].pixels.copy())
            for name, image in self.painting.images.items()
            if (image.is_done or not only_done) and self.painting.painted_share(name) > 0
        ]

    def _learn(self, *, only_done: bool) -> None:
        painted = self._painted(only_done=only_done)
        if painted or not only_done:
            self.previews.learn(painted, tuple(part.name for part in self.painting.classes))

    def _want_previews(self) -> None:
        images = self.painting.images.values()
        open_ones = [image.seed for image in images if not image.is_done]
        chosen = {image.seed for image in images}
        others = [seed for seed in self.painting.gallery if seed not in chosen]
        self.previews.want([*open_ones, *others[: 2 * GALLERY]])

    def _draw_runs(self, mask: Pixels, runs: list[Any]) -> None:
        flat, n_classes = mask.reshape(-1), len(self.painting.classes)
        for run in runs:
            if not isinstance(run, list) or len(run) != 3 or any(type(n) is not int for n in run):
                raise Refused(400, "runs: expected [start, length, id], all integers.")
            start, length, value = run
            if start < 0 or length < 1 or start + length > flat.size:
                raise Refused(400, f"run {run}: leaves the picture of {flat.size} pixels.")
            if value != IGNORE and not 0 <= value <= n_classes:
                raise Refused(400, f"run {run}: id {value}; expected 0-{n_classes} or {IGNORE}.")
            flat[start : start + length] = value

    def _decoded(self, content: bytes) -> Pixels:
        # As a file, because only files are decoded, with all that is checked on the way.
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "mask.png"
            write_bytes(path, content)
            try:
                if size_of(path) != self.painting.size:
                    expected = self.painting.size
                    raise Refused(400, f"mask: {size_of(path)} pixels; expected {expected}.")
                mask = read_mask(path)
                check_mask(mask, self.painting.size, len(self.painting.classes), path)
            except LatentsegError as error:
                raise Refused(400, str(error).replace(str(path), "mask")) from error
            return mask


def _runs(before: Pixels, after: Pixels) -> list[list[int]]:
    return edit_between(before, after, "").runs[:, [0, 1, 3]].tolist()


def _check_fields(value: Any, fields: dict[str, Any]) -> None:
    """Refuses all but an object with exactly these fields of these types."""
    if not isinstance(value, dict) or value.keys() != fields.keys():
        raise Refused(400, f"expected an object with the fields: {', '.join(fields)}.")
    for name, kind in fields.items():
        if not isinstance(value[name], kind) or (kind is int and isinstance(value[name], bool)):
            raise Refused(400, f"{name}: {value[name]!r} is of a wrong type.")
