"""Training on frozen features: exact resume, what the heads see, the card, the command line."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg import cli
from latentseg.distributed import Team
from latentseg.errors import InputError
from latentseg.generators import load_generator
from latentseg.generators.training import (
    DEFAULTS,
    GeneratorTrainingConfig,
    comparison,
    loop,
    train_generator,
)
from latentseg.generators.training.config import default_feature_px, feature_size
from latentseg.generators.training.photos import Photos, read_photos
from latentseg.generators.training.projection import (
    Features,
    ProjectedDiscriminator,
    RandomMixing,
    blurred,
)
from latentseg.images import write_image
from latentseg.training_states import Checkpoints
from tests.generators.random_features import random_features

TINY = replace(
    DEFAULTS["efficientnet-lite0"],
    size=(16, 16), channels=(8, 8, 8), latent_dim=8, images=16 * 8, batch=8, feature_px=32,
    blur_images=64, report_images=8 * 8, distance_images=8, precision="fp32",
)  # fmt: skip
SIZE = (32, 32)


@pytest.fixture(autouse=True)
def _random_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (loop, comparison):
        monkeypatch.setattr(module, "load_efficientnet_lite0", lambda path: random_features())


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    rng = np.random.default_rng(0)
    for index in range(24):
        write_image(folder / f"{index:02d}.png", rng.integers(0, 256, (20, 16, 3), dtype=np.uint8))
    return folder


class Killed(Exception):
    pass


def state_of(out: Path) -> dict[str, torch.Tensor]:
    return Checkpoints(out / "checkpoints").load()[1]


@pytest.mark.slow
def test_interrupted_training_ends_as_an_uninterrupted_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train_generator(photos, tmp_path / "whole", config=TINY, device="cpu", quiet=True)
    advance = loop.Training.advance

    def advance_until_11(training: loop.Training, batch: Photos) -> dict[str, torch.Tensor]:
        if training.step == 11:
            raise Killed
        return advance(training, batch)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Training, "advance", advance_until_11)
        with pytest.raises(Killed):
            train_generator(photos, tmp_path / "parts", config=TINY, device="cpu", quiet=True)
    train_generator(photos, tmp_path / "parts", config=TINY, device="cpu", quiet=True)
    whole, parts = state_of(tmp_path / "whole"), state_of(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_checkpoints_lie_between_reports_that_are_far_apart(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "SAVE_EVERY", 3)
    config = replace(TINY, images=40, report_images=40)
    train_generator(photos, tmp_path / "out", config=config, device="cpu", quiet=True)
    steps = sorted(path.name for path in (tmp_path / "out/checkpoints").iterdir())
    assert steps == ["step-0000003", "step-0000005"]


def test_card_and_distances_tell_of_the_features(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    train_generator(photos, out, config=TINY, device="cpu", quiet=True)
    helped = "features of ImageNet classes helped the generator"
    assert helped in (out / "generator/README.md").read_text()
    assert helped in load_generator(out, device="cpu").info.source
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert all({"fd-lite0", "precision", "recall", "swd", "seconds"} <= row.keys() for row in rows)


def test_classes_and_photos_that_are_not_square_are_learned(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        for index in range(6):
            picture = rng.integers(0, 256, (24, 16, 3), dtype=np.uint8)
            write_image(tmp_path / "photos" / name / f"{index}.png", picture)
    config = replace(TINY, size=(24, 16), channels=(8, 8), images=16)
    folder = train_generator(
        tmp_path / "photos", tmp_path / "out", config=config, with_classes=True, quiet=True
    )
    info = load_generator(folder, device="cpu").info
    assert (info.n_classes, info.size) == (2, (24, 16))


def test_unknown_features_are_refused(photos: Path, tmp_path: Path) -> None:
    config = replace(TINY, features="vgg")
    with pytest.raises(InputError, match="`features`: expected none or efficientnet-lite0, found"):
        train_generator(photos, tmp_path / "out", config=config, quiet=True)


def test_a_training_begun_before_features_were_known_goes_on(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    plain = replace(GeneratorTrainingConfig(), size=(16, 16), channels=(8, 8, 8), latent_dim=8,
                    images=16, batch=8, distance_images=8)  # fmt: skip
    train_generator(photos, out, config=plain, device="cpu", quiet=True)
    recorded = json.loads((out / "config.json").read_text())
    assert not {"features", "feature_px", "discriminator_lr", "blur_images"} & recorded.keys()
    config = replace(plain, features="efficientnet-lite0")
    with pytest.raises(InputError, match="features: None there, 'efficientnet-lite0' now"):
        train_generator(photos, out, config=config, device="cpu", quiet=True)


def test_heads_have_a_gradient_to_the_images_and_features_have_nothing_to_train() -> None:
    features, heads = Features(random_features(), SIZE), ProjectedDiscriminator(SIZE, 0, 8)
    x = torch.rand(4, 3, 16, 16, requires_grad=True)
    logits = heads(features(x, blur=0.5))
    assert [each.shape[0] for each in logits] == [4] * 5
    torch.stack([each.mean() for each in logits]).sum().backward()
    assert x.grad is not None
    assert x.grad.abs().amax(dim=(1, 2, 3)).min() > 0
    assert list(features.parameters()) == []
    trained = {name.split(".")[0] for name, _ in heads.named_parameters()}
    assert trained == {"heads", "color_head"}


def test_coarse_maps_reach_every_finer_scale_and_never_the_reverse() -> None:
    mixing = RandomMixing()
    maps = [torch.randn(1, c, s, s) for c, s in zip((24, 40, 112, 320), (8, 4, 2, 1), strict=True)]
    before = mixing(tuple(maps))
    maps[3] = maps[3] + 1
    coarser = [not torch.allclose(a, b) for a, b in zip(before, mixing(tuple(maps)), strict=True)]
    assert coarser == [True, True, True, True]
    before = mixing(tuple(maps))
    maps[0] = maps[0] + 1
    finer = [not torch.allclose(a, b) for a, b in zip(before, mixing(tuple(maps)), strict=True)]
    assert finer == [True, False, False, False]


def test_blur_is_a_gaussian_that_keeps_the_mean() -> None:
    x = torch.zeros(1, 1, 31, 31)
    x[0, 0, 15, 15] = 1
    y = blurred(x, 2.0)[0, 0]
    places = torch.arange(31.0) - 15
    assert y.sum().item() == pytest.approx(1, abs=1e-5)
    variance = (y.sum(0) * places.square()).sum().item()
    assert variance == pytest.approx(4, rel=0.03)
    torch.testing.assert_close(blurred(torch.ones(1, 3, 9, 9), 1.0), torch.ones(1, 3, 9, 9))


def test_blur_ends_when_it_should(photos: Path) -> None:
    training = loop.Training(TINY, 0, Team(torch.device("cpu")), random_features())
    objective = training.objective
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    (sharp, _), (early, _) = (objective.look(x, step, strength=0.0) for step in (8, 0))
    with_none = training.objective.features(x, 0.0)  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(sharp.maps, with_none.maps)
    assert not torch.allclose(early.maps[0], sharp.maps[0])


def test_images_outside_the_range_are_penalized() -> None:
    training = loop.Training(TINY, 0, Team(torch.device("cpu")), random_features())
    x = torch.full((2, 3, 16, 16), 1.5, requires_grad=True)
    _, excess = training.objective.look(x, 0, strength=0.0)
    assert excess.item() == pytest.approx(0.25)
    assert training.objective.look(x.detach() / 2, 0, strength=0.0)[1].item() == 0


def test_feature_sizes_are_multiples_of_the_stride() -> None:
    assert feature_size((64, 64), 96) == (96, 96)
    assert feature_size((192, 128), 128) == (192, 128)
    assert feature_size((8, 64), 8) == (32, 64)
    assert default_feature_px("efficientnet-lite0", (128, 192)) == 192
    assert default_feature_px("none", (128, 192)) == GeneratorTrainingConfig().feature_px


@pytest.fixture
def latentseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latentseg", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_command_line_trains_with_the_defaults_of_the_features(
    latentseg, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    code, _, err = latentseg(
        "train-generator", photos, out, "--features", "efficientnet-lite0", "--size", 16, 16,
        "--channels", 8, 8, "--images", 16, "--feature-px", 32, "--distance-images", 8,
        "--device", "cpu",
    )  # fmt: skip
    assert code == 0, err
    recorded = json.loads((out / "config.json").read_text())
    expected = DEFAULTS["efficientnet-lite0"]
    for name in ("batch", "lr", "discriminator_lr", "style_mixing", "blur_images"):
        assert recorded[name] == getattr(expected, name)
    assert "fd-lite0" in err  # on the progress line


def test_command_line_measures_any_generator(latentseg, photos: Path, tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    code, out, err = latentseg(
        "distance", "tests.world:World", photos, "--images", 12, "--json", found, "--device", "cpu"
    )
    assert code == 0, err
    assert "fd-lite0" in out
    measured = json.loads(found.read_text())
    assert (measured["images"], measured["photos"], measured["floor"]["images"]) == (12, 24, 12)
    assert measured["fd-lite0"] > measured["floor"]["fd-lite0"] >= 0
    assert latentseg("distance", "tests.world:World", photos, "--images", 99)[0] == 2


def test_photos_are_at_no_distance_from_themselves(photos: Path) -> None:
    pixels = read_photos(photos, (16, 16)).pixels
    found = comparison.FeatureDistances(random_features(), pixels)(pixels)
    assert found["fd-lite0"] == pytest.approx(0, abs=1e-2)
    assert found["precision"] == found["recall"] == 1
