"""Images that a generator draws per second: python benchmarks/draw.py [--generator pets64]."""

from pathlib import Path
from typing import Annotated

import tyro

from measuring import Row, in_fresh_process, seconds_each, show


def draw(generator_name: str, device: str, precision: str, batch: int, seconds: float) -> Row:
    """Draws without gradients, from latents that are drawn beforehand."""
    import torch

    from latentseg import devices
    from latentseg.generators import load_generator

    generator = load_generator(generator_name, device=device)
    latents = generator.sample(torch.arange(batch))
    dtype = devices.pick_precision(precision, generator.device)

    @torch.inference_mode()
    def once() -> None:
        with devices.autocast(generator.device, dtype):
            generator(latents)

    taken = seconds_each(once, generator.device, seconds=seconds)
    return {
        "precision": precision,
        "batch": batch,
        "images/s": batch / taken,
        "ms per image": 1000 * taken / batch,
    }


def main(
    generator: str = "pets64",
    device: str = "auto",
    precisions: tuple[str, ...] = ("fp32", "bf16"),
    batches: tuple[int, ...] = (1, 8, 32, 64),
    seconds: float = 3.0,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Measures each precision and batch size in a process of its own.

    Args:
        generator: What `latentseg.load_generator` takes.
        device: auto, cpu, cuda, ...
        precisions: fp32, bf16, fp16.
        batches: Images drawn together.
        seconds: Least time spent on each row.
        json: File for the numbers.
    """
    rows = [
        in_fresh_process(draw, generator, device, precision, batch, seconds)
        for precision in precisions
        for batch in batches
    ]
    show(f"Drawing with {generator}", rows, device=device, json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
