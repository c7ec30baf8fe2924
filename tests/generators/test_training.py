"""Training a generator: exact resume, distances, augmentation, photos, and what bad input gets."""

import json
import re
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import DivergedError, InputError
from latentseg.generators import load_generator
from latentseg.generators.training import GeneratorTrainingConfig, loop, train_generator
from latentseg.generators.training.augmentation import augment
from latentseg.generators.training.config import default_channels
from latentseg.generators.training.discriminator import Discriminator, minibatch_std
from latentseg.generators.training.distance import frechet, gaussian, sliced_wasserstein
from latentseg.generators.training.photos import Photos, read_photos
from latentseg.images import write_image
from latentseg.training_states import Checkpoints

TINY = GeneratorTrainingConfig(
    size=(16, 16), channels=(8, 8, 8), latent_dim=8, images=24 * 8, batch=8, r1_interval=4,
    report_images=8 * 8, distance_images=8, precision="fp32", adaptive=True,
)  # fmt: skip


def no_features(path: object) -> None:
    raise InputError("the features are not installed")


@pytest.fixture(autouse=True)
def _without_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "load_efficientnet_lite0", no_features)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(24):
        write_image(folder / f"{index:02d}.png", rng.integers(0, 256, (20, 16, 3), dtype=np.uint8))
    return folder


def final_weights(out: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(out / "checkpoints").load()[1]


class Killed(Exception):
    pass


def test_interrupted_training_ends_as_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_generator(photos, tmp_path / "whole", config=TINY, device="cpu", quiet=True)
    advance = loop.Training.advance

    def advance_until_13(training: loop.Training, batch: Photos) -> dict[str, torch.Tensor]:
        if training.step == 13:
            raise Killed
        return advance(training, batch)

    monkeypatch.setattr(loop.Training, "advance", advance_until_13)
    with pytest.raises(Killed):
        train_generator(photos, tmp_path / "parts", config=TINY, device="cpu", quiet=True)
    monkeypatch.setattr(loop.Training, "advance", advance)
    train_generator(photos, tmp_path / "parts", config=TINY, device="cpu", quiet=True)
    whole, parts = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name
    steps = [
        json.loads(line)["step"]
        for line in (tmp_path / "parts/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == [8, 16, 24]


def test_kill_during_the_last_report_leaves_it_to_be_made_again(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = loop.Report.write

    def killed_at_the_end(
        report: loop.Report, training: loop.Training, losses: dict[str, torch.Tensor]
    ) -> dict[str, float]:
        if training.step == 24:
            raise Killed
        return write(report, training, losses)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(loop.Report, "write", killed_at_the_end)
        with pytest.raises(Killed):
            train_generator(photos, out, config=TINY, device="cpu", quiet=True)
    train_generator(photos, out, config=TINY, device="cpu", quiet=True)
    config = json.loads((out / "generator" / "config.json").read_text())
    assert config["origin"]["step"] == 24


def test_interrupt_waits_for_the_step_and_saves_it(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    advance = loop.Training.advance

    def interrupted_at_3(training: loop.Training, batch: Photos) -> dict[str, torch.Tensor]:
        if training.step == 3:
            signal.raise_signal(signal.SIGINT)
        return advance(training, batch)

    monkeypatch.setattr(loop.Training, "advance", interrupted_at_3)
    with pytest.raises(KeyboardInterrupt):
        train_generator(photos, tmp_path / "out", config=TINY, device="cpu", quiet=True)
    assert [path.stem for path in (tmp_path / "out/checkpoints").iterdir()] == ["step-0000004"]


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    train_generator(photos, out, config=TINY, device="cpu", quiet=True)
    expected = final_weights(out)
    damaged = sorted((out / "checkpoints").glob("*/state.safetensors"))[-1]
    content = bytearray(damaged.read_bytes())
    content[-9] ^= 1
    damaged.write_bytes(bytes(content))
    train_generator(photos, out, config=TINY, device="cpu")
    assert "not used" in capsys.readouterr().err
    actual = final_weights(out)
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_more_images_go_on_and_other_options_are_refused(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_generator(photos, out, config=replace(TINY, images=64), device="cpu", quiet=True)
    train_generator(photos, out, config=replace(TINY, images=128), device="cpu", quiet=True)
    assert int(final_weights(out)["step"]) == 16
    with pytest.raises(InputError, match=r"batch: 8 there, 4 now"):
        train_generator(photos, out, config=replace(TINY, batch=4), device="cpu", quiet=True)


def test_a_lower_learning_rate_goes_on_and_the_card_tells_both_commands(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    train_generator(photos, out, config=replace(TINY, images=64), device="cpu", quiet=True)
    later = replace(TINY, images=128, lr=1e-4, augmentation=("translation",))
    train_generator(photos, out, config=later, device="cpu", quiet=True)
    card = (out / "generator" / "README.md").read_text()
    commands = re.findall(r"train-generator PHOTOS .*", card)
    assert [re.findall(r"--images \d+|--lr \S+|--augmentation \w+", each) for each in commands] == [
        ["--images 64"],
        ["--images 128", "--lr 0.0001", "--augmentation translation"],
    ]


def test_trained_generator_opens_with_card_and_preview(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_generator(photos, out, config=TINY, licence="CC0", device="cpu", quiet=True)
    generator = load_generator(out, device="cpu")
    assert generator(generator.sample(torch.arange(2))).shape == (2, 3, 16, 16)
    card = (out / "generator" / "README.md").read_text()
    assert "CC0" in card
    assert "swd_floor" in card
    assert "latentseg train-generator PHOTOS OUT --images 192 --size 16 16 --channels 8 8 8" in card
    assert len(list((out / "previews").glob("*.png"))) == 3


def test_infinite_loss_stops_and_keeps_the_checkpoint(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    train_generator(photos, out, config=replace(TINY, images=64), device="cpu", quiet=True)
    advance = loop.Training.advance

    def diverge(training: loop.Training, batch: Photos) -> dict[str, torch.Tensor]:
        return advance(training, batch) | {"g": torch.tensor(float("nan"))}

    monkeypatch.setattr(loop.Training, "advance", diverge)
    with pytest.raises(DivergedError, match="step-0000008"):
        train_generator(photos, out, config=TINY, device="cpu", quiet=True)
    assert all(torch.isfinite(value).all() for value in final_weights(out).values())


def test_classes_come_from_subfolders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for index in range(6):
            picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            write_image(tmp_path / "photos" / name / f"{index}.png", picture)
    config = replace(TINY, images=16, distance_images=4)
    out = tmp_path / "out"
    train_generator(
        tmp_path / "photos", out, config=config, with_classes=True, device="cpu", quiet=True
    )
    assert load_generator(out, device="cpu").info.n_classes == 2


def test_page_shows_samples_over_time_and_hides_nothing_behind_a_link(
    photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "<b>out"
    train_generator(photos, out, config=TINY, device="cpu", quiet=True)
    page = (out / "report.html").read_text()
    assert page.count("<img") == 3 + 1  # three reports, and the newest sheet
    assert "64 images" in page
    assert "192 images" in page
    assert "&lt;b&gt;out" in page
    assert not re.findall(r'(?:src|href)="(?!data:|#)', page)


def test_the_same_training_is_the_same_to_the_byte_however_long_it_took(
    photos: Path, tmp_path: Path
) -> None:
    config = replace(TINY, images=64)
    for name in ("first", "second"):
        train_generator(photos, tmp_path / name, config=config, name="one", quiet=True)
    manifests = [
        (tmp_path / name / folder / "MANIFEST.json").read_bytes()
        for folder in ("generator", "checkpoints/step-0000008")
        for name in ("first", "second")
    ]
    assert manifests[0] == manifests[1]
    assert manifests[2] == manifests[3]


def test_all_unreadable_photos_are_listed(tmp_path: Path) -> None:
    write_image(tmp_path / "good.png", np.zeros((8, 8, 3), np.uint8))
    (tmp_path / "bad1.jpg").write_bytes(b"not a picture")
    (tmp_path / "bad2.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"(?s)2 of 3.*bad1\.jpg.*bad2\.png"):
        train_generator(tmp_path, tmp_path / "out", config=TINY, quiet=True)
    assert not (tmp_path / "out").exists()


def test_photos_are_cut_to_the_aspect_and_every_one_is_seen_once_per_epoch(photos: Path) -> None:
    read = read_photos(photos, (16, 16))
    assert read.pixels.shape == (24, 3, 16, 16)
    seen = [read.batch(step, 8, seed=1)[0] for step in range(3)]
    again = [read.batch(step, 8, seed=1)[0] for step in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(seen, again, strict=True))
    sums = torch.cat(seen).sum(dim=(1, 2, 3)).sort().values
    assert torch.equal(sums, read.pixels.sum(dim=(1, 2, 3)).sort().values)


def test_channels_follow_the_size() -> None:
    assert default_channels((64, 64)) == (256, 192, 96, 32, 16)
    assert default_channels((192, 128)) == (256, 256, 192, 96, 32, 16)
    assert default_channels((24, 20)) == (96, 32, 16)


def test_sliced_wasserstein_is_zero_for_equal_sets_and_grows_with_blur() -> None:
    torch.manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    others = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8)
    blurred = torch.nn.functional.avg_pool2d(others.float(), 3, 1, 1).to(torch.uint8)
    near, far = sliced_wasserstein(images, others), sliced_wasserstein(images, blurred)
    assert set(near) == {32, 16}
    assert near[32] < far[32]


def test_sliced_wasserstein_in_one_dimension_is_the_sorted_difference() -> None:
    from scipy.stats import wasserstein_distance

    from latentseg.generators.training import distance

    a = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    b = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    measured = sliced_wasserstein(a, b, patches=8, directions=1, seed=3)[16]
    drawn = torch.Generator().manual_seed(3)
    projection = torch.randn(147, 1, generator=drawn)
    projection /= projection.norm()
    lines = [
        distance._descriptors(images.float() / 127.5 - 1, 8, drawn) @ projection
        for images in (a, b)
    ]
    expected = wasserstein_distance(lines[0][:, 0].numpy(), lines[1][:, 0].numpy())
    assert measured == pytest.approx(1000 * expected, rel=1e-4)


def test_frechet_distance_of_gaussians_with_known_answer() -> None:
    zero, identity = np.zeros(3), np.eye(3)
    assert frechet((zero, identity), (zero, identity)) == pytest.approx(0, abs=1e-9)
    assert frechet((zero, identity), (zero + 2, 4 * identity)) == pytest.approx(12 + 3)
    features = np.random.default_rng(0).normal(size=(500, 3))
    mean, covariance = gaussian(features)
    np.testing.assert_allclose(mean, features.mean(0))
    np.testing.assert_allclose(covariance, np.cov(features.T))


@pytest.mark.parametrize("policy", ["color", "translation", "cutout"])
def test_augmentation_keeps_the_shape_and_has_a_gradient(policy: str) -> None:
    x = torch.rand(4, 3, 16, 24, requires_grad=True)
    torch.manual_seed(0)
    changed = augment(x, (policy,))
    assert changed.shape == x.shape
    assert not torch.equal(changed, x)
    changed.square().sum().backward()
    assert x.grad is not None
    assert x.grad.abs().sum() > 0
    assert torch.equal(augment(x, (policy,), probability=1e-9), x)


def test_translation_moves_the_picture_as_a_whole() -> None:
    x = torch.zeros(8, 3, 16, 16)
    x[:, :, 8, 8] = 1
    moved = augment(x, ("translation",))
    assert torch.equal(moved.sum(dim=(1, 2, 3)), torch.full((8,), 3.0))
    assert {tuple(place) for place in moved[:, 0].nonzero()[:, 1:].tolist()} != {(8, 8)}


def test_minibatch_std_tells_copies_from_variety() -> None:
    same = torch.randn(1, 2, 4, 4).expand(8, -1, -1, -1)
    assert minibatch_std(same)[:, -1].max() < 1e-3
    assert minibatch_std(torch.randn(8, 2, 4, 4))[:, -1].min() > 0.5


def test_discriminator_uses_the_class() -> None:
    from latentseg.generators.families.stylegan2 import StyleGAN2Config

    torch.manual_seed(0)
    config = StyleGAN2Config(size=(16, 16), channels=(8, 8, 8), w_dim=8, n_classes=2)
    judge = Discriminator(config)
    x = torch.randn(4, 3, 16, 16)
    first, second = (judge(x, torch.full((4,), label)) for label in (0, 1))
    assert first.shape == (4,)
    assert not torch.equal(first, second)
