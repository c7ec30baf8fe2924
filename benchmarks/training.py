"""Training steps per second of students and of a generator: python benchmarks/training.py."""

import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import tyro

from measuring import Row, finish, in_fresh_process, show

if TYPE_CHECKING:
    from latentseg.datasets.pairs import Batch
    from latentseg.weights.efficientnet_lite0 import EfficientNetLite0


class Clocked:
    """The same random pairs for every step; notes when they are asked for: as a step begins."""

    classes = ("foreground",)

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self.asked: list[float] = []
        self.made: Batch | None = None

    def batch(self, step: int, size: int) -> "Batch":
        """The pairs of any step."""
        import torch

        from latentseg.datasets.pairs import Batch

        self.asked.append(time.perf_counter())
        if self.made is None:
            images = torch.rand(size, 3, *self.size) * 2 - 1
            self.made = Batch(images, torch.randint(0, 2, (size, *self.size), dtype=torch.uint8))
        return self.made


def train_student(preset: str, side: int, device: str, steps: int) -> Row:
    """Whole steps of `train`, augmentation and optimiser included, pairs at no cost."""
    from latentseg.students.networks import build_network, count_parameters
    from latentseg.students.training import PRESETS, train

    pairs, config = Clocked((side, side)), replace(PRESETS[preset], steps=steps)
    with TemporaryDirectory() as folder:
        train(pairs, out=Path(folder) / "run", config=config, device=device, quiet=True)
    times = sorted(b - a for a, b in zip(pairs.asked[1:], pairs.asked[2:], strict=False))
    taken = times[len(times) // 2]
    network = build_network(config.network, 2, width=config.width)
    return {
        "what": f"student, {preset}",
        "parameters": f"{count_parameters(network) / 1e6:.2f} M",
        "pixels": f"{side} x {side}",
        "batch": config.batch,
        "steps/s": 1 / taken,
        "images/s": config.batch / taken,
    }


def train_generator(side: int, features: str, batch: int, device: str, steps: int) -> Row:
    """Whole steps of the generator's training, the lazy penalty in its turn."""
    import torch

    from latentseg.devices import pick_device
    from latentseg.distributed import Team
    from latentseg.generators.training.config import (
        DEFAULTS,
        default_channels,
        default_feature_px,
    )
    from latentseg.generators.training.photos import Photos
    from latentseg.generators.training.steps import Training

    size = (side, side)
    config = replace(
        DEFAULTS[features],
        size=size,
        channels=default_channels(size),
        batch=batch,
        feature_px=default_feature_px(features, size),
    )
    pixels = torch.randint(0, 256, (256, 3, side, side), dtype=torch.uint8)
    photos = Photos(pixels, None, (), tuple(map(str, range(256))))
    network = None if features == "none" else random_features()
    training = Training(config, 0, Team(pick_device(device)), network)
    training.advance(photos)
    steps = max(steps // config.r1_interval, 1) * config.r1_interval
    finish(training.device)
    began = time.perf_counter()
    for _ in range(steps):
        training.advance(photos)
    finish(training.device)
    taken = (time.perf_counter() - began) / steps
    parameters = sum(parameter.numel() for parameter in training.generator.parameters())
    return {
        "what": "generator" if features == "none" else f"generator, {features}",
        "parameters": f"{parameters / 1e6:.2f} M",
        "pixels": f"{side} x {side}",
        "batch": config.batch,
        "steps/s": 1 / taken,
        "images/s": config.batch / taken,
    }


def random_features() -> "EfficientNetLite0":
    """The frozen network with random weights, which are no slower than the real ones."""
    import torch

    from latentseg.weights.efficientnet_lite0 import EfficientNetLite0

    network = EfficientNetLite0()
    for buffer in network.buffers():
        torch.nn.init.normal_(buffer, std=(2 / buffer[0].numel()) ** 0.5)
    return network


def main(
    presets: tuple[str, ...] = ("quick", "standard", "paper"),
    side: int = 64,
    device: str = "auto",
    steps: int = 8,
    generator_steps: int = 32,
    generator_batch: int = 32,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures each preset and the training of a generator, each in a process of its own.

    Args:
        presets: Of students.
        side: Height and width of images in pixels.
        device: auto, cpu, cuda, ...
        steps: Steps of each student; the first is not counted.
        generator_steps: Steps of the generator, without and with features.
        generator_batch: Photos per step of the generator.
        json: File for the numbers.
    """
    rows = [in_fresh_process(train_student, preset, side, device, steps) for preset in presets]
    for features in ("none", "efficientnet-lite0"):
        asked = (side, features, generator_batch, device, generator_steps)
        rows.append(in_fresh_process(train_generator, *asked))
    show("Training", rows, device=device, json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
