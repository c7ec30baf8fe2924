"""Kills, full disks and two processes at once: what was complete stays complete."""

import errno
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from latentseg import files
from latentseg.errors import InputError

# Forks writers that replace a file of one repeated number without end, kills each at a random time,
# and prints how many complete files were found and which files lay in the folder.
KILL_WRITERS = """
import os, random, signal, sys, time
import torch
from latentseg.files import read_safetensors, write_safetensors

path, kills = sys.argv[1], int(sys.argv[2])
torch.set_num_threads(1)
write_safetensors(path, {"a": torch.zeros(300_000)})
chance, complete = random.Random(0), 0
for kill in range(kills):
    child = os.fork()
    if child == 0:
        number = 1 + kill
        while True:
            write_safetensors(path, {"a": torch.full((300_000,), float(number))})
            number += kills
    time.sleep(chance.uniform(0.001, 0.04))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    values = read_safetensors(path)["a"]
    complete += len(values) == 300_000 and bool((values == values[0]).all())
print(complete)
"""

HOLD_LOCK = """
import sys, time
from latentseg.files import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_while_writing_leaves_a_complete_file(tmp_path):
    path = tmp_path / "a.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", KILL_WRITERS, str(path), "40"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "40"
    files.remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_second_process_is_refused_and_a_dead_one_is_not_waited_for(tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_LOCK, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        began = time.monotonic()
        with (
            pytest.raises(InputError, match=f"{platform.node()} process {holder.pid}"),
            files.locked(tmp_path),
        ):
            pytest.fail("the lock was given twice")
        assert time.monotonic() - began < 2
    finally:
        holder.kill()
        holder.communicate()
    with files.locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / files.HOLDER).read_text()


def test_a_lock_is_free_again_after_an_error(tmp_path):
    with pytest.raises(RuntimeError, match="stop"), files.locked(tmp_path):
        raise RuntimeError("stop")
    with files.locked(tmp_path):
        pass


def test_taking_a_lock_clears_what_a_killed_process_left(tmp_path):
    leftover = tmp_path / "checkpoints" / files.TEMPORARY.format(process=7, count=3)
    files.write_bytes(leftover, b"half a file")
    with files.locked(tmp_path):
        assert not leftover.exists()


def _failing_write(self: Path, content: bytes) -> int:
    with open(self, "wb") as stream:
        stream.write(content[: len(content) // 2])
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


FAULTS = [
    ("pathlib.Path.write_bytes", errno.ENOSPC, _failing_write),
    ("os.fsync", errno.EIO, None),
    ("os.fsync", errno.ENOSPC, None),
    ("os.replace", errno.EIO, None),
    ("os.replace", errno.EACCES, None),
    ("pathlib.Path.mkdir", errno.EROFS, None),
]


@pytest.mark.parametrize(("call", "number", "fault"), FAULTS)
@pytest.mark.parametrize(
    "write",
    [
        lambda folder: files.write_text(folder / "a", "new"),
        lambda folder: files.write_json(folder / "a", {"new": 1}),
        lambda folder: files.write_safetensors(folder / "a", {"new": torch.ones(9)}),
        lambda folder: files.write_manifest(folder),
    ],
    ids=["text", "json", "safetensors", "manifest"],
)
def test_a_fault_of_the_disk_leaves_the_old_file_and_is_said(
    tmp_path, monkeypatch, call, number, fault, write
):
    def fail(*args: object, **options: object) -> None:
        raise OSError(number, os.strerror(number))

    files.write_text(tmp_path / "a", "old")
    files.write_manifest(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(call, fault or fail)
        with pytest.raises(InputError, match="cannot be written"):
            write(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [files.MANIFEST, "a"]
    files.verify_manifest(tmp_path)


def test_a_disk_that_fails_at_the_nth_write_loses_nothing_before(tmp_path, monkeypatch):
    """The same work is run against a disk that fails at its first, second, ... write."""
    replace = os.replace

    def work(folder: Path) -> None:
        files.claim(folder, {"n": 3})
        for name in "abc":
            files.write_text(folder / name, name)
        files.write_manifest(folder)

    for last in range(5):
        folder, left = tmp_path / str(last), last

        def sometimes(source: Path, target: Path) -> None:
            nonlocal left
            if left == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left -= 1
            replace(source, target)

        with monkeypatch.context() as patch:
            patch.setattr("os.replace", sometimes)
            with pytest.raises(InputError, match="No space left"):
                work(folder)
        written = sorted(path.name for path in folder.iterdir())
        assert written == sorted(["config.json", "a", "b", "c"][:last])
        work(folder)
        files.verify_manifest(folder)
