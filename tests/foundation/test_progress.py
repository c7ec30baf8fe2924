import io
import os
from types import SimpleNamespace

import pytest

from latentseg import progress
from latentseg.progress import Progress, duration, say


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until a test moves it."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def terminal(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=screen))
    monkeypatch.setattr(progress.shutil, "get_terminal_size", lambda: os.terminal_size((40, 20)))
    return screen


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (206, "3 min 26 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
        (400_000, "111 h 6 min"),
    ],
)
def test_duration(seconds, said):
    assert duration(seconds) == said


def test_a_pipe_gets_a_line_every_ten_seconds_and_the_last(clock, capsys):
    with Progress("draw, refine", total=10_000, per_step=2) as line:
        for second in range(1, 26):
            clock[0] += 1
            line.update(second * 100, loss=0.123456, mode="both")
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert len(lines) == 3
    assert lines[0] == (
        "draw, refine 1 000/10 000 · loss 0.1235 · mode both · 200 img/s · 1 min 30 s left"
    )
    assert lines[-1].startswith("draw, refine 2 500/10 000")
    assert "\x1b" not in err


def test_the_last_line_is_not_said_twice(clock, capsys):
    with Progress("draw", total=2) as line:
        clock[0] += 20
        line.update(2)
    assert capsys.readouterr().err == "draw 2/2 · 0.1 img/s · took 20 s\n"


def test_work_that_was_resumed_is_not_counted_in_the_rate(clock, capsys):
    with Progress("train", total=100, start=90, unit="step") as line:
        clock[0] += 10
        line.update(95)
    assert capsys.readouterr().err == "train 95/100 · 0.5 step/s · 10 s left\n"


def test_a_terminal_gets_one_line_that_fits(clock, terminal):
    with Progress("train", total=1000) as line:
        for step in range(1, 4):
            clock[0] += 1
            line.update(step, a_long_name_of_a_number=1.0, another_long_name=2.0)
    shown = terminal.getvalue().split("\r\x1b[K")[1:]
    assert shown[-1].endswith("\n")
    assert all(len(text.rstrip("\n")) <= 39 for text in shown)
    assert terminal.getvalue().count("\n") == 1


def test_a_terminal_is_not_flooded(clock, terminal):
    with Progress("train", total=1000) as line:
        for step in range(1000):
            clock[0] += 0.001
            line.update(step)
    assert 4 <= terminal.getvalue().count("\r") <= 6


def test_the_line_is_ended_before_an_error_is_shown(clock, terminal):
    with pytest.raises(RuntimeError), Progress("train", total=3) as line:  # noqa: PT012
        clock[0] += 1
        line.update(1)
        raise RuntimeError
    assert terminal.getvalue().endswith("\n")


def test_quiet_says_nothing(clock, capsys):
    with Progress("train", total=3, quiet=True) as line:
        clock[0] += 100
        line.update(3)
    say("about to begin", quiet=True)
    assert capsys.readouterr() == ("", "")


def test_nothing_done_says_nothing(capsys):
    with Progress("train", total=3):
        pass
    assert capsys.readouterr().err == ""


def test_the_first_moment_has_no_rate_to_divide_by(clock):
    line = Progress("train", total=3, quiet=True)
    line.update(0)
    assert line.line == "train 0/3 · 0 img/s"


def test_say_speaks_on_stderr(capsys):
    say("about to begin")
    assert capsys.readouterr() == ("", "about to begin\n")
