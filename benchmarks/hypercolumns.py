"""Features and head of a StyleGAN2 of 1024 px, streamed or not: python benchmarks/hypercolumns.py.

The network is the official one of 1024 px with random weights; its 16 upsampled maps have 5 056
channels, which Tritrong 2021 concatenates at 512 px. The head is the official CNN.
"""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn

from latentseg.generators.families.stylegan2 import StyleGAN2, StyleGAN2Config
from latentseg.generators.protocols import GeneratorInfo
from latentseg.generators.style_generator import StyleGenerator, StyleNetwork
from latentseg.labelers.features import Hypercolumns, conv_1x1
from latentseg.labelers.heads import build_heads, class_probabilities
from measuring import Row, in_fresh_process, peak_bytes, show

WAYS = ("concatenated", "whole maps", "streamed")
CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64, 32)
SMALL_CHANNELS = (64, 64, 48, 32, 16, 8)
N_CLASSES = 10
MIB = 2**20


class WholeMaps(StyleGAN2):
    """The same network as one of a family that hands out whole maps, not strips of rows."""

    strips = StyleNetwork.strips


def build(channels: tuple[int, ...], way: str) -> StyleGenerator:
    """A StyleGAN2 with random weights, the official plan for `channels` of (512, ...)."""
    side = 4 * 2 ** (len(channels) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widest = min(512, channels[0])
        config = StyleGAN2Config(
            size=(side, side), channels=channels, z_dim=widest, w_dim=widest, mapping_layers=2
        )
        network = StyleGAN2(config) if way == "streamed" else WholeMaps(config)
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                nn.init.constant_(parameter, 0.1)
    info = GeneratorInfo("random", (side, side), (widest,), 0, "w", "none", "random weights", "")
    return StyleGenerator(network, info, spread=torch.ones(widest))


@torch.no_grad()
def answer(way: str, generator: StyleGenerator, memory: int) -> Tensor:
    """Class probabilities (1, 1, 10, H, W) of one image, by one of `WAYS`."""
    height, width = generator.info.size
    columns = Hypercolumns(
        generator,
        size=(height // 2, width // 2),
        resize="aligned",
        layers=range(1, len(generator.feature_channels)),
        memory=memory,
    )
    heads = build_heads("cnn", columns.n_channels, N_CLASSES).eval()
    for i, layer in enumerate(heads.heads[0].layers):
        # Answers of fresh weights hardly differ between pixels, and would hide differences.
        nn.init.kaiming_normal_(layer.weight, generator=torch.Generator().manual_seed(i))
    latents = generator.sample(torch.tensor([0]))
    if way != "concatenated":
        return class_probabilities(heads, columns, latents)
    maps = generator.features(latents)[1:]
    hypercolumn = torch.empty(1, columns.n_channels, *columns.size)
    for part, each in zip(columns.slices, maps, strict=True):
        hypercolumn[:, part] = columns.resizing((each.shape[2], each.shape[3])).whole(each)
    del maps
    weight, bias = heads.heads[0].projection()
    projected = conv_1x1(hypercolumn, weight) + bias[:, None, None]
    return heads.heads[0].rest(projected).softmax(dim=1)[None]


def measure(way: str, channels: tuple[int, ...], memory: int, folder: str) -> Row:
    """Memory beyond weights and libraries, and time, of one image; saves the answer."""
    generator = build(channels, way)
    # So that code which is loaded on first use does not count.
    answer(way, build(SMALL_CHANNELS, way), memory)
    _forget_peak()
    before, began = _resident_bytes(), time.perf_counter()
    found = answer(way, generator, memory)
    seconds = time.perf_counter() - began
    beyond = peak_bytes() - before
    torch.save(found, Path(folder) / f"{way}.pt")
    return {"way": way, "beyond weights MB": round(beyond / 1e6), "seconds": seconds}


def _forget_peak() -> None:
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5")


def _resident_bytes() -> int:
    status = Path("/proc/self/status")
    if not status.exists():
        return peak_bytes()
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(lines["VmRSS"].split()[0]) * 1024


def main(
    small: bool = False,
    memory_mib: int = 32,
    ways: tuple[str, ...] = WAYS,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Draws one image, its features and its masks in every way, each in a process of its own.

    Args:
        small: A network of 128 px, to try the script.
        memory_mib: What the hypercolumns may use beside whole maps and results.
        ways: Of "concatenated", "whole maps" and "streamed"; the first is what others differ from.
        json: File for the numbers.
    """
    channels = SMALL_CHANNELS if small else CHANNELS
    with tempfile.TemporaryDirectory() as folder:
        rows = [in_fresh_process(measure, way, channels, memory_mib * MIB, folder) for way in ways]
        answers = [torch.load(Path(folder) / f"{way}.pt") for way in ways]
    for row, found in zip(rows, answers, strict=True):
        row["largest difference"] = float((found - answers[0]).abs().max())
    show("One image: features and head", rows, device="cpu", json_file=json)


if __name__ == "__main__":
    tyro.cli(main)
