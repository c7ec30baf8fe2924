"""A new labeler is registered in one place; every command and the report then know it."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from latentseg.files import read_json
from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers import registry
from latentseg.labelers.descriptions import read_labeler, write_labeler
from latentseg.labelers.kinds import Fitted, LabelerKind, Story
from latentseg.labelers.protocols import Labelled
from tests.test_cli import WORLD, latentseg

__all__ = ["latentseg"]  # fixture
HOW = "Whatever is brighter than the limit is foreground."


@dataclass(frozen=True)
class ToyConfig:
    """How the toy makes masks.

    Attributes:
        limit: Brightness above which a pixel is foreground.
    """

    limit: float = 0.0


class ToyLabeler:
    classes = ("foreground",)
    filters = ()

    def __init__(self, generator: Generator, config: ToyConfig, seed: int) -> None:
        self.generator, self.config, self.seed = generator, config, seed

    @property
    def info(self) -> dict:
        made_for = {"generator": self.generator.info.to_json(), "seed": self.seed}
        return {"method": KIND.name, **made_for, "options": {"limit": self.config.limit}}

    def label(self, latents: Latents) -> Labelled:
        x = self.generator(latents)
        masks = (x.mean(dim=1) > self.config.limit).to(torch.uint8)
        passed = torch.zeros(len(x), dtype=torch.long)
        return Labelled(images=x, masks=masks, confidence=torch.ones(len(x)), rejected_by=passed)

    def save(self, folder: Path | str) -> None:
        write_labeler(folder, self.info, {})


def fit(generator: Generator, *, config: ToyConfig, seed: int, folder: Path | None, quiet: bool):
    return Fitted(ToyLabeler(generator, config, seed))


def load(folder: Path, generator: Generator) -> ToyLabeler:
    saved = read_labeler(KIND, folder, generator)
    return ToyLabeler(generator, saved.config, saved.seed)


KIND = LabelerKind(
    name="toy",
    title="The bright pixels",
    config=ToyConfig,
    settings={"ours": ToyConfig()},
    fit=fit,
    load=load,
    story=Story(how=HOW),
)


def own_toy() -> LabelerKind[ToyLabeler]:
    return KIND


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "MODULES", [*registry.MODULES, __name__])


@pytest.mark.usefixtures("registered")
def test_registered_toy_is_shown_by_help_and_generators(latentseg, tmp_path: Path) -> None:
    code, out, _ = latentseg("fit", "toy", "--help")
    assert (code, "--limit" in out) == (0, True)
    code, out, _ = latentseg("run", "--method", "toy", "--help")
    assert (code, "--limit" in out) == (0, True)
    code, out, _ = latentseg("generators", "--json", tmp_path / "all.json")
    assert code == 0
    assert "toy" in out.split()


@pytest.mark.usefixtures("registered")
def test_registered_toy_is_fitted_and_makes_a_dataset(latentseg, tmp_path: Path) -> None:
    code, _, err = latentseg("fit", "toy", WORLD, tmp_path / "toy", "--limit", 0.25)
    assert code == 0, err
    saved = json.loads((tmp_path / "toy" / "labeler.json").read_text())
    assert (saved["method"], saved["options"]) == ("toy", {"limit": 0.25})
    code, _, err = latentseg("synth", WORLD, tmp_path / "toy", tmp_path / "data", "--count", 4)
    assert code == 0, err
    assert latentseg("check", tmp_path / "data")[0] == 0


@pytest.mark.usefixtures("registered")
def test_registered_toy_makes_a_run_whose_report_tells_its_story(latentseg, tmp_path: Path) -> None:
    sizes = ("--preset", "quick", "--count", 8, "--steps", 1)
    code, _, err = latentseg("run", WORLD, tmp_path / "run", "--method", "toy", *sizes)
    assert code == 0, err
    assert HOW in (tmp_path / "run" / "report.html").read_text()


def test_toy_of_the_user_is_fitted_by_its_reference_and_loaded_only_by_it(
    latentseg, tmp_path: Path
) -> None:
    own = f"{__name__}:own_toy"
    code, _, err = latentseg("fit", own, WORLD, tmp_path / "toy")
    assert code == 0, err
    assert read_json(tmp_path / "toy" / "labeler.json")["method"] in (own, "toy")
    folder = f"{own}:{tmp_path / 'toy'}"
    code, _, err = latentseg("synth", WORLD, folder, tmp_path / "data", "--count", 2)
    assert code == 0, err


def test_documents_name_every_registered_labeler() -> None:
    docs = Path(__file__).parents[2] / "docs"
    text = "".join(path.read_text() for path in docs.glob("*.md"))
    assert not [name for name in registry.kinds() if f"latentseg fit {name}" not in text]
