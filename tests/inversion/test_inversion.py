import json
import math
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from latentseg.errors import CorruptFileError, DivergedError, InputError
from latentseg.files import verify_manifest
from latentseg.generators.arrays import read_array
from latentseg.generators.family import Sampling
from latentseg.generators.protocols import Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.images import read_image, read_mask, to_pixels, write_image
from latentseg.inversion.folder import invert
from latentseg.inversion.inverted import read_inverted, read_record, warning_of
from latentseg.inversion.losses import MultiScaleLoss, PerceptualLoss, unexplained
from latentseg.inversion.noise_maps import (
    noise_correlation,
    noise_maps,
    normalized,
    with_noise,
)
from latentseg.inversion.search import Inversion
from latentseg.inversion.settings import SETTINGS, InversionConfig
from latentseg.labelers import load_labeler
from latentseg.labelers.few_shot import fit_few_shot
from latentseg.labelers.few_shot_settings import OURS, FewShotConfig
from latentseg.labelers.painted import PaintedImages
from tests.generators.tiny_dcgan import TINY as DCGAN
from tests.generators.tiny_stylegan1 import TINY as STYLEGAN1
from tests.generators.tiny_stylegan2 import tiny
from tests.world import World, seeds

SMALL = InversionConfig(steps=10, start="drawn", candidates=16, mean_samples=64)


def styled(sampling: Sampling | None = None) -> StyleGenerator:
    """A tiny StyleGAN2 whose images vary enough to be told apart, and show their noise."""
    generator = tiny(sampling)
    assert isinstance(generator, StyleGenerator)
    return generator


def own_images(generator, n: int, key: int = 3) -> Tensor:
    with torch.no_grad():
        return generator(generator.sample(seeds(n, key)))


def save_photos(folder: Path, n: int = 3, size: tuple[int, int] = (32, 32)) -> list[Path]:
    """Photos of the world."""
    paths = [folder / f"photo{i}.png" for i in range(n)]
    for path, image in zip(paths, to_pixels(own_images(World(size), n)), strict=True):
        write_image(path, image)
    return paths


@pytest.mark.parametrize(
    ("t", "lr", "jitter"),
    [
        (0.0, 0.0, 0.05),
        (0.025, 0.05, 0.05 * (1 - 0.025 / 0.75) ** 2),
        (0.05, 0.1, 0.05 * (1 - 0.05 / 0.75) ** 2),
        (0.5, 0.1, 0.05 / 9),
        (0.75, 0.1, 0.0),
        (0.875, 0.05, 0.0),
        (0.999, 0.1 * (1 - math.cos(math.pi * 0.004)) / 2, 0.0),
    ],
)
def test_official_schedule_has_the_values_of_the_projector(t: float, lr: float, jitter: float):
    config = SETTINGS["official"]
    assert config.learning_rate(t) == pytest.approx(lr, abs=1e-9)
    assert config.jitter_at(t) == pytest.approx(jitter, abs=1e-9)


def test_official_constants_are_those_of_the_paper():
    config = SETTINGS["official"]
    assert (config.steps, config.lr, config.noise_weight) == (1000, 0.1, 1e5)
    assert (config.space, config.start, config.mean_samples) == ("w", "mean", 10_000)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (16, 16), (32, 32), (48, 32)])
def test_noise_correlation_is_that_of_plain_loops(size: tuple[int, int]):
    maps = torch.randn(2, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    maps = maps + maps.roll(1, dims=2)

    def plain(noise: np.ndarray) -> float:
        height, width = noise.shape
        right = sum(noise[y, x] * noise[y, x - 1] for y in range(height) for x in range(width))
        below = sum(noise[y, x] * noise[y - 1, x] for y in range(height) for x in range(width))
        here = (right / noise.size) ** 2 + (below / noise.size) ** 2
        if min(noise.shape) <= 8:
            return here
        return here + plain(noise.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3)))

    expected = [plain(each.numpy()) for each in maps]
    assert noise_correlation(maps).tolist() == pytest.approx(expected, rel=1e-12)


def test_normalized_maps_have_mean_0_and_mean_square_1():
    maps = normalized(3 + 5 * torch.randn(2, 2, 8, 6))
    assert maps.mean(dim=(2, 3)).abs().max() < 1e-6
    assert maps.square().mean(dim=(2, 3)).numpy() == pytest.approx(1, abs=1e-5)


def test_multi_scale_loss_is_that_of_plain_numpy():
    a, b = torch.randn(2, 1, 3, 16, 16, dtype=torch.float64)
    loss, total, levels = MultiScaleLoss(), 0.0, 0
    x, y = a[0].numpy(), b[0].numpy()
    while True:
        total += np.abs(x - y).mean()
        total += np.abs(np.diff(x, axis=1) - np.diff(y, axis=1)).mean()
        total += np.abs(np.diff(x, axis=2) - np.diff(y, axis=2)).mean()
        levels += 1
        if x.shape[1] == 8:
            break
        x, y = (z.reshape(3, 8, 2, 8, 2).mean(axis=(2, 4)) for z in (x, y))
    found = loss.compare(loss.describe(a), loss.describe(b))
    assert found.tolist() == pytest.approx([total / levels], rel=1e-12)
    assert loss.compare(loss.describe(a), loss.describe(a)).tolist() == [0]


def vgg16() -> nn.Sequential:
    """The convolutions of VGG16 as torchvision stacks them, with random weights."""
    layers, fewer = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width:
            most = math.sqrt(2 / 3 / fewer)  # keeps the size of activations
            layer = nn.Conv2d(fewer, width, 3, padding=1)
            layer.weight = nn.Parameter(torch.empty_like(layer.weight).uniform_(-most, most))
            layers += [layer, nn.ReLU()]
        else:
            layers.append(nn.MaxPool2d(2))
        fewer = width or fewer
    return nn.Sequential(*layers).requires_grad_(False)


def test_perceptual_loss_is_the_published_formula(tmp_path: Path):
    network = vgg16()
    file, linear = tmp_path / "vgg16.pth", tmp_path / "vgg.pth"
    torch.save({f"features.{name}": each for name, each in network.state_dict().items()}, file)
    counts = [torch.rand(1, n, 1, 1) for n in (64, 128, 256, 512, 512)]
    torch.save({f"lin{i}.model.1.weight": each for i, each in enumerate(counts)}, linear)
    a, b = torch.rand(2, 2, 3, 16, 16) * 2 - 1

    def activations(x: Tensor) -> list[Tensor]:
        x = (x - torch.tensor([-0.03, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        taken = []
        for i, layer in enumerate(network):
            x = layer(x)
            if i in (3, 8, 15, 22, 29):
                taken.append(functional.normalize(x, dim=1))
        return taken

    pairs = list(zip(activations(a), activations(b), strict=True))
    plain = [(x - y).square().sum(dim=1).mean(dim=(1, 2)) for x, y in pairs]
    weighted = [
        ((x - y).square() * count).sum(dim=1).mean(dim=(1, 2))
        for (x, y), count in zip(pairs, counts, strict=True)
    ]
    squares = (a - b).square().mean(dim=(1, 2, 3))
    for files, pixel_weight, name, expected in (
        ([file], 2.0, "vgg16 + 2 mse", torch.stack(plain).sum(dim=0) + 2 * squares),
        ([file, linear], 0.0, "lpips-vgg16", torch.stack(weighted).sum(dim=0)),
    ):
        loss = PerceptualLoss(files, torch.device("cpu"), pixel_weight=pixel_weight)
        assert loss.name == name
        found = loss.compare(loss.describe(a), loss.describe(b))
        assert found.tolist() == pytest.approx(expected.tolist(), rel=1e-3)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_perceptual_files_when_wrong_then_they_are_refused(tmp_path: Path):
    file = tmp_path / "other.pth"
    torch.save({"features.0.weight": torch.zeros(64, 3, 5, 5)}, file)
    with pytest.raises(CorruptFileError, match=r"features\.0\.weight"):
        PerceptualLoss([file], torch.device("cpu"))
    with pytest.raises(InputError, match="no such file"):
        PerceptualLoss([tmp_path / "none.pth"], torch.device("cpu"))
    program = tmp_path / "vgg16.pt"
    torch.jit.script(nn.Linear(1, 1)).save(program)
    with pytest.raises(InputError, match="torchscript"):
        PerceptualLoss([program], torch.device("cpu"))


@pytest.mark.parametrize("make", [styled, STYLEGAN1["stylegan1"]])
def test_noise_of_a_batch_draws_what_a_generator_with_that_noise_draws(make):
    generator = make()
    stored = own_images(generator, 2)
    found = Inversion(generator, replace(SMALL, steps=2), MultiScaleLoss()).find(stored, [1, 2])
    assert found.noise
    for i in range(2):
        drawing = with_noise(generator, {name: maps[i] for name, maps in found.noise.items()})
        assert torch.allclose(drawing(found[i].latents), found[i].images, atol=1e-4)
        assert not torch.allclose(generator(found[i].latents), found[i].images, atol=1e-2)
    assert torch.equal(own_images(generator, 2), stored)  # the generator itself is as it was


@pytest.mark.parametrize(("space", "shape"), [("w", (6,)), ("w+", (6, 6))])
def test_invert_when_an_image_is_the_generators_own_then_it_is_found_again(space, shape):
    generator = styled()
    x = own_images(generator, 2)
    config = replace(SMALL, steps=100, space=space, noise=False)
    search = Inversion(generator, config, MultiScaleLoss())
    found = search.find(x, [1, 2])
    assert found.latents.values.shape == (2, *shape)
    assert unexplained(found.images, x).max() < 0.1


def test_invert_when_a_latent_is_z_then_it_is_found_again():
    world = World()
    x = own_images(world, 3)
    search = Inversion(world, replace(SMALL, steps=100, candidates=64), MultiScaleLoss())
    found = search.find(x, [1, 2, 3])
    assert search.space == "z"
    truth = world.masks(world.sample(seeds(3, 3)))
    assert (world.masks(found.latents) == truth).float().mean() > 0.97


def test_invert_when_a_generator_has_classes_then_the_class_is_chosen():
    world = World(n_classes=3)
    latents = world.sample(seeds(4, 3))
    search = Inversion(world, replace(SMALL, candidates=64, steps=2), MultiScaleLoss())
    found = search.find(world(latents), list(range(4)))
    assert found.latents.labels is not None
    assert found.latents.labels.shape == (4,)
    assert found.latents.labels.max() <= 2


@pytest.mark.parametrize(
    "asked", [{"noise": False}, {"start": "mean", "unit": "raw", "lr": 0.1, "space": "w"}]
)
def test_result_does_not_depend_on_the_batch(asked: dict[str, Any]):
    generator = styled()
    x = own_images(generator, 3)
    config = replace(SMALL, **asked)
    search = Inversion(generator, config, MultiScaleLoss())
    together = search.find(x, [1, 2, 3])
    alone = search.find(x[2:], [3])
    assert torch.allclose(together.latents.values[2:], alone.latents.values, atol=1e-3)
    for name, maps in together.noise.items():
        assert torch.allclose(maps[2:], alone.noise[name], atol=1e-2), name


def test_result_depends_on_the_seed_alone():
    generator = styled()
    x = own_images(generator, 1)

    def found(seed: int) -> Tensor:
        return Inversion(generator, SMALL, MultiScaleLoss(), seed=seed).find(x, [1]).latents.values

    assert torch.equal(found(0), found(0))
    assert not torch.equal(found(0), found(1))


def test_noise_when_a_generator_draws_it_at_random_then_it_is_held():
    generator = styled(Sampling(noise="random"))
    config = replace(SMALL, noise=False, steps=2)
    first, second = (
        Inversion(generator, config, MultiScaleLoss()).find(torch.zeros(1, 3, 16, 16), [1])
        for _ in range(2)
    )
    assert torch.equal(first.images, second.images)
    assert noise_maps(styled(Sampling(noise="none"))) == {}


@pytest.mark.parametrize(
    ("generator", "space", "message"),
    [
        (World(), "w", "has no styles"),
        (DCGAN["dcgan"](), "w+", "has no styles"),
        (styled(), "z", "Take w or w\\+"),
        (styled(Sampling(cutoff=2)), "w", "Take w\\+"),
    ],
)
def test_space_when_the_generator_lacks_it_then_it_is_refused(generator, space, message):
    with pytest.raises(InputError, match=message):
        Inversion(generator, replace(SMALL, space=space), MultiScaleLoss())


class Opaque(World):
    """A generator whose images have no gradient."""

    def __call__(self, latents: Latents) -> Tensor:
        return super().__call__(latents).detach()


class Larger(World):
    """A generator whose images are not of the size on its card."""

    def __call__(self, latents: Latents) -> Tensor:
        return functional.interpolate(super().__call__(latents), scale_factor=2)


class Broken(World):
    """A generator whose images are infinite in their gradient."""

    def __call__(self, latents: Latents) -> Tensor:
        return super().__call__(latents) + 0 * (latents.values.sum() - latents.values.sum()).sqrt()


@pytest.mark.parametrize(
    ("generator", "error", "message"),
    [
        (Opaque(), InputError, "no gradient"),
        (Larger(), InputError, r"\(3, 64, 64\), but its card says \(3, 32, 32\)"),
        (Broken(), DivergedError, "Lower `lr`"),
    ],
)
def test_generator_when_it_cannot_be_inverted_then_it_is_refused(generator, error, message):
    with pytest.raises(error, match=message):
        Inversion(generator, SMALL, MultiScaleLoss()).find(torch.zeros(1, 3, 32, 32), [1])


@pytest.mark.parametrize(
    "make",
    [
        lambda: InversionConfig(steps=0),
        lambda: InversionConfig(lr=0),
        lambda: InversionConfig(ramp_down=2),
        lambda: InversionConfig(jitter=-1),
        lambda: InversionConfig(noise_weight=math.nan),
        lambda: InversionConfig(space="v"),  # pyright: ignore[reportArgumentType]
        lambda: InversionConfig(unit="inch"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_config_when_wrong_then_it_is_refused(make):
    with pytest.raises(InputError, match=r"^`\w+`: expected .*, found"):
        make()


def test_files_when_photos_are_inverted_then_they_draw_the_reconstruction(tmp_path: Path):
    generator, photos, out = styled(), save_photos(tmp_path / "in"), tmp_path / "out"
    write_image(photos[1], np.zeros((20, 50, 3), np.uint8))  # neither the size nor the aspect
    found = invert(generator, tmp_path / "in", out=out, config=SMALL, device="cpu", quiet=True)
    verify_manifest(out)
    assert [each.name for each in found] == ["photo0", "photo1", "photo2"]
    record = json.loads((out / "inversions.json").read_text())
    assert (record["space"], record["noise"], record["loss"]) == ("w+", True, "multi-scale")
    assert "cover" in record["fit"]
    assert read_array(out / "latents.npy").shape == (3, 6, 6)
    for i, each in enumerate(found):
        drawing, latents = read_inverted(out / f"{each.name}.safetensors", generator)
        drawn = to_pixels(drawing(latents))[0]
        stored = read_image(out / f"{each.name}_reconstruction.png")
        assert np.abs(drawn.astype(int) - stored).max() <= 1
        photo = read_image(out / f"{each.name}_photo.png").astype(float)
        assert each.error == pytest.approx(np.abs(photo - stored).mean() / 255, abs=1e-6)
        assert each.psnr == pytest.approx(
            20 * math.log10(255) - 10 * math.log10(np.square(photo - stored).mean()), abs=1e-3
        )
        assert torch.equal(latents.values[0], read_array(out / "latents.npy")[i])
    with pytest.raises(InputError, match="not an inversion by generator 'world'"):
        read_inverted(out / "photo0.safetensors", World())


@pytest.mark.parametrize(
    ("unexplained", "text"),
    [
        (0.5, ""),
        (0.51, "outside what the generator draws: 51 % of the photo is missing"),
        (1.0, "outside .*: the reconstruction is no closer to the photo than a plain color"),
        (1.17, "outside .*: the reconstruction is no closer to the photo than a plain color"),
    ],
)
def test_warning_says_in_words_how_far_the_reconstruction_is(unexplained: float, text: str):
    assert re.match(text, warning_of(unexplained))
    assert bool(warning_of(unexplained)) == bool(text)


WRONG_RECORDS: list[Any] = [
    *([], 3, {}, {"photos": 3}, {"photos": [3]}, {"photos": [{"name": 1}]}),
    *({"photos": [{"name": "a", "loss": value}]} for value in ("1", None, [1], True)),
    {"photos": [{"name": "", "loss": 0, "unexplained": 0, "psnr": 0, "error": 0}]},
]


@pytest.mark.parametrize("record", WRONG_RECORDS, ids=str)
def test_record_of_wrong_types_is_refused(record: Any, tmp_path: Path):
    (tmp_path / "inversions.json").write_text(json.dumps(record))
    with pytest.raises(CorruptFileError, match="not a record of inversions"):
        read_record(tmp_path)


class Stop(Exception):
    """Stands for a kill."""


def test_call_when_killed_then_the_next_one_goes_on(tmp_path: Path, monkeypatch):
    generator, photos = styled(), save_photos(tmp_path / "in")
    config = replace(SMALL, batch=2)
    whole = invert(generator, photos, out=tmp_path / "whole", config=config, quiet=True)
    find, keys = Inversion.find, []

    def killed(self, x, given, on_step=None):
        keys.append(given)
        if len(keys) == 2:
            raise Stop
        return find(self, x, given, on_step)

    monkeypatch.setattr(Inversion, "find", killed)
    with pytest.raises(Stop):
        invert(generator, photos, out=tmp_path / "cut", config=config, quiet=True)
    assert not (tmp_path / "cut" / "MANIFEST.json").exists()
    assert invert(generator, photos, out=tmp_path / "cut", config=config, quiet=True) == whole
    assert [len(given) for given in keys] == [2, 1, 1]
    for path in sorted((tmp_path / "whole").glob("[!.]*")):
        assert path.read_bytes() == (tmp_path / "cut" / path.name).read_bytes(), path.name


def test_call_when_repeated_then_only_new_and_changed_photos_are_done(tmp_path: Path, monkeypatch):
    generator, photos, out = styled(), save_photos(tmp_path / "in"), tmp_path / "out"
    find, done = Inversion.find, []

    def counted(self, x, keys, on_step=None):
        done.append(len(keys))
        return find(self, x, keys, on_step)

    monkeypatch.setattr(Inversion, "find", counted)
    first = invert(generator, photos[:2], out=out, config=SMALL, quiet=True)
    assert invert(generator, photos[:2], out=out, config=SMALL, quiet=True) == first
    write_image(photos[0], np.full((32, 32, 3), 200, np.uint8))
    again = invert(generator, photos, out=out, config=SMALL, quiet=True)
    assert done == [2, 2]
    assert again[1] == first[1]
    assert again[0].sha256 != first[0].sha256
    with pytest.raises(InputError, match=r"options\.steps: 10 there, 11 now"):
        invert(generator, photos, out=out, config=replace(SMALL, steps=11), quiet=True)
    (out / "inversions.json").write_text('{"photos": [{"name": "a"}]}')
    with pytest.raises(CorruptFileError, match="not a record of inversions"):
        invert(generator, photos, out=out, config=SMALL, quiet=True)
    record = json.dumps({"photos": [asdict(replace(first[0], name="../in/photo0"))]})
    (out / "inversions.json").write_text(record)
    with pytest.raises(CorruptFileError, match="not a record of inversions"):
        invert(generator, photos, out=out, config=SMALL, quiet=True)


def test_photos_when_some_cannot_be_read_then_they_are_named_and_the_rest_is_done(
    tmp_path: Path, capsys
):
    photos = save_photos(tmp_path / "in", 2)
    (tmp_path / "in" / "cut.png").write_bytes(photos[0].read_bytes()[:60])
    (tmp_path / "in" / "text.jpg").write_text("not a picture")
    missing = tmp_path / "missing.jpg"
    given = [tmp_path / "in", missing]
    found = invert(styled(), given, out=tmp_path / "out", config=SMALL, quiet=True)
    assert [each.name for each in found] == ["photo0", "photo1"]
    spoken = capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "inversions.json").read_text())
    for name in ("cut.png", "text.jpg", "missing.jpg"):
        assert name in spoken
        assert any(name in problem for problem in record["left_out"])
    with pytest.raises(InputError, match=r"None of 1 photos can be read.*missing\.jpg"):
        invert(styled(), missing, out=tmp_path / "other", config=SMALL, quiet=True)


def test_photos_when_results_would_be_mixed_up_then_they_are_refused(tmp_path: Path):
    photos = save_photos(tmp_path / "in", 1)
    other = save_photos(tmp_path / "other", 1)
    with pytest.raises(InputError, match="the same name"):
        invert(styled(), [*photos, *other], out=tmp_path / "out", config=SMALL, quiet=True)
    with pytest.raises(InputError, match="this folder holds the photos"):
        invert(styled(), photos, out=tmp_path / "in", config=SMALL, quiet=True)
    with pytest.raises(InputError, match="No photos"):
        invert(styled(), [], out=tmp_path / "out", config=SMALL, quiet=True)


def test_warning_is_for_photos_that_the_generator_cannot_draw(tmp_path: Path):
    world = World()
    save_photos(tmp_path, 2)
    grid = np.where(np.indices((32, 32)).sum(axis=0) % 2, 255, 0).astype(np.uint8)
    write_image(tmp_path / "strange.png", np.dstack([grid, 255 - grid, grid]))
    config = replace(SMALL, steps=100, candidates=64)
    found = invert(world, tmp_path, out=tmp_path / "out", config=config, quiet=True)
    warned = {each.name: bool(each.warning) for each in found}
    assert warned == {"photo0": False, "photo1": False, "strange": True}
    assert "outside what the generator draws" in found[2].warning


def test_masks_when_a_labeler_is_given_then_they_are_those_of_the_found_image(tmp_path: Path):
    world = World()
    painted = PaintedImages(
        ("blob",),
        ("0", "1", "2", "3"),
        tuple(seeds(4).tolist()),
        world.masks(world.sample(seeds(4))).numpy(),
    )
    head = FewShotConfig(training=replace(OURS, steps=60))
    fit_few_shot(world, painted, config=head, out=tmp_path / "head", quiet=True)
    photos, out = save_photos(tmp_path / "in", 2), tmp_path / "out"
    config = replace(SMALL, steps=150, candidates=64)
    found = invert(world, photos, out=out, labeler=tmp_path / "head", config=config, quiet=True)
    truth = world.masks(world.sample(seeds(2, 3))).numpy()
    for each, expected in zip(found, truth, strict=True):
        mask = read_mask(out / f"{each.name}_mask.png")
        assert (mask == expected).mean() > 0.9
        assert each.confidence is not None
        assert 0 < each.confidence <= 1
        assert (out / f"{each.name}_overlay.png").is_file()
    with pytest.raises(InputError, match="labeler"):
        invert(world, photos, out=out, config=config, quiet=True)


def test_masks_when_noise_was_found_then_the_labeler_sees_it(tmp_path: Path, monkeypatch):
    generator = styled()
    masks = np.tile(np.array([0, 1], np.uint8), (1, 16, 8))
    painted = PaintedImages(("stripe",), ("0",), (5,), masks)
    head = FewShotConfig(training=replace(OURS, steps=2))
    fit_few_shot(generator, painted, config=head, out=tmp_path / "head", quiet=True)
    seen: list[Tensor] = []
    load = load_labeler

    def watched(folder, drawing):
        labeler = load(folder, drawing)
        label = labeler.label

        def labelled(latents: Latents):
            seen.append(drawing(latents))
            return label(latents)

        monkeypatch.setattr(labeler, "label", labelled)
        return labeler

    monkeypatch.setattr("latentseg.inversion.folder.load_labeler", watched)
    photos, out = save_photos(tmp_path / "in", 2), tmp_path / "out"
    invert(generator, photos, out=out, labeler=tmp_path / "head", config=SMALL, quiet=True)
    for i, x in enumerate(seen):
        stored = read_image(out / f"photo{i}_reconstruction.png")
        assert np.abs(to_pixels(x)[0].astype(int) - stored).max() <= 1
    assert len(seen) == 2
