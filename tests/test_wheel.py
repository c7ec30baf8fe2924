"""The wheel that `make wheel` builds."""

import os
import subprocess
import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE", "src")


def build(folder: Path, umask: int) -> Path:
    """A wheel of the present sources, built from a copy in `folder`."""
    folder.mkdir()
    subprocess.run(["git", "init", "--quiet", folder], check=True)
    for name in BUILT_FROM:
        subprocess.run(["cp", "-R", ROOT / name, folder / name], check=True)
    (folder / ".gitignore").write_bytes((ROOT / ".gitignore").read_bytes())
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1700000000", "PYTHONHASHSEED": str(umask)}
    subprocess.run(
        command, cwd=folder, check=True, env=environment, umask=umask, capture_output=True
    )
    return next((folder / "dist").glob("*.whl"))


@pytest.mark.slow
def test_a_wheel_built_twice_has_the_same_bytes_and_holds_what_it_needs(tmp_path):
    pytest.importorskip("build")
    first, second = build(tmp_path / "one", 0o022), build(tmp_path / "two", 0o077)
    assert sha256(first.read_bytes()).digest() == sha256(second.read_bytes()).digest()
    names = zipfile.ZipFile(first).namelist()
    packaged = [name for name in names if name.startswith("latentseg/")]
    there = [path for path in (ROOT / "src" / "latentseg").rglob("*") if path.is_file()]
    assert set(packaged) == {
        path.relative_to(ROOT / "src").as_posix()
        for path in there
        if "__pycache__" not in path.parts
    }
    assert "latentseg/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)
