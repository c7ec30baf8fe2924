"""What the documents show is run, so that it stays true."""

import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import tyro

from latentseg import cli
from latentseg.students.training import PRESETS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@cache
def flags_of(command: str, arguments: str = "") -> set[str]:
    """The long flags of a command; those of `fit` and `run` depend on the method they are given."""
    called = cli.COMMANDS[command]
    if command in cli.BY_METHOD:
        called = cli.BY_METHOD[command](arguments.split())
    spoken = StringIO()
    with redirect_stdout(spoken), pytest.raises(SystemExit):
        tyro.cli(called, args=["--help"])
    return set(re.findall(r"(--[a-z][a-z-]*)", spoken.getvalue()))


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(path):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", path.read_text())
    missing = [target for target in targets if not (path.parent / target).exists()]
    assert not missing


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_commands_in_documents_exist_with_their_flags(path):
    shown = "\n".join(blocks(path, r"\w*") + re.findall(r"`(latentseg [^`\n]+)`", path.read_text()))
    for command, arguments in re.findall(r"^\s*latentseg ([a-z][a-z-]*)(.*)", shown, re.MULTILINE):
        assert command in cli.COMMANDS, f"latentseg {command}"
        unknown = set(re.findall(r"(--[a-z][a-z-]*)", arguments)) - flags_of(command, arguments)
        assert not unknown, f"latentseg {command} {unknown}"


def test_the_paper_preset_in_the_methods_is_that_of_the_code():
    text, config = (ROOT / "docs" / "methods.md").read_text(), PRESETS["paper"]
    steps, decay_at = (
        f"{number:_}".replace("_", " ") for number in (config.steps, config.decay_at)
    )
    assert f"| 18 000, 128 | {steps}, {config.batch} |" in text
    assert (
        f"| times {config.decay:g} from step | 8 000 | 8 000, never reached | {decay_at} |" in text
    )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_in_documents_is_python(path):
    for code in blocks(path, "python"):
        compile(code, path.name, "exec")


def test_moved_modules_are_where_the_table_says():
    source, table = ROOT / "src" / "latentseg", (ROOT / "CONTRIBUTING.md").read_text()
    rows = re.findall(
        r"^\| `([^`]+)` \| (`[^|]+`) \|$", table.split("## Where files")[1], re.MULTILINE
    )
    assert len(rows) > 40
    for old, new in rows:
        assert not (source / old).exists(), old
        for path in re.findall(r"`([^`]+)`", new):
            assert (source / path).exists(), path


BRITISH = re.compile(
    r"\b\w*(?:colour|centre|grey|licence|labelled|labelling|neighbour|behaviour|favour|learnt)\w*"
    r"|\b\w*(?:normal|recogn|minim|maxim|optim|initial|synthes|summar|general|regular)is(?:e|ing|ation)\w*"
    r"|\bdata sets?\b",
    re.IGNORECASE,
)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_documents_are_in_american_spelling(path):
    text = re.sub(
        r"^```.*?^```|^    .*?$|`[^`]*`|\]\([^)]*\)", "", path.read_text(), flags=re.S | re.M
    )
    assert not BRITISH.findall(text)
