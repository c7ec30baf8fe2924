"""Features and head of a StyleGAN2 of 1024 px, streamed or not: python benchmarks/hypercolumns.py.

The network is the official one of 1024 px with random weights; its 16 upsampled maps have 5 056
channels, which Tritrong 2021 concatenates at 512 px. The head is the official CNN.
"""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor, nn
from torch.nn import functional

from latentseg.generators.protocols import GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.generators.stylegan2 import (
    SQRT_2,
    StyleGAN2,
    StyleGAN2Config,
    SynthesisBlock,
    SynthesisLayer,
    demodulation,
)
from latentseg.labelers.features import Hypercolumns, Strip, conv_1x1
from latentseg.labelers.heads import build_heads, class_probabilities
from measuring import Row, in_fresh_process, peak_bytes, show

WAYS = ("concatenated", "maps held", "streamed")
CHANNELS = (512, 512, 512, 512, 512, 256, 128, 64, 32)
SMALL_CHANNELS = (64, 64, 48, 32, 16, 8)
N_CLASSES = 10
MIB = 2**20
STEPS_HELD = 6  # maps as large as a layer's strip that drawing it holds at once


class StripwiseGenerator:
    """A StyleGAN2 that hands out its features in strips of rows as it draws them.

    The images' colours are not drawn. What `feature_strips` does is proposed for StyleGAN2 itself.
    """

    def __init__(self, generator: StyleGenerator) -> None:
        self.generator = generator
        self.info = generator.info
        self.feature_channels = generator.feature_channels

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.generator.device

    def to(self, device: torch.device | str) -> "StripwiseGenerator":
        """Moves the weights; returns itself."""
        self.generator.to(device)
        return self

    def sample(self, seeds: Tensor) -> Latents:
        """As the generator."""
        return self.generator.sample(seeds)

    def __call__(self, latents: Latents) -> Tensor:
        """As the generator."""
        return self.generator(latents)

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        """As the generator."""
        return self.generator.shift(latents, step)

    def features(self, latents: Latents) -> list[Tensor]:
        """As the generator: all maps at once."""
        return self.generator.features(latents)

    def feature_strips(self, latents: Latents, *, memory: int) -> Iterator[Strip]:
        """As `HasFeatureStrips` has it: the last maps exist only as strips."""
        network = self.generator.network
        assert isinstance(network, StyleGAN2)
        styles = latents.values[:, None].expand(-1, network.n_layers, -1).unbind(dim=1)
        names = network.synthesis.names
        x, layer = None, 0
        for name in names:
            block = network.synthesis.get_submodule(name)
            assert isinstance(block, SynthesisBlock)
            if x is None:
                const = block.const[None].expand(len(latents), -1, -1, -1)
                x = layer_rows(block.conv1, const, styles[0], 0, const.shape[2])
                yield Strip(0, 0, x.shape[2], x)
                layer = 1
                continue
            is_last = name == names[-1]
            height, width = 2 * x.shape[2], 2 * x.shape[3]
            kept = 0 if is_last else height
            above = x.new_empty(len(x), len(block.conv1.weight), kept, width)
            for lower, upper in block_strips(block, x, (styles[layer], styles[layer + 1]), memory):
                yield Strip(layer, lower[0], height, lower[1])
                yield Strip(layer + 1, upper[0], height, upper[1])
                if not is_last:
                    above[:, :, upper[0] : upper[0] + upper[1].shape[2]] = upper[1]
            x, layer = above, layer + 2


Rows = tuple[int, Tensor]  # first row, and rows from there


def block_strips(
    block: SynthesisBlock, x: Tensor, styles: tuple[Tensor, Tensor], memory: int
) -> Iterator[tuple[Rows, Rows]]:
    """Strips of the two maps of a block, of which every row comes once.

    The second layer needs one row more than it gives, on either side: those are kept from the
    strip before.
    """
    height, width = 2 * x.shape[2], 2 * x.shape[3]
    channels = block.conv1.weight.shape[0]
    n = max(2, memory // (4 * len(x) * channels * width * STEPS_HELD))
    kept, done = x.new_empty(len(x), channels, 0, width), 0
    for top in range(0, height, n):
        bottom = min(top + n, height)
        lower = layer_rows(block.conv0, x, styles[0], top, bottom)
        known = torch.cat([kept, lower], dim=2)
        first = bottom - known.shape[2]
        end = bottom if bottom == height else bottom - 1
        upper = layer_rows(block.conv1, known, styles[1], done, end, first=first, height=height)
        yield (top, lower), (done, upper)
        kept, done = known[:, :, max(end - 1 - first, 0) :].clone(), end


def layer_rows(
    layer: SynthesisLayer,
    x: Tensor,
    w: Tensor,
    top: int,
    bottom: int,
    *,
    first: int = 0,
    height: int | None = None,
) -> Tensor:
    """Rows `top` to `bottom` - 1 of what a layer of "const" noise makes of a map.

    Args:
        layer: Of StyleGAN2.
        x: (B, C_in, rows, W): the map, or its rows from `first` on that are needed.
        w: (B, w_dim).
        top, bottom: Rows of the result.
        first: Row of the map at which `x` begins.
        height: Rows of the whole map; None: `x` is the whole.
    """
    height = x.shape[2] if height is None else height
    weight = layer.weight * layer.weight.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
    styles = layer.affine(w)
    styles = styles * styles.square().mean().rsqrt()
    if layer.is_upsampling:
        y = _upsampled_rows(layer, x, weight, styles, top, bottom)
    else:
        y = _plain_rows(x, weight, styles, (top - first, bottom - first), height - first)
    gain = SQRT_2
    factor = demodulation(weight, styles)[:, :, None, None] * gain
    noise = layer.noise_const[top:bottom] * layer.noise_strength
    y = y.mul_(factor).add_((layer.bias[:, None, None] + noise) * gain)
    return functional.leaky_relu_(y, 0.2)


def _plain_rows(
    x: Tensor, weight: Tensor, styles: Tensor, rows: tuple[int, int], height: int
) -> Tensor:
    top, bottom = rows
    above, below = max(1 - top, 0), max(bottom + 1 - height, 0)
    part = x[:, :, max(top - 1, 0) : bottom + 1] * styles[:, :, None, None]
    part = functional.pad(part, (0, 0, above, below))
    return functional.conv2d(part, weight, padding=(0, 1))


def _upsampled_rows(
    layer: SynthesisLayer, x: Tensor, weight: Tensor, styles: Tensor, top: int, bottom: int
) -> Tensor:
    """Transposed convolution, of which every row depends on two of `x`, then the filter."""
    taps, channels = layer.resample_filter.shape[-1], len(weight)
    margin = taps // 2 - 1
    wanted = (top - margin, bottom - margin + taps - 1)
    low, high = max((wanted[0] - 1) // 2, 0), min((wanted[1] - 1) // 2 + 1, x.shape[2])
    part = x[:, :, low:high] * styles[:, :, None, None]
    part = functional.conv_transpose2d(part, weight.transpose(0, 1), stride=2)
    before, after = 2 * low - wanted[0], wanted[1] - 2 * low - part.shape[2]
    part = functional.pad(part, (margin, margin, before, after))
    kernel = (layer.resample_filter * 4).expand(channels, 1, taps, taps)
    return functional.conv2d(part, kernel, groups=channels)


def build(channels: tuple[int, ...]) -> StripwiseGenerator:
    """A StyleGAN2 with random weights, the official plan for `channels` of (512, ...)."""
    side = 4 * 2 ** (len(channels) - 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        widest = min(512, channels[0])
        config = StyleGAN2Config(
            size=(side, side), channels=channels, z_dim=widest, w_dim=widest, mapping_layers=2
        )
        network = StyleGAN2(config)
        for name, parameter in network.named_parameters():
            if name.endswith("noise_strength"):
                nn.init.constant_(parameter, 0.1)
    info = GeneratorInfo("random", (side, side), (widest,), 0, "w", "none", "random weights", "")
    return StripwiseGenerator(StyleGenerator(network, info, spread=torch.ones(widest)))


@torch.no_grad()
def answer(way: str, generator: StripwiseGenerator, memory: int) -> Tensor:
    """Class probabilities (1, 1, 10, H, W) of one image, by one of `WAYS`."""
    height, width = generator.info.size
    drawn = generator if way == "streamed" else generator.generator
    columns = Hypercolumns(
        drawn,
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
    if way == "concatenated":
        maps = generator.features(latents)[1:]
        hypercolumn = torch.empty(1, columns.n_channels, *columns.size)
        for part, each in zip(columns.slices, maps, strict=True):
            hypercolumn[:, part] = columns.resizing((each.shape[2], each.shape[3])).whole(each)
        del maps
        weight, bias = heads.heads[0].projection()
        projected = conv_1x1(hypercolumn, weight) + bias[:, None, None]
        return heads.heads[0].rest(projected).softmax(dim=1)[None]
    return class_probabilities(heads, columns, latents)


def measure(way: str, channels: tuple[int, ...], memory: int, folder: str) -> Row:
    """Memory beyond weights and libraries, and time, of one image; saves the answer."""
    generator = build(channels)
    small = build(SMALL_CHANNELS)
    answer(way, small, memory)  # so that code which is loaded on first use does not count
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
    memory_mib: int = 8,
    ways: tuple[str, ...] = WAYS,
    json: Annotated[Path | None, tyro.conf.arg(name="json")] = None,
) -> None:
    """Draws one image, its features and its masks in every way, each in a process of its own.

    Args:
        small: A network of 128 px, to try the script.
        memory_mib: What the hypercolumns may use beside maps and results.
        ways: Of "concatenated", "maps held" and "streamed".
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
