"""Students that know photos and self-training, by the command line."""

import json
import sys

import numpy as np
import pytest
import torch

from latentseg import cli
from latentseg import run as run_module
from latentseg.files import sha256, write_json
from latentseg.images import read_mask, write_image
from latentseg.weights import efficientnet_lite0
from tests.datasets.fabricate import blob, make_dataset, photo
from tests.weights.test_efficientnet_lite0 import random_tree

PHOTO_STUDENT = ("--network", "unet:efficientnet-lite0")


@pytest.fixture
def latentseg(monkeypatch):
    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["latentseg", *map(str, arguments), "--quiet"])
        try:
            cli.main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return call


@pytest.fixture
def weights(tmp_path, monkeypatch):
    path = tmp_path / "lite0.pth"
    torch.save(random_tree(), path)
    monkeypatch.setattr(efficientnet_lite0, "SHA256", sha256(path))
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_here")
    return path


@pytest.fixture
def data(tmp_path):
    make_dataset(tmp_path / "pets", [blob(i) for i in range(6)])
    for i in range(4):
        write_image(tmp_path / "ab"[i % 2] / f"{i}.png", photo(i, blob(i, height=40, width=40)))
    return tmp_path


def test_a_student_that_knows_photos_is_trained_measured_and_used(latentseg, data, weights):
    out = data / "run"
    trained = latentseg(
        *("train", data / "pets", out, *PHOTO_STUDENT, "--encoder-weights", weights),
        *("--size", 32, 32, "--steps", 1, "--batch", 4, "--photos", data / "a", data / "b"),
        *("--rounds", 1, "--mixing", "classmix", "--adapt", "yes", "--hold-last", "no"),
        *("--area", 0.3, "--agreement-smoothing", 0.5, "--label-edges", 4, "--max-photos", 3),
    )
    assert trained == 0
    config = json.loads((out / "photos" / "config.json").read_text())
    assert config["mixing"] == "classmix"
    assert config["adapt"] is True
    assert config["hold_last"] is False
    assert config["area"] == 0.3
    assert json.loads((out / "photos" / "rounds.json").read_text())[0]["n_photos"] == 3
    model = json.loads((out / "photos" / "model" / "config.json").read_text())
    assert model["input_size"] == [32, 32]
    assert str(weights) not in json.dumps(model)

    options = ("--flip", "--scales", 1, 1.5, "--edges", 3)
    found = {}
    for name, given in (("plain", ()), ("options", options)):
        result = data / f"{name}.json"
        assert latentseg("eval", out / "student", data / "pets", *given, "--json", result) == 0
        found[name] = json.loads(result.read_text())["acc"]
        assert latentseg("predict", out / "student", data / "a", data / name, *given) == 0
        assert read_mask(data / name / "0_mask.png").shape == (40, 40)
    assert np.isfinite(list(found.values())).all()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("--scales", "9"), "scales"),
        (("--edges", "0"), "edges"),
    ],
)
def test_wrong_options_are_named(latentseg, data, given, said, capsys):
    assert latentseg("eval", "pets64", data / "pets", *given) != 0
    assert said in capsys.readouterr().err


def test_run_hands_the_same_flags_on(latentseg, data, weights, monkeypatch):
    seen = {}

    def stand_in(generator, out, *, config, photos, **options):
        seen.update(config=config, photos=photos)
        write_json(out / "results.json", [])

    monkeypatch.setattr(run_module, "run", stand_in)
    done = latentseg(
        *("run", "pets64", data / "run", "--preset", "quick", *PHOTO_STUDENT),
        *("--student-size", 160, 128, "--encoder-weights", weights, "--encoder-lr", 1e-5),
        *("--ema", 0.9, "--photos", data / "a", data / "b", "--mixing", "cutmix"),
        *("--area-from", "student"),
    )
    assert done == 0
    config = seen["config"]
    assert config.student.network == PHOTO_STUDENT[1]
    assert (config.student.width, config.student.size) == (1, (160, 128))
    assert (config.student.encoder_lr, config.student.ema) == (1e-5, 0.9)
    assert config.student.encoder_weights == str(weights)
    assert config.rounds.train == config.student
    assert (config.rounds.mixing, config.rounds.area_from) == ("cutmix", "student")
    assert seen["photos"] == (data / "a", data / "b")
    plain = run_module.PRESETS["quick"].student
    assert config.student.steps == plain.steps // 2  # it has learned before
