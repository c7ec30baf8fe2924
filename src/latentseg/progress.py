"""The progress line: one live line in a terminal, a line every ten seconds in a file or a pipe."""

import shutil
import sys
import time
from typing import Self

INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.2


def duration(seconds: float) -> str:
    """A time span as people say it: "48 s", "3 min 26 s", "2 h 5 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


class Progress:
    """Reports long work on stderr: count, numbers of interest, rate, time left.

    Args:
        label: What is being done, for example "train".
        total: Number of steps of the whole work.
        start: Steps that were done before (a resumed command).
        unit: What `per_step` counts, for the rate ("img").
        per_step: Units in one step.
        quiet: Print nothing.

    >>> with Progress("draw", total=2, quiet=True) as progress:
    ...     progress.update(1, loss=0.5)
    """

    def __init__(
        self,
        label: str,
        *,
        total: int,
        start: int = 0,
        unit: str = "img",
        per_step: int = 1,
        quiet: bool = False,
    ) -> None:
        self.label, self.total, self.start = label, total, start
        self.unit, self.per_step, self.quiet = unit, per_step, quiet
        self.began = self.shown = time.monotonic()
        self.is_live = sys.stderr.isatty()
        self.line = self.printed = ""

    def __enter__(self) -> Self:
        return self

    def update(self, done: int, **numbers: float | str) -> None:
        """Says that `done` steps of the total are finished; `numbers` are shown by name."""
        self.line = self._line(done, numbers)
        interval = LIVE_INTERVAL_S if self.is_live else INTERVAL_S
        if time.monotonic() - self.shown >= interval:
            self._show(end="" if self.is_live else "\n")

    def rate(self, done: int) -> float:
        """Units per second since this process began the work."""
        elapsed = max(time.monotonic() - self.began, 1e-9)
        return (done - self.start) * self.per_step / elapsed

    def _line(self, done: int, numbers: dict[str, float | str]) -> str:
        rate = self.rate(done)
        parts = [f"{self.label} {_grouped(done)}/{_grouped(self.total)}"]
        for name, value in numbers.items():
            parts.append(f"{name} {value if isinstance(value, str) else f'{value:.4g}'}")
        parts.append(f"{rate:.3g} {self.unit}/s")
        if done >= self.total:
            parts.append(f"took {duration(time.monotonic() - self.began)}")
        elif rate > 0:
            parts.append(f"{duration((self.total - done) * self.per_step / rate)} left")
        return " · ".join(parts)

    def _show(self, *, end: str) -> None:
        self.shown = time.monotonic()
        if self.quiet:
            return
        if self.is_live:
            # Cut to the terminal: a line that wraps could not be drawn over.
            shown = self.line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{shown}", end=end, file=sys.stderr, flush=True)
        else:
            print(self.line, end=end, file=sys.stderr, flush=True)
            self.printed = self.line

    def __exit__(self, *exception: object) -> None:
        if self.line != self.printed:
            self._show(end="\n")


def _grouped(number: int) -> str:
    return f"{number:,}".replace(",", " ")


def say(text: str, *, quiet: bool = False) -> None:
    """One line on stderr, for what is about to happen and what it costs."""
    if not quiet:
        print(text, file=sys.stderr, flush=True)
