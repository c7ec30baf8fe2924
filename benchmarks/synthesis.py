"""Refined masks per second, and what they cost: python benchmarks/synthesis.py."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import tyro

from measuring import Row, finish, in_fresh_process, show

if TYPE_CHECKING:
    from torch import Tensor

    from latentseg.generators import Generator, Latents
    from latentseg.labelers import Labeler


class Clocked:
    """A generator that counts the seconds it works and the images it draws."""

    def __init__(self, generator: "Generator") -> None:
        self.generator, self.info = generator, generator.info
        self.device = generator.device
        self.reset()

    def reset(self) -> None:
        """Forgets what was counted."""
        self.seconds, self.images = 0.0, 0

    def to(self, device: object) -> "Clocked":
        """Stays where it is."""
        return self

    def sample(self, seeds: "Tensor") -> "Latents":
        """Counted as the generator's time."""
        began = time.perf_counter()
        latents = self.generator.sample(seeds)
        finish(self.device)
        self.seconds += time.perf_counter() - began
        return latents

    def __call__(self, latents: "Latents") -> "Tensor":
        """Counted as the generator's time."""
        began = time.perf_counter()
        images = self.generator(latents)
        finish(self.device)
        self.seconds += time.perf_counter() - began
        self.images += len(latents)
        return images

    def shift(self, latents: "Latents", step: "Tensor") -> "Latents":
        """Counted as the generator's time."""
        began = time.perf_counter()
        moved = self.generator.shift(latents, step)
        self.seconds += time.perf_counter() - began
        return moved


def fitted(generator: "Generator", labeler: str | None) -> "Labeler":
    """The labeler in a folder, or a short search: how good the masks are does not matter here."""
    from latentseg.labelers import load_labeler
    from latentseg.labelers.directions_settings import SETTINGS
    from latentseg.labelers.fit_directions import fit_directions

    if labeler is not None:
        return load_labeler(labeler, generator)
    short = replace(SETTINGS["ours"], restarts=1, steps=40, tolerance=0.0)
    return fit_directions(generator, config=short, quiet=True)


def stream(name: str, labeler: str | None, device: str, block: int, seconds: float) -> Row:
    """Draws, labels and refines blocks in memory."""
    from latentseg.generators import load_generator
    from latentseg.synthesis.stream import Stream

    generator = Clocked(load_generator(name, device=device))
    samples = Stream(generator, fitted(generator, labeler), block=block)
    samples.block(0)
    generator.reset()
    masks, candidates, k = 0, 0, 1
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        drawn = samples.block(k)
        masks, candidates, k = masks + len(drawn), candidates + int(drawn.attempts.sum()), k + 1
    taken = time.perf_counter() - began
    return _row("in memory", block, masks, candidates, taken, generator)


def write(name: str, labeler: str | None, device: str, block: int, count: int) -> Row:
    """Writes a dataset folder: PNG, sha256, manifest and all."""
    from latentseg.generators import load_generator
    from latentseg.synthesis.writers import synthesize

    generator = Clocked(load_generator(name, device=device))
    fit = fitted(generator, labeler)
    with TemporaryDirectory() as folder:
        synthesize(generator, fit, count=block, out=Path(folder) / "warm", quiet=True, block=block)
        generator.reset()
        began = time.perf_counter()
        out = synthesize(
            generator, fit, count=count, out=Path(folder) / "data", quiet=True, block=block
        )
        taken = time.perf_counter() - began
        from latentseg.files import read_json

        candidates = read_json(out / "dataset.json")["candidates"]
    return _row("to a folder", block, count, candidates, taken, generator)


def _row(
    where: str, block: int, masks: int, candidates: int, taken: float, generator: Clocked
) -> Row:
    return {
        "samples": where,
        "block": block,
        "masks/s": masks / taken,
        "kept": f"{masks / candidates:.0%}",
        "images drawn/s": generator.images / taken,
        "generator": f"{generator.seconds / taken:.1%}",
        "refinement and the rest": f"{1 - generator.seconds / taken:.1%}",
    }


def main(
    generator: str = "pets64",
    labeler: str | None = None,
    device: str = "auto",
    blocks: tuple[int, ...] = (64,),
    seconds: float = 20.0,
    count: int = 1000,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures the stream in memory and a dataset folder on disk, each in a process of its own.

    Args:
        generator: What `latentseg.load_generator` takes.
        labeler: Folder of a labeler; without it directions are searched for a moment.
        device: auto, cpu, cuda, ...
        blocks: Samples drawn together.
        seconds: Time spent on each stream.
        count: Samples of the dataset folder.
        json: File for the numbers.
    """
    rows = []
    for block in blocks:
        rows.append(in_fresh_process(stream, generator, labeler, device, block, seconds))
        rows.append(in_fresh_process(write, generator, labeler, device, block, count))
    show(f"Synthesis with {generator}", rows, device=device, json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
