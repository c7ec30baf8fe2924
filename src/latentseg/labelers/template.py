"""A labeler of your own, to copy and change: `latentseg fit my_module:kind GENERATOR OUT`."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from latentseg.generators.protocols import Generator, Latents
from latentseg.labelers.descriptions import read_labeler, write_labeler
from latentseg.labelers.kinds import Fitted, LabelerKind
from latentseg.labelers.protocols import Labelled


@dataclass(frozen=True)
class MyConfig:
    """How masks are made; each field is a flag of the command line.

    Attributes:
        share: Share of the pixels of an image that are foreground.
    """

    share: float = 0.3


class MyLabeler:
    """The brightest pixels of an image are its foreground."""

    classes = ("foreground",)  # without the background
    filters = ("contrast",)  # what may refuse a sample

    def __init__(self, generator: Generator, config: MyConfig, seed: int) -> None:
        self.generator, self.config, self.seed = generator, config, seed

    @property
    def info(self) -> dict[str, Any]:
        """What it is and how it was made; it travels into every dataset."""
        made_for = {"generator": self.generator.info.to_json(), "seed": self.seed}
        return {"method": KIND.name, **made_for, "options": asdict(self.config)}

    @torch.no_grad()
    def label(self, latents: Latents) -> Labelled:
        """Draws the images of `latents` and labels them; an image does not see its neighbors."""
        x = self.generator(latents)
        brightness = x.mean(dim=1)
        limit = brightness.flatten(1).quantile(1 - self.config.share, dim=1)
        contrast = brightness.flatten(1).std(dim=1).clamp(0, 1).cpu()
        return Labelled(
            images=x,
            masks=(brightness > limit[:, None, None]).to(torch.uint8).cpu(),  # class ids
            confidence=contrast,  # in [0, 1]
            rejected_by=(contrast < 0.01).long(),  # 0 passes; k is refused by filters[k - 1]
        )

    def save(self, folder: Path | str) -> None:
        """Writes labeler.json; tensors go beside it, by the name of their file."""
        write_labeler(folder, self.info, {})


def fit(
    generator: Generator, *, config: MyConfig, seed: int, folder: Path | None, quiet: bool
) -> Fitted[MyLabeler]:
    """Where your method learns; long work may keep its state in `folder` and go on from there."""
    return Fitted(MyLabeler(generator, config, seed))


def load(folder: Path, generator: Generator) -> MyLabeler:
    """Reads what `save` wrote."""
    saved = read_labeler(KIND, folder, generator)
    return MyLabeler(generator, saved.config, saved.seed)


KIND = LabelerKind(
    name=f"{__name__}:kind",
    title="The brightest pixels",
    config=MyConfig,
    settings={"ours": MyConfig()},
    fit=fit,
    load=load,
)


def kind() -> LabelerKind[MyLabeler]:
    """What `my_module:kind` calls."""
    return KIND
