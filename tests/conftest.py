"""One seed for every test that draws from the global generators, and what several tests need."""

import os
import random
import shutil
import tempfile

import numpy as np
import pytest
import torch

from latentseg.evaluation import report
from latentseg.generators.training import page
from tests import shared


def pytest_configure(config: pytest.Config) -> None:
    """Processes of one run share a folder: the first one makes it, the others inherit its name."""
    if shared.FOLDER not in os.environ:
        os.environ[shared.FOLDER] = folder = tempfile.mkdtemp()
        config.add_cleanup(lambda: shutil.rmtree(folder))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture
def without_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have no charts: for tests of what is written beside them."""
    for module, name in (
        (page, "line_chart"), (report, "line_chart"), (report, "bar_chart"), (report, "histogram"),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, lambda *_, **__: "")
