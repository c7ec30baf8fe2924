"""What is dear to make and the same in every test is made once per run, whatever the process."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from filelock import FileLock

FOLDER = "LATENTSEG_TESTS_SHARED"  # the environment variable that conftest.py sets

T = TypeVar("T")


def made_once(name: str, make: Callable[[], T]) -> T:
    """A copy of what `make` returns; the first process that asks makes it, the others wait."""
    path = Path(os.environ[FOLDER], name)
    with FileLock(f"{path}.lock"):
        if not path.exists():
            path.write_bytes(pickle.dumps(make()))
        return pickle.loads(path.read_bytes())
