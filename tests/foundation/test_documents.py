"""What the documents show is run, so that it stays true."""

import re
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path

import pytest
import torch
import tyro
from torch import nn

from latentseg import cli
from latentseg.generators.protocols import Generator
from latentseg.students.training import PRESETS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def blocks(path: Path, language: str) -> list[str]:
    """The fenced blocks of a Markdown file."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.DOTALL | re.MULTILINE)


@cache
def flags_of(command: str) -> set[str]:
    """The long flags of a command."""
    spoken = StringIO()
    with redirect_stdout(spoken), pytest.raises(SystemExit):
        tyro.cli(cli.COMMANDS[command], args=["--help"])
    return set(re.findall(r"(--[a-z][a-z-]*)", spoken.getvalue()))


@pytest.fixture
def contributed() -> Generator:
    (code,) = blocks(ROOT / "CONTRIBUTING.md", "python")
    names: dict[str, type] = {}
    exec(code, names)
    decoder = nn.Sequential(nn.Linear(16, 3 * 64 * 64), nn.Unflatten(1, (3, 64, 64)))
    return names["DecoderGenerator"](decoder)


def test_the_contributed_generator_is_one(contributed):
    assert isinstance(contributed, Generator)
    latents = contributed.sample(torch.arange(5))
    images = contributed(latents)
    assert latents.values.shape == (5, *contributed.info.latent)
    assert images.shape == (5, 3, *contributed.info.size)
    assert images.abs().max() <= 1
    assert torch.equal(contributed.sample(torch.tensor([3])).values[0], latents.values[3])
    assert torch.allclose(contributed(latents[3:4])[0], images[3], atol=1e-5)


def test_the_contributed_generator_has_a_gradient_and_shifts_in_units_of_its_spread(contributed):
    many = contributed.sample(torch.arange(2000))
    step = torch.ones(16)
    moved = contributed.shift(many, step).values - many.values
    assert torch.allclose(moved.mean(0) / many.values.std(0), step, atol=0.1)
    few = many[:2].with_values(many.values[:2].requires_grad_())
    contributed(few).sum().backward()
    assert few.values.grad is not None
    assert few.values.grad.abs().sum() > 0


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
        unknown = set(re.findall(r"(--[a-z][a-z-]*)", arguments)) - flags_of(command)
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
