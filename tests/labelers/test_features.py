import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from latentseg.errors import InputError
from latentseg.generators.protocols import GeneratorInfo, Latents, Strip
from latentseg.labelers.features import Hypercolumns, Scale, hypercolumn, row_blocks
from latentseg.labelers.few_shot_settings import Resize
from tests.generators.test_feature_strips import LARGE, drawn_by, most_held
from tests.generators.tiny_stylegan2 import TINY, tiny
from tests.parts_world import PartsWorld
from tests.world import World, seeds

RESIZES: tuple[Resize, ...] = ("bilinear", "aligned", "bicubic", "nearest")
SIZE = (16, 24)
MAPS = ((5, 2, 3), (4, 8, 12), (3, 16, 24), (6, 32, 48))
INFO = GeneratorInfo("maps", SIZE, (1,), 0, "z", "none", "tests", "")


class Maps:
    """Random activation maps: smaller than the images, as large, and larger."""

    info = INFO
    feature_channels = tuple(channels for channels, *_ in MAPS)
    dtype = torch.float64
    device = torch.device("cpu")

    def features(self, latents: Latents) -> list[Tensor]:
        rng = torch.Generator().manual_seed(0)
        whole = [torch.randn(8, *shape, generator=rng, dtype=self.dtype) for shape in MAPS]
        return [each[latents.values[:, 0].long()] for each in whole]

    def to(self, device: torch.device | str):
        return self

    def sample(self, seeds: Tensor) -> Latents:
        return Latents(seeds[:, None].float())

    def __call__(self, latents: Latents) -> Tensor:
        return torch.zeros(len(latents), 3, *SIZE)

    def shift(self, latents: Latents, step: Tensor) -> Latents:
        return latents


class StrippedMaps(Maps):
    """The same maps, handed out in strips of three rows."""

    def feature_strips(self, latents: Latents, *, memory: int):
        for layer, maps in enumerate(self.features(latents)):
            for top in range(0, maps.shape[2], 3):
                yield Strip(layer, top, maps.shape[2], maps[:, :, top : top + 3])


LATENTS = Latents(torch.arange(2)[:, None].float())


def whole(columns: Hypercolumns, latents: Latents = LATENTS) -> Tensor:
    """The concatenation, each map resized as torch does it."""
    maps = columns.generator.features(latents)
    sizes = [(maps[i].shape[2], maps[i].shape[3]) for i in columns.layers]
    return torch.cat(
        [
            columns.resizing(size).whole(maps[i])
            for i, size in zip(columns.layers, sizes, strict=True)
        ],
        dim=1,
    )


def projection(n: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(1)
    return (
        torch.randn(7, n, generator=rng, dtype=dtype),
        torch.randn(7, generator=rng, dtype=dtype),
    )


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("generator", [Maps(), StrippedMaps()])
@pytest.mark.parametrize("memory", [2**30, 3000])
def test_project_when_streamed_then_it_equals_the_concatenation(generator, resize, memory):
    columns = Hypercolumns(generator, resize=resize, memory=memory)
    weight, bias = projection(columns.n_channels)
    expected = torch.einsum("oc,bchw->bohw", weight, whole(columns)) + bias[:, None, None]
    assert (columns.project(LATENTS, weight, bias) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("generator", [Maps(), StrippedMaps()])
@pytest.mark.parametrize("memory", [2**30, 3000])
def test_project_when_streamed_then_it_equals_the_plain_hypercolumn(generator, memory):
    columns = Hypercolumns(generator, memory=memory)
    weight, bias = projection(columns.n_channels)
    plain = hypercolumn(generator.features(LATENTS), SIZE)
    assert plain.shape == (len(LATENTS), columns.n_channels, *SIZE)
    expected = torch.einsum("oc,bchw->bohw", weight, plain) + bias[:, None, None]
    assert (columns.project(LATENTS, weight, bias) - expected).abs().max() < 1e-12


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("generator", [Maps(), StrippedMaps()])
def test_rows_when_in_blocks_then_each_equals_the_concatenation_with_its_halo(generator, resize):
    columns = Hypercolumns(generator, resize=resize, memory=90_000)
    expected, ends = whole(columns), []
    for first, end, block in columns.rows(LATENTS, halo=2):
        assert (block - expected[:, :, max(first - 2, 0) : end + 2]).abs().max() < 1e-12
        ends.append(end)
    assert len(ends) > 2
    assert ends[-1] == SIZE[0]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("generator", [Maps(), StrippedMaps()])
def test_pixels_when_sampled_then_they_equal_indexing(generator, resize):
    columns = Hypercolumns(generator, resize=resize)
    rng = torch.Generator().manual_seed(0)
    y, x = torch.randint(16, (2, 9), generator=rng), torch.randint(24, (2, 9), generator=rng)
    expected = torch.stack([whole(columns)[i][:, y[i], x[i]].T for i in range(2)])
    found = columns.pixels(LATENTS, torch.stack([y, x], dim=2))
    assert (found - expected).abs().max() < 1e-12


@pytest.mark.parametrize("resize", RESIZES)
def test_projected_when_differentiated_then_gradients_equal_those_of_the_concatenation(resize):
    columns = Hypercolumns(Maps(), resize=resize)
    weight, bias = (each.requires_grad_() for each in projection(columns.n_channels))
    expected = torch.einsum("oc,bchw->bohw", weight, whole(columns)) + bias[:, None, None]
    found = columns.projected(columns.maps(LATENTS), weight, bias, 3, 11)
    assert (found - expected[:, :, 3:11]).abs().max() < 1e-12
    gradients = torch.autograd.grad(found.square().sum(), (weight, bias))
    wanted = torch.autograd.grad(expected[:, :, 3:11].square().sum(), (weight, bias))
    for one, other in zip(gradients, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def test_projected_when_layers_are_chosen_then_only_they_count():
    columns = Hypercolumns(Maps(), layers=(1, 3))
    assert columns.channels == (4, 6)
    weight, bias = projection(10)
    expected = torch.einsum("oc,bchw->bohw", weight, whole(columns)) + bias[:, None, None]
    assert (columns.project(LATENTS, weight, bias) - expected).abs().max() < 1e-12


def test_scale_when_folded_then_it_does_what_normalising_does():
    columns = Hypercolumns(Maps())
    weight, bias = projection(columns.n_channels)
    features = whole(columns)
    scale = Scale.of(features.movedim(1, 0).flatten(1).T)
    normalised = (features - scale.mean[:, None, None]) / scale.deviation[:, None, None]
    expected = torch.einsum("oc,bchw->bohw", weight, normalised) + bias[:, None, None]
    folded = columns.project(LATENTS, *scale.fold(weight, bias))
    assert (folded - expected).abs().max() < 1e-12


def test_scale_when_a_channel_is_constant_then_it_stays_finite():
    assert Scale.of(torch.ones(5, 2)).deviation.tolist() == [1, 1]


def test_row_blocks_when_memory_is_short_then_they_cover_all_rows_once():
    blocks = row_blocks((100, 10), channels=5, halo=3, memory=4 * 5 * 10 * 16)
    assert blocks[0] == (0, 10)
    assert [first for first, _ in blocks] == [0, *(end for _, end in blocks[:-1])]
    assert blocks[-1][1] == 100
    assert row_blocks((3, 10), channels=5, halo=3, memory=1) == [(0, 1), (1, 2), (2, 3)]


class LargeMaps(Maps):
    """What a generator of 256 px might hand over: 48 MB of maps, one strip at a time."""

    info = GeneratorInfo("large", (256, 256), (1,), 0, "z", "none", "tests", "")
    feature_channels = (512, 512, 256, 128)

    def feature_strips(self, latents: Latents, *, memory: int):
        for layer, channels in enumerate(self.feature_channels):
            side = 2 ** (layer + 5)
            for top in range(0, side, 16):
                yield Strip(layer, top, side, torch.full((1, channels, 16, side), 0.5))


class Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that is made, in bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.n_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.n_bytes = max(self.n_bytes, made.untyped_storage().nbytes())
        return made


def test_project_when_strips_are_forgotten_then_no_tensor_is_near_the_concatenation():
    columns = Hypercolumns(LargeMaps(), memory=4 * 2**20)
    n_channels = columns.n_channels
    with Largest() as largest:
        found = columns.project(LATENTS[:1], torch.full((8, n_channels), 1e-3), torch.zeros(8))
    torch.testing.assert_close(found, torch.full_like(found, 0.5e-3 * n_channels))
    concatenation = 4 * n_channels * 256 * 256
    assert found.nbytes <= largest.n_bytes < concatenation / 100


@pytest.mark.parametrize("memory", [0, 100_000, 2**30])
@pytest.mark.parametrize("name", TINY)
def test_project_when_a_stylegan2_draws_in_strips_then_it_equals_the_concatenation(name, memory):
    generator = TINY[name]()
    height, width = generator.info.size
    columns = Hypercolumns(generator, size=(height // 2, width // 2), memory=memory)
    latents = generator.sample(seeds(2))
    weight, bias = projection(columns.n_channels, torch.float32)
    expected = torch.einsum("oc,bchw->bohw", weight, whole(columns, latents)) + bias[:, None, None]
    found = columns.project(latents, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("memory", [250_000, 500_000, 1_000_000])
def test_project_when_a_stylegan2_draws_in_strips_then_memory_is_kept(memory):
    generator = drawn_by(tiny(**LARGE))
    columns = Hypercolumns(generator, size=(64, 64), memory=memory)
    latents = generator.sample(seeds(1))
    weight, bias = projection(columns.n_channels, torch.float32)
    result = 4 * 7 * 64 * 64
    held = most_held(generator, lambda: columns.project(latents, weight, bias))
    assert result < held <= result + memory
    assert 4 * most_held(generator, lambda: columns.generator.features(latents)) > 9 * memory


def test_maps_when_drawn_in_strips_then_the_larger_ones_are_not_held():
    generator = drawn_by(tiny(**LARGE))
    columns = Hypercolumns(generator, size=(32, 32), memory=400_000)
    latents = generator.sample(seeds(1))
    maps = columns.maps(latents)
    assert [each.shape[2] for each in maps] == [4, 8, 8, 16, 16, *(32,) * 6]
    expected = generator.features(latents)
    torch.testing.assert_close(
        torch.cat(maps[-6:], dim=1), whole(columns, latents)[:, -sum(columns.channels[-6:]) :]
    )
    results = sum(each.nbytes for each in maps)
    held = most_held(generator, lambda: columns.maps(latents))
    assert held <= results + columns.memory < sum(each.nbytes for each in expected)


def test_hypercolumns_when_the_generator_has_no_features_then_it_is_refused_before_any_work():
    world = PartsWorld()
    with pytest.raises(InputError, match=r"HasFeatures.*It can serve: .*directions"):
        Hypercolumns(world)
    assert world.draws == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"layers": (5,)}, "expected some of 0 to 1"),
        ({"layers": ()}, "layers"),
        ({"layers": (1, 0)}, "rising"),
        ({"resize": "lanczos"}, "bicubic"),
    ],
)
def test_hypercolumns_when_options_are_wrong_then_the_right_ones_are_named(options, named):
    with pytest.raises(InputError, match=named):
        Hypercolumns(World(), **options)


def test_hypercolumns_when_of_a_real_generator_then_they_have_its_size():
    world = World((24, 16))
    columns = Hypercolumns(world)
    latents = world.sample(seeds(2))
    weight, bias = projection(columns.n_channels, torch.float32)
    expected = torch.einsum("oc,bchw->bohw", weight, whole(columns, latents))
    found = columns.project(latents, weight, bias) - bias[:, None, None]
    assert found.shape == (2, 7, 24, 16)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
