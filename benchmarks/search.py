"""What the search for a direction costs to equal loss: python benchmarks/search.py.

The settings of the official code against ours, with the same weights of the two losses. Every
direction on the way is judged by that loss on the same images, which no search has seen.
"""

import json as json_format
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple
from unittest.mock import patch

import tyro

from measuring import Row, in_fresh_process, show

if TYPE_CHECKING:
    from torch import Tensor

    from latentseg.generators import Generator, Latents
    from latentseg.labelers.directions_settings import DirectionsConfig

JUDGED = 0x5EA  # keeps the images that judge apart from those of the searches
AT_ONCE = 32  # images
NEVER = "–"


class Counted:
    """A generator that counts the images it draws."""

    def __init__(self, generator: "Generator") -> None:
        self.generator, self.info = generator, generator.info
        self.device = generator.device
        self.images = 0

    def to(self, device: object) -> "Counted":
        """Stays where it is."""
        return self

    def sample(self, seeds: "Tensor") -> "Latents":
        """As the generator does."""
        return self.generator.sample(seeds)

    def __call__(self, latents: "Latents") -> "Tensor":
        """Counted."""
        self.images += len(latents)
        return self.generator(latents)

    def shift(self, latents: "Latents", step: "Tensor") -> "Latents":
        """As the generator does."""
        return self.generator.shift(latents, step)


class Point(NamedTuple):
    """A direction on the way: steps of all starts, images, CPU seconds; its loss on judged images.

    `is_choice` says whether the search could have ended with it: the starts have been compared,
    and it belongs to the best one.
    """

    steps: int
    images: int
    seconds: float
    is_choice: bool
    loss: float


class Judge:
    """The loss of directions on the same images, all steps being of the mean length."""

    def __init__(
        self, generator: "Generator", sign: str, config: "DirectionsConfig", n: int, seed: int
    ) -> None:
        import torch

        from latentseg.labelers.overview import sample_latents

        self.generator, self.config = generator, config
        self.weight = config.contrast_weight * (1 if sign == "light" else -1)
        latents = sample_latents(generator, n, seed, JUDGED)
        self.latents = [latents[i : i + AT_ONCE] for i in range(0, n, AT_ONCE)]
        with torch.no_grad():
            self.images = [generator(some) for some in self.latents]

    def __call__(self, direction: "Tensor") -> float:
        """The mean over the images."""
        import torch

        from latentseg.labelers.losses import LOSSES

        losses, radius, total = LOSSES[self.config.loss], self.config.radius, 0.0
        for latents, x in zip(self.latents, self.images, strict=True):
            with torch.no_grad():
                step = radius * direction.to(latents.values)
                shifted = self.generator(self.generator.shift(latents, step))
                loss = self.weight * losses.contrast(shifted)
                loss = loss + self.config.structure_weight * losses.structure(shifted, x)
            total += len(latents) * float(loss)
        return total / sum(map(len, self.latents))


def settings(
    sign: str, official_steps: int | None, lrs: tuple[float, ...]
) -> dict[str, "DirectionsConfig"]:
    """By name: the official settings, ours, and ours with one start and larger steps."""
    from latentseg.labelers.directions_settings import SETTINGS

    official = replace(SETTINGS["official"], mode=sign)  # pyright: ignore[reportArgumentType]
    if official_steps is not None:
        official = replace(official, steps=official_steps)
    ours = replace(
        SETTINGS["ours"],
        mode=official.mode,
        contrast_weight=official.contrast_weight,
        structure_weight=official.structure_weight,
        steps=official.steps,
        restart_steps=min(SETTINGS["ours"].restart_steps, official.steps),
    )
    larger = {f"ours, one start, lr {lr:g}": replace(ours, lr=lr, restarts=1) for lr in lrs}
    return {"official": official, "ours": ours, **larger}


def watch(
    name: str, device: str, config: "DirectionsConfig", every: int, n: int, seed: int, file: Path
) -> Row:
    """Runs the search, notes every few steps, and judges when the clock has stopped."""
    from latentseg.generators import load_generator
    from latentseg.labelers import direction_search

    generator = Counted(load_generator(name, device=device))
    searches: list[Any] = []
    noted: list[tuple[int, int, float, int, Tensor]] = []
    plain_step = direction_search._Search.step

    def step(search: Any) -> None:
        plain_step(search)
        if search not in searches:
            searches.append(search)
        steps = sum(len(each.losses) for each in searches)
        if steps % every == 0:
            seconds = time.process_time() - began
            direction = search.direction.detach().clone()
            noted.append((steps, generator.images, seconds, searches.index(search), direction))

    began = time.process_time()
    with patch.object(direction_search._Search, "step", step):
        found = direction_search.find_direction(generator, config.mode, config=config, seed=seed)
    seconds, images = time.process_time() - began, generator.images
    best = min(range(len(found.starts)), key=found.starts.__getitem__)
    compared = config.restarts * config.restart_steps if config.restarts > 1 else 0
    judge = Judge(generator, config.mode, config, n, seed)
    points = [
        Point(steps, drawn, spent, start == best and steps >= compared, judge(direction))
        for steps, drawn, spent, start, direction in noted
    ]
    steps = sum(len(search.losses) for search in searches)
    points.append(Point(steps, images, seconds, True, judge(found.values)))
    file.write_text(json_format.dumps(points))
    return {"steps in all": steps, "images": images, "CPU s": seconds, "loss": points[-1].loss}


def row(setting: str, points: list[Point], target: float, cost: Row) -> dict[str, Any]:
    """What a setting took to the loss with which the official one ends, and in all."""
    reached = next((each for each in points if each.is_choice and each.loss <= target), None)
    return {
        "search": setting,
        "steps to it": NEVER if reached is None else str(reached.steps),
        "images to it": NEVER if reached is None else str(reached.images),
        "CPU s to it": NEVER if reached is None else f"{reached.seconds:.1f}",
        "steps in all": cost["steps in all"],
        "images in all": cost["images"],
        "CPU s in all": f"{cost['CPU s']:.1f}",
        "last loss": f"{cost['loss']:.4f}",
        "peak MB": cost["peak MB"],
    }


def main(
    generator: str = "pets64",
    sign: Literal["light", "dark"] = "light",
    official_steps: int | None = None,
    lrs: tuple[float, ...] = (0.02,),
    every: int = 5,
    judged: int = 128,
    device: str = "auto",
    seed: int = 0,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Searches with each setting in a process of its own.

    Args:
        generator: What `latentseg.load_generator` takes.
        sign: The direction to search.
        official_steps: Steps of the official settings, and most steps of ours; 300 by default.
        lrs: Learning rates of Adam to try with one start.
        every: Steps between directions that are judged.
        judged: Images on which they are judged.
        device: auto, cpu, cuda, ...
        seed: Of the searches and of the judged images.
        json: File for the numbers; the curves go to the same name with "-curves".
    """
    curves: dict[str, list[Point]] = {}
    costs: dict[str, Row] = {}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "points.json"
        for name, config in settings(sign, official_steps, lrs).items():
            costs[name] = in_fresh_process(
                watch, generator, device, config, every, judged, seed, file
            )
            curves[name] = [Point(*point) for point in json_format.loads(file.read_text())]
    target = curves["official"][-1].loss
    rows = [row(name, curves[name], target, costs[name]) for name in curves]
    title = f"Search for the {sign} direction of {generator}, to a loss of {target:.4f}"
    show(title, rows, device=device, json_file=json)
    if json is not None:
        named = {name: [point._asdict() for point in points] for name, points in curves.items()}
        beside = json.with_stem(f"{json.stem}-curves")
        beside.write_text(json_format.dumps(named, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
