"""Live previews: a head learns in the background from what is painted and shows what it makes."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import numpy as np

from latentseg.errors import InputError
from latentseg.images import IGNORE, Pixels

BATCH = 8  # images per call of `predict`: after each, newer paint goes first

Painted = tuple[str, int, Pixels]


class Previewer(Protocol):
    """What learns from painted images."""

    def fit(self, painted: list[Painted], classes: tuple[str, ...]) -> bool:
        """Learns afresh, as long as it takes; a later call, in another thread, makes it give up.

        Args:
            painted: Name, seed and mask (H, W) uint8 of each image; 255 is not painted.
            classes: Names of the classes 1..K.

        Returns:
            Whether it learnt; False if it gave up.
        """
        ...

    def predict(self, seeds: list[int]) -> Pixels:
        """(N, H, W) uint8: masks of the images of `seeds`, by what was learnt last."""
        ...


@dataclass(frozen=True)
class PreviewStatus:
    """What the preview panel says.

    Attributes:
        state: off (there is no previewer), idle (nothing learnt yet), learning, ready, failed.
        painted: Names of the images that it learnt from, or is learning from.
        error: What failed.
        version: Grows whenever something was learnt.
    """

    state: Literal["off", "idle", "learning", "ready", "failed"]
    painted: tuple[str, ...] = ()
    error: str = ""
    version: int = 0


class Previews:
    """Runs a previewer in threads of its own; what was asked for last is what counts."""

    def __init__(self, previewer: Previewer | None, size: tuple[int, int]) -> None:
        self.previewer, self.size = previewer, size
        self.changed = threading.Condition()
        self.status = PreviewStatus("off" if previewer is None else "idle")
        self.latest = 0  # number of the last request; what belongs to another is out of date
        self.n_classes = 0
        self.wanted: tuple[int, ...] = ()
        self.masks: dict[int, tuple[int, Pixels]] = {}  # by seed, with the version
        if previewer is not None:
            self._start(self._predict, previewer)

    def learn(self, painted: list[Painted], classes: tuple[str, ...]) -> None:
        """Asks for a head that learns from `painted`; an earlier request is dropped.

        Raises:
            InputError: there is no previewer, or nothing is painted.
        """
        if self.previewer is None:
            raise InputError("Previews are off: no head was given to the painter.")
        if not painted:
            raise InputError("Nothing is painted yet: paint an image first.")
        names = tuple(name for name, _, _ in painted)
        with self.changed:
            self.latest += 1
            self.status = replace(self.status, state="learning", painted=names, error="")
            self._start(self._fit, self.previewer, self.latest, painted, classes)

    def want(self, seeds: Sequence[int]) -> None:
        """Says of which images masks are shown."""
        with self.changed:
            self.wanted = tuple(seeds)
            self.changed.notify()

    def forget(self) -> None:
        """Drops what was learnt: the ids of the classes changed."""
        with self.changed:
            self.latest += 1
            self.masks.clear()
            state = "off" if self.previewer is None else "idle"
            self.status = PreviewStatus(state, version=self.status.version)

    def mask(self, seed: int) -> Pixels | None:
        """The mask (H, W) of an image, or None if there is none yet."""
        with self.changed:
            return self.masks[seed][1] if seed in self.masks else None

    def versions(self) -> dict[int, int]:
        """The version of each mask that there is, by seed."""
        with self.changed:
            return {seed: version for seed, (version, _) in self.masks.items()}

    def _start(self, work: Callable[..., None], *values: Any) -> None:
        # A daemon: a head that learns for minutes must not hold back the end of the program.
        threading.Thread(target=work, args=values, daemon=True).start()

    def _fit(
        self, previewer: Previewer, number: int, painted: list[Painted], classes: tuple[str, ...]
    ) -> None:
        try:
            is_learnt = previewer.fit(painted, classes)
        except Exception as error:  # whatever a head raises, painting goes on
            self._fail(number, error)
            return
        with self.changed:
            if number == self.latest:
                self.n_classes = len(classes)
                version = self.status.version + is_learnt
                state = "ready" if is_learnt else "idle"
                self.status = replace(self.status, state=state, version=version)
                self.changed.notify()

    def _predict(self, previewer: Previewer) -> None:
        while True:
            with self.changed:
                self.changed.wait_for(self._missing)
                number, seeds = self.latest, self._missing()
            try:
                self._show(number, seeds, previewer.predict(seeds))
            except Exception as error:  # as above
                self._fail(number, error)

    def _fail(self, number: int, error: Exception) -> None:
        with self.changed:
            if number == self.latest:
                text = str(error) or type(error).__name__
                self.status = replace(self.status, state="failed", error=text)

    def _missing(self) -> list[int]:
        """Wanted images without a mask of the newest head; at most one batch."""
        if self.status.state != "ready":
            return []
        version = self.status.version
        missing = [s for s in self.wanted if s not in self.masks or self.masks[s][0] != version]
        return missing[:BATCH]

    def _show(self, number: int, seeds: list[int], masks: Pixels) -> None:
        masks = np.asarray(masks)
        if masks.dtype != np.uint8 or masks.shape != (len(seeds), *self.size):
            raise ValueError(
                f"the head gave masks {masks.shape} {masks.dtype}; "
                f"expected {(len(seeds), *self.size)} uint8"
            )
        if ((masks > self.n_classes) & (masks != IGNORE)).any():
            raise ValueError(f"the head gave the id {masks.max()}; expected 0-{self.n_classes}")
        with self.changed:
            if number == self.latest and self.status.state == "ready":
                version = self.status.version
                self.masks |= {s: (version, m.copy()) for s, m in zip(seeds, masks, strict=True)}
                kept = {*self.wanted}
                self.masks = {s: entry for s, entry in self.masks.items() if s in kept}
