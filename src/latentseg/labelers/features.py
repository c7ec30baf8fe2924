"""Hypercolumns (Tritrong et al. 2021): the features of all layers per pixel, never held as a whole.

Resizing mixes positions and treats channels alike; a 1x1 convolution mixes channels and treats
positions alike. So every layer can be projected at its own resolution, then resized and added. A
resize is linear too: the strips of a map can be added one by one, as a generator draws them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Protocol, get_args

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.configs import check_choice
from latentseg.errors import InputError
from latentseg.generators.feature_strips import whole_maps
from latentseg.generators.protocols import (
    Generator,
    HasFeatures,
    HasFeatureStrips,
    Latents,
    Strip,
)
from latentseg.labelers.few_shot_settings import Resize
from latentseg.labelers.memory import GIB
from latentseg.labelers.needs import check_ability

Size = tuple[int, int]

COPIES = 4  # of a block that are held at once while it is made: parts of it, and what convolves it
SMALLEST_SCALE = 1e-6  # standard deviations below it are those of a constant channel


class FeatureGenerator(Generator, HasFeatures, Protocol):
    """A generator with features."""


def check_features(generator: Generator, method: str) -> FeatureGenerator:
    """The generator, which has features.

    Raises:
        InputError: it has none; names the labelers that it can serve.
    """
    check_ability(generator, "features", method)
    return generator  # pyright: ignore[reportReturnType]


def hypercolumn(features: Sequence[Tensor], size: Size) -> Tensor:
    """The activations of all layers, each brought to one size, as channels of every pixel.

    This is the definition in plain words; `Hypercolumns` computes the same without ever holding it.

    Args:
        features: The map of each layer, (B, C_l, H_l, W_l).
        size: (height, width).

    Returns:
        (B, the sum of the C_l, *size).

    Source: Tritrong et al. 2021, section 3.
    """
    larger = [each.shape[2:].numel() > size[0] * size[1] for each in features]
    modes = ["area" if is_larger else "bilinear" for is_larger in larger]
    pairs = zip(features, modes, strict=True)
    return torch.cat([functional.interpolate(x, size=size, mode=mode) for x, mode in pairs], dim=1)


@dataclass(frozen=True)
class Resizing:
    """A linear map from activation maps of one size to another; down the rows, then along them.

    Attributes:
        source: (height, width) of the maps.
        size: (height, width) of the target.
        resize: How smaller maps are enlarged: "bilinear" (ours, between pixel centres), "aligned"
            (official code: bilinear, corner on corner), "bicubic" or "nearest". Larger maps become
            means of their pixels, as in the official code.
    """

    source: Size
    size: Size
    resize: Resize

    @property
    def is_reducing(self) -> bool:
        """Whether the target has fewer pixels than the maps."""
        return self.source[0] * self.source[1] > self.size[0] * self.size[1]

    def whole(self, maps: Tensor) -> Tensor:
        """(B, C, *source) to (B, C, *size)."""
        return maps if self.source == self.size else self._to(maps, self.size)

    def rows(self, maps: Tensor, top: int, bottom: int) -> Tensor:
        """Rows `top` to `bottom` - 1 of what `whole` gives, from no more rows than they need."""
        if (top, bottom) == (0, self.size[0]):
            return self.whole(maps)
        if self.source == self.size:
            return maps[:, :, top:bottom]
        weights = self.row_weights(maps, 0, self.source[0])[top:bottom]
        used = used_span(weights)
        return weights[:, used] @ self._widened(maps[:, :, used])

    def strip(self, values: Tensor, first: int) -> tuple[slice, Tensor]:
        """What some rows contribute: (B, C, n, w), beginning at row `first`, to rows of the target.

        Returns:
            The rows that they reach, and (B, C, rows, width); of all strips, added, the resized
            map.
        """
        if values.shape[2] == self.source[0]:
            return slice(0, self.size[0]), self.whole(values)
        weights = self.row_weights(values, first, first + values.shape[2])
        reached = used_span(weights.T)
        return reached, weights[reached] @ self._widened(values)

    def points(self, maps: Tensor, points: Tensor) -> Tensor:
        """What `whole` gives at some pixels: (B, C, *source) and (B, P, 2) int64 to (B, P, C)."""
        y, y_weight = _taps(self.row_weights(maps, 0, self.source[0]))
        x, x_weight = _taps(self._columns(maps))
        row, column = points.unbind(dim=2)
        flat = maps.flatten(2)
        total = flat.new_zeros(len(maps), maps.shape[1], points.shape[1])
        for i in range(y.shape[1]):
            for j in range(x.shape[1]):
                index = y[row, i] * maps.shape[3] + x[column, j]
                weight = y_weight[row, i] * x_weight[column, j]
                taken = flat.gather(2, index[:, None].expand(-1, maps.shape[1], -1))
                total += weight[:, None] * taken
        return total.mT

    def row_weights(self, like: Tensor, first: int, end: int) -> Tensor:
        """What each row of the target takes of rows `first` to `end` - 1 of a map.

        It is what the resize makes of the unit vectors, so that both round alike.

        Returns:
            (height, end - first), of the type and device of `like`.
        """
        unit = torch.eye(end - first, dtype=like.dtype, device=like.device)
        unit = functional.pad(unit, (first, self.source[0] - end))
        return self._to(unit[None, :, :, None], (self.size[0], 1))[0, :, :, 0].T

    def _columns(self, like: Tensor) -> Tensor:
        unit = torch.eye(self.source[1], dtype=like.dtype, device=like.device)
        return self._to(unit[None, :, None, :], (1, self.size[1]))[0, :, 0].T

    def _widened(self, maps: Tensor) -> Tensor:
        return self._to(maps, (maps.shape[2], self.size[1]))

    def _to(self, maps: Tensor, size: Size) -> Tensor:
        if self.is_reducing:
            return functional.interpolate(maps, size=size, mode="area")
        if self.resize == "nearest":
            return functional.interpolate(maps, size=size, mode="nearest")
        mode = "bicubic" if self.resize == "bicubic" else "bilinear"
        corners = self.resize == "aligned"
        return functional.interpolate(maps, size=size, mode=mode, align_corners=corners)


def used_span(weights: Tensor) -> slice:
    """From the first to the last column of (rows, columns) weights that is not all zero."""
    used = weights.abs().sum(dim=0).nonzero()[:, 0]
    return slice(int(used[0]), int(used[-1]) + 1)


def _taps(weights: Tensor) -> tuple[Tensor, Tensor]:
    """(n, m) to the places of the values that are not 0 in each row, and these: (n, K) each."""
    most = int((weights != 0).sum(dim=1).max())
    places = weights.abs().topk(most, dim=1).indices
    return places, weights.gather(1, places)


class Hypercolumns:
    """The features of a generator, resized to one size and seen as one tensor of all channels.

    The tensor (B, n_channels, *size) itself exists only where it is asked for in rows.

    Args:
        generator: It has features; where it has `feature_strips`, they are drawn by these.
        size: (height, width) to which all maps are resized; None: that of the images.
        resize: How maps are resized; see `Resizing`.
        layers: Which of the generator's maps; None: all of them. The official code leaves out the
            first one of StyleGAN2.
        memory: Bytes that may be used beside the generator's own and the results; the least that
            can be done is one row of one image.

    Raises:
        InputError: the generator has no features, no such layer, or the resize is unknown.

    Source: Tritrong et al. 2021, section 3; the order of work is ours.
    """

    def __init__(
        self,
        generator: Generator,
        *,
        size: Size | None = None,
        resize: Resize = "bilinear",
        layers: Sequence[int] | None = None,
        memory: int = GIB,
    ) -> None:
        self.generator = check_features(generator, "few-shot")
        announced = self.generator.feature_channels
        self.layers = tuple(range(len(announced))) if layers is None else tuple(layers)
        wrong = [layer for layer in self.layers if not 0 <= layer < len(announced)]
        if wrong or not self.layers or list(self.layers) != sorted(set(self.layers)):
            raise InputError(
                f"`layers`: expected some of 0 to {len(announced) - 1}, rising, as generator "
                f"{generator.info.name!r} has {len(announced)} maps; found {self.layers}."
            )
        check_choice("resize", resize, get_args(Resize))
        self.size = size or generator.info.size
        self.resize: Resize = resize
        self.memory = memory
        self.channels = tuple(announced[layer] for layer in self.layers)
        ends = list(accumulate(self.channels))
        self.slices = tuple(slice(end - n, end) for n, end in zip(self.channels, ends, strict=True))

    @property
    def n_channels(self) -> int:
        """Channels of all layers together."""
        return sum(self.channels)

    @torch.no_grad()
    def maps(self, latents: Latents) -> list[Tensor]:
        """The map of each layer, (B, C_l, H_l, W_l), those larger than the target resized to it.

        All of them are held: a sixteenth of the concatenation, for a StyleGAN2 of 1024 px.
        """
        maps: dict[int, Tensor] = {}
        for strip in self._strips(latents):
            source = (strip.height, strip.values.shape[3])
            resizing = self.resizing(source)
            rows, values = strip.rows, strip.values
            if resizing.is_reducing:
                rows, values = resizing.strip(values, strip.top)
            size = self.size if resizing.is_reducing else source
            if strip.layer not in maps and values.shape[2] == size[0]:
                maps[strip.layer] = values
                continue
            if strip.layer not in maps:
                maps[strip.layer] = values.new_zeros(*values.shape[:2], *size)
            maps[strip.layer][:, :, rows] += values
        return [maps[layer] for layer in self.layers]

    def resizing(self, source: Size) -> Resizing:
        """How maps of `source` = (height, width) come to the target size."""
        return Resizing(source, self.size, self.resize)

    def rows_of(self, maps: Sequence[Tensor], top: int, bottom: int) -> Tensor:
        """The concatenation of `maps` in rows `top` to `bottom` - 1: (B, n_channels, rows, W)."""
        resized = [self.resizing(_size(each)).rows(each, top, bottom) for each in maps]
        return torch.cat(resized, dim=1)

    def projected(
        self, maps: Sequence[Tensor], weight: Tensor, bias: Tensor, top: int, bottom: int
    ) -> Tensor:
        """weight @ concatenation + bias in rows `top` to `bottom` - 1; differentiable.

        Args:
            maps: As `maps` gives them.
            weight: (O, n_channels).
            bias: (O,).
            top, bottom: Rows of the target.

        Returns:
            (B, O, bottom - top, W).
        """
        total = bias[None, :, None, None]
        for each, part in zip(maps, self.slices, strict=True):
            here = conv_1x1(each, weight[:, part])
            total = total + self.resizing(_size(each)).rows(here, top, bottom)
        return total

    @torch.no_grad()
    def project(self, latents: Latents, weight: Tensor, bias: Tensor) -> Tensor:
        """weight @ concatenation + bias, without the concatenation; see `projected` for gradients.

        Layers smaller than the target are projected, then resized; larger ones resized, then
        projected. Each is added in blocks of channels, or strip by strip if the generator hands
        out strips, and forgotten.

        Args:
            latents: Of B images.
            weight: (O, n_channels).
            bias: (O,).

        Returns:
            (B, O, *size), in the type of the features.
        """
        total: Tensor | None = None
        for strip in self._strips(latents):
            if total is None:
                shape = (len(latents), len(weight), *self.size)
                total = bias.to(strip.values)[None, :, None, None].expand(shape).contiguous()
            part = self.slices[self.layers.index(strip.layer)]
            self._add(total, strip, weight[:, part].to(strip.values))
        if total is None:
            raise InputError(f"generator {self.generator.info.name!r}: gave no features.")
        return total

    @torch.no_grad()
    def rows(self, latents: Latents, *, halo: int = 0) -> Iterator[tuple[int, int, Tensor]]:
        """The concatenation in blocks of rows, each with up to `halo` more rows above and below.

        For heads whose first layer is not 1x1. The maps are held, beside `memory`.

        Yields:
            First row and end of what the block is for, and the block (B, n_channels, rows, W):
            rows max(first - halo, 0) to min(end + halo, height) - 1.
        """
        maps = self.maps(latents)
        for first, end in row_blocks(
            self.size, COPIES * len(latents) * self.n_channels, halo, self.memory
        ):
            top, bottom = max(first - halo, 0), min(end + halo, self.size[0])
            yield first, end, self.rows_of(maps, top, bottom)

    @torch.no_grad()
    def pixels(self, latents: Latents, points: Tensor) -> Tensor:
        """The concatenation at some pixels only.

        Args:
            latents: Of B images.
            points: Row and column of the pixels of each image, (B, P, 2) int64.

        Returns:
            (B, P, n_channels).
        """
        return self.pixels_of(self.maps(latents), points)

    def pixels_of(self, maps: Sequence[Tensor], points: Tensor) -> Tensor:
        """As `pixels`, from maps that `maps` gave."""
        points = points.to(maps[0].device)
        found = [self.resizing(_size(each)).points(each, points) for each in maps]
        return torch.cat(found, dim=2)

    def _strips(self, latents: Latents) -> Iterator[Strip]:
        if isinstance(self.generator, HasFeatureStrips):
            strips = self.generator.feature_strips(latents, memory=self.memory // 2)
        else:
            strips = whole_maps(self.generator.features(latents))
        return (strip for strip in strips if strip.layer in self.layers)

    def _add(self, total: Tensor, strip: Strip, weight: Tensor) -> None:
        """Adds to `total` what a strip contributes to the projection, in blocks of channels."""
        values = strip.values
        resizing = self.resizing((strip.height, values.shape[3]))
        rows, width = values.shape[2:]
        rows_reached = rows * self.size[0] / strip.height
        # Per channel of the projection: it, its columns resized, its rows too, and their sum.
        pixels = rows * (width + self.size[1]) + 2 * rows_reached * self.size[1]
        n = max(1, int(self.memory // 2 / (values.element_size() * len(total) * pixels)))
        reached = slice(0, 0)
        if resizing.is_reducing:
            reached, values = resizing.strip(values, strip.top)
        for start in range(0, len(weight), n):
            part = conv_1x1(values, weight[start : start + n])
            if not resizing.is_reducing:
                reached, part = resizing.strip(part, strip.top)
            total[:, start : start + n, reached] += part


def conv_1x1(maps: Tensor, weight: Tensor) -> Tensor:
    """(B, C, H, W) and (O, C) to (B, O, H, W)."""
    return functional.conv2d(maps, weight[:, :, None, None])


def row_blocks(size: Size, channels: int, halo: int, memory: int) -> list[tuple[int, int]]:
    """Consecutive blocks of rows, (first, end), that cover an image.

    Args:
        size: (height, width).
        channels: float32 values that are held for each pixel of a block and of its halo.
        halo: Rows that each block needs above and below.
        memory: Bytes for a block; it has at least one row.
    """
    height, width = size
    n = max(1, min(height, memory // (4 * channels * width) - 2 * halo))
    if n >= height or 4 * channels * width * height <= memory:
        return [(0, height)]
    return [(first, min(first + n, height)) for first in range(0, height, n)]


def _size(maps: Tensor) -> Size:
    return (maps.shape[2], maps.shape[3])


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each channel, (C,) each, by which features are normalized."""

    mean: Tensor
    deviation: Tensor

    @staticmethod
    def of(pixels: Tensor) -> "Scale":
        """That of pixels (N, C); constant channels get a deviation of 1."""
        deviation = pixels.std(dim=0, unbiased=False)
        deviation = torch.where(deviation > SMALLEST_SCALE, deviation, 1.0)
        return Scale(pixels.mean(dim=0), deviation)

    def fold(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Weight (O, C) and bias (O,) that do to features what the given ones do to normalized."""
        folded = weight / self.deviation
        return folded, bias - folded @ self.mean
