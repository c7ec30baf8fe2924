"""Commands as a user gives them, run in this process."""

import signal
import sys

import pytest

from latentseg import cli


def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object
) -> tuple[int, str, str]:
    """Runs `latentseg ARGUMENTS`: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["latentseg", *map(str, arguments)])
    try:
        cli.main()
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
