"""Activation maps in strips of rows, against the same maps drawn as a whole."""

import weakref
from collections.abc import Callable, Iterable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from latentseg.generators.family import Sampling, SavedGenerator
from latentseg.generators.feature_strips import Window, whole_maps
from latentseg.generators.protocols import HasFeatureStrips, Latents, Strip
from latentseg.generators.style_generator import StyleGenerator
from tests.generators import tiny_stylegan1, tiny_stylegan3
from tests.generators.tiny_stylegan2 import TINY, tiny
from tests.world import World

WIDE = {"size": (32, 96), "channels": (8, 20, 6, 10)}
NETWORKS = {
    **TINY,
    "random noise": lambda: tiny(Sampling(noise="random"), **WIDE),
    "no noise": lambda: tiny(Sampling(noise="none"), **WIDE),
    "clamped": lambda: tiny(conv_clamp=0.5, **WIDE),
    "filter of 2": lambda: tiny(architecture="resnet", resample_filter=(1, 1), **WIDE),
    "filter of 6": lambda: tiny(
        architecture="resnet", resample_filter=(1, 5, 10, 10, 5, 1), **WIDE
    ),
}
LARGE = {"size": (128, 128), "channels": (16, 16, 16, 16, 8, 8)}  # 5 MB while it draws two
LEAST = 240_000  # bytes that this one needs for strips of one row
MEMORIES = (0, 40_000, 150_000, 400_000, 10**9)


class Held(TorchDispatchMode):
    """Counts the bytes of all tensors that are held at once, those of `known` apart."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known = {each.untyped_storage().data_ptr() for each in known}
        self.users: dict[int, int] = {}
        self.n_bytes = self.most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for each in tree_leaves(made):
            if isinstance(each, Tensor) and each.untyped_storage().data_ptr() not in self.known:
                place, n_bytes = each.untyped_storage().data_ptr(), each.untyped_storage().nbytes()
                self._count(place, 1, n_bytes)
                weakref.finalize(each, self._count, place, -1, n_bytes)
        return made

    def _count(self, place: int, users: int, n_bytes: int) -> None:
        before = self.users.get(place, 0)
        self.users[place] = before + users
        self.n_bytes += n_bytes * (bool(self.users[place]) - bool(before))
        self.most = max(self.most, self.n_bytes)


def drawn_by(generator: SavedGenerator) -> StyleGenerator:
    """The generator, which draws by a style network."""
    assert isinstance(generator, StyleGenerator)
    return generator


def most_held(generator: StyleGenerator, work: Callable[[], object]) -> int:
    """Bytes beyond the weights that are held at once in `work`."""
    with Held([*generator.network.parameters(), *generator.network.buffers()]) as held:
        work()
    return held.most


def joined(strips: Iterable[Strip], n_layers: int) -> list[Tensor]:
    """The maps, of which every row must come once, from top to bottom."""
    rows: list[list[Tensor]] = [[] for _ in range(n_layers)]
    heights = [0] * n_layers
    for strip in strips:
        assert strip.top == sum(each.shape[2] for each in rows[strip.layer])
        assert strip.values.shape[2] > 0
        rows[strip.layer].append(strip.values)
        heights[strip.layer] = strip.height
    maps = [torch.cat(each, dim=2) for each in rows]
    assert [each.shape[2] for each in maps] == heights
    return maps


@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("name", NETWORKS)
def test_strips_when_joined_then_they_are_the_features(name, memory):
    generator = drawn_by(NETWORKS[name]())
    assert isinstance(generator, HasFeatureStrips)
    latents = generator.sample(torch.arange(3))
    torch.manual_seed(0)  # random noise is the same as well
    expected = generator.features(latents)
    torch.manual_seed(0)
    found = joined(generator.feature_strips(latents, memory=memory), len(expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_strips_when_styles_differ_between_layers_then_each_layer_has_its_own():
    generator = drawn_by(tiny(**WIDE))
    latents = Latents(torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(0)))
    expected = generator.features(latents)
    found = joined(generator.feature_strips(latents, memory=0), len(expected))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_strips_when_memory_differs_then_so_do_their_rows():
    generator = drawn_by(tiny(**LARGE))
    latents = generator.sample(torch.arange(1))
    tallest = [
        max(
            strip.values.shape[2]
            for strip in generator.feature_strips(latents, memory=memory)
            if strip.height == 128
        )
        for memory in (0, 500_000, 1_000_000, 10**9)
    ]
    assert tallest[0] == 2  # one and, at the border, the one that waited for it
    assert tallest[-1] == 128
    assert tallest == sorted(set(tallest))


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@torch.no_grad()
def test_strips_when_memory_is_short_then_no_more_is_held(architecture):
    generator = drawn_by(tiny(architecture=architecture, **LARGE))
    latents = generator.sample(torch.arange(2))
    maps = most_held(generator, lambda: generator.features(latents))
    assert maps > 20 * LEAST
    for memory in (LEAST, maps // 8, maps // 4):
        held = most_held(
            generator,
            lambda memory=memory: [
                strip.layer for strip in generator.feature_strips(latents, memory=memory)
            ],
        )
        assert LEAST / 2 < held <= memory


def test_strips_when_the_first_is_asked_for_then_the_finest_maps_are_not_drawn():
    generator = drawn_by(tiny(**LARGE))
    latents = generator.sample(torch.arange(2))
    first = most_held(generator, lambda: next(generator.feature_strips(latents, memory=10**9)))
    assert first < most_held(generator, lambda: generator.features(latents)) / 100


@pytest.mark.parametrize("name", ["stylegan1", "stylegan3-t"])
def test_strips_when_a_family_cannot_draw_rows_then_they_are_whole_maps(name):
    generator = drawn_by({**tiny_stylegan1.TINY, **tiny_stylegan3.TINY}[name]())
    latents = generator.sample(torch.arange(2))
    expected = generator.features(latents)
    strips = list(generator.feature_strips(latents, memory=0))
    assert [strip.layer for strip in strips] == list(range(len(expected)))
    for strip, maps in zip(strips, expected, strict=True):
        assert (strip.top, strip.height) == (0, maps.shape[2])
        torch.testing.assert_close(strip.values, maps, atol=1e-5, rtol=1e-5)


def test_generators_without_strips_are_told_apart():
    assert not isinstance(World(), HasFeatureStrips)


def test_whole_maps_are_forgotten_as_they_are_handed_out():
    maps = [torch.zeros(1, 2, size, size) for size in (2, 4, 8)]
    held = [weakref.ref(each) for each in maps]
    strips = whole_maps(maps)
    assert next(strips).values.shape == (1, 2, 2, 2)
    assert held[0]() is None
    assert held[1]() is not None
    assert next(strips).layer == 1


@pytest.mark.parametrize("scale", [1, 2])
def test_windows_give_what_a_convolution_makes_of_the_whole_map(scale):
    rng = torch.Generator().manual_seed(0)
    maps, kernel = torch.randn(1, 2, 9, 5, generator=rng), torch.randn(3, 2, 5, 5, generator=rng)

    def layer(part: Tensor, rows: slice) -> Tensor:
        assert rows.stop - rows.start == scale * part.shape[2]
        part = functional.conv2d(part, kernel, padding=2)
        return part.repeat_interleave(scale, dim=2) + torch.arange(rows.start, rows.stop)[:, None]

    expected, window, done = layer(maps, slice(0, 9 * scale)), Window(9), 0
    for top in range(9):
        window.add(maps[:, :, top : top + 1])
        end = 9 * scale if top == 8 else max(0, scale * (window.end - 2) - 1)
        if end > done:
            found = window.through(layer, done, end, halo=2, scale=scale)
            torch.testing.assert_close(found, expected[:, :, done:end])
        done = end
        window.forget(done // scale - 2)
        if done:
            assert window.values.shape[2] == window.end - window.top <= 6
    assert done == 9 * scale
