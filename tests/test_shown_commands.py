"""What README, tutorial and how-to show is run, block by block, in a fresh clone.

A block that a clone cannot run in bounded time is preceded by `<!-- not run: REASON -->`.
"""

import os
import re
import subprocess
import sys
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "docs/tutorial.md", "docs/how-to.md")
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^>]*) -->\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
SHELL = ["bash", "-e", "-o", "pipefail", "-c"]


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run."""

    where: str
    language: str
    code: str
    reason: str | None


def blocks(document: str) -> list[Block]:
    text = (ROOT / document).read_text()
    return [
        Block(
            f"{document}:{text.count(chr(10), 0, found.start('code')) + 1}",
            found["language"],
            found["code"],
            found["reason"],
        )
        for found in BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_shown_block_is_run_or_says_why_not(document):
    for block in blocks(document):
        assert block.language in {"sh", "python"}, f"{block.where}: in which language?"
        assert block.reason is None or len(block.reason) > 10, f"{block.where}: why is it not run?"
    assert sum(block.reason is None for block in blocks(document)) >= 3


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone with its own environment, which finds installed packages in this one.

    `make install` has nothing left to do there, so that no network is needed.
    """
    folder = tmp_path_factory.mktemp("fresh") / "latentseg"
    tracked = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(tracked, check=True, capture_output=True, text=True).stdout.split(
        "\n"
    ):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes((ROOT / name).read_bytes())
    venv.create(folder / ".venv", with_pip=False, symlinks=True)
    packages = sysconfig.get_path("purelib", vars={"base": str(folder / ".venv")})
    installed = f"{folder / 'src'}\n{sysconfig.get_path('purelib')}\n"
    Path(packages, "here.pth").write_text(installed)
    for name, module in (("latentseg", "latentseg"), ("torchrun", "torch.distributed.run")):
        script = folder / ".venv" / "bin" / name
        script.write_text(f'#!/bin/sh\nexec "{folder}/.venv/bin/python" -m {module} "$@"\n')
        script.chmod(0o755)
    (folder / ".venv" / "installed").touch()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_shown_commands_run_in_a_fresh_clone(document, clone):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"PATH": f"{clone / '.venv' / 'bin'}{os.pathsep}{environment['PATH']}"}
    environment |= {"OMP_NUM_THREADS": "1"}
    for block in blocks(document):
        if block.reason is not None:
            continue
        shell = block.language == "sh"
        command = [*SHELL, block.code] if shell else [".venv/bin/python", "-c", block.code]
        done = subprocess.run(
            command, cwd=clone, env=environment, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, f"{block.where}\n{block.code}\n{done.stderr[-3000:]}"
        sys.stdout.write(f"{block.where}: {block.code}")
