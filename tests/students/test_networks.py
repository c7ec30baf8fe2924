import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from latentseg.errors import InputError
from latentseg.students import networks
from latentseg.students.networks import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    PaddedNetwork,
    build_network,
    count_parameters,
    encoder_of,
    initialize,
    initialized_on,
)


def test_unet_at_full_width_has_the_papers_parameters():
    assert count_parameters(build_network("unet", 2)) == 13_395_394


def test_unet_at_half_width_fits_8_mb_in_half_precision():
    assert count_parameters(build_network("unet", 2, width=0.5)) * 2 < 8e6


def test_unet_follows_the_definition_of_the_official_code():
    network = build_network("unet", 2)
    assert isinstance(network, networks.UNet)
    convolutions = [m for m in network.modules() if isinstance(m, nn.Conv2d)]
    channels = [(c.in_channels, c.out_channels) for c in convolutions]
    assert channels == [
        (3, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512),
        (512, 512), (512, 512), (1024, 256), (256, 256), (512, 128), (128, 128),
        (256, 64), (64, 64), (128, 64), (64, 64), (64, 2),
    ]  # fmt: skip
    assert all(c.bias is not None for c in convolutions)


@pytest.mark.parametrize("height", [1, 9, 16, 17, 33, 64])
@pytest.mark.parametrize("width", [1, 15, 31, 48])
def test_unet_answers_at_any_size(height, width):
    network = build_network("unet", 3, width=0.125).eval()
    assert network(torch.zeros(1, 3, height, width)).shape == (1, 3, height, width)


def test_unet_answer_does_not_depend_on_the_batch():
    network = build_network("unet", 2, width=0.125).eval()
    x = torch.randn(3, 3, 20, 24)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]), atol=1e-5, rtol=1e-5)


def test_padded_network_pads_and_cuts():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.shape[-2:])
            return x

    x = torch.randn(1, 3, 33, 64)
    assert torch.equal(PaddedNetwork(Spy(), multiple=32)(x), x)
    assert seen == [(64, 64)]


@pytest.mark.parametrize(
    ("name", "width", "said"),
    [
        ("vnet", 1, "`network`: 'vnet' is unknown"),
        ("unet", 0, "`width`.* found 0"),
        ("unet", 9, "`width`.* found 9"),
        ("smp:a:b", 2, "1 only"),
        ("unet:efficientnet-lite0", 0.5, "1 only"),
        ("unet:resnet", 1, "unet:efficientnet-lite0"),
    ],
)
def test_wrong_networks_are_refused(name, width, said):
    with pytest.raises(InputError, match=said):
        build_network(name, 2, width=width)


def test_background_alone_is_refused():
    with pytest.raises(InputError, match="background counts"):
        build_network("unet", 1)


def test_missing_smp_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(InputError, match="pip install"):
        build_network("smp:Unet:resnet18", 2)


def test_mismatched_torchvision_says_the_versions_and_the_cure(monkeypatch):
    def fail(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(networks.importlib, "import_module", fail)
    with pytest.raises(
        InputError, match=r"torch 2.*torchvision::nms.*pip install.*torchvision==0\."
    ):
        build_network("smp:Unet:resnet18", 2)


def test_smp_network_is_built_by_name(monkeypatch):
    def create_model(architecture, *, encoder_name, encoder_weights, classes):
        if architecture != "Unet":
            raise KeyError("no such architecture")
        assert (encoder_name, encoder_weights) == ("resnet18", None)
        return nn.Conv2d(3, classes, 1)

    stand_in = types.SimpleNamespace(create_model=create_model)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", stand_in)
    network = build_network("smp:Unet:resnet18", 4)
    assert network(torch.zeros(1, 3, 20, 33)).shape == (1, 4, 20, 33)
    with pytest.raises(InputError, match="no such architecture"):
        build_network("smp:Nonsense:resnet18", 4)


class EncoderAndHead(nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(4, classes, 1)

    def forward(self, x):
        return self.head(self.encoder(x))


@pytest.fixture
def smp(monkeypatch):
    """What the library offers, of which latentseg uses two things."""

    def create_model(architecture, *, encoder_name, encoder_weights, classes):
        return EncoderAndHead(classes)

    settings = {"imagenet": {"repo_id": "smp-hub/resnet18.imagenet", "revision": "0" * 40}}
    encoders = types.SimpleNamespace(encoders={"resnet18": {"pretrained_settings": settings}})
    stand_in = types.SimpleNamespace(create_model=create_model, encoders=encoders)
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", stand_in)


NAME = "smp:Unet:resnet18:imagenet"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_encoder_of_the_library_is_initialized_from_a_file(smp, tmp_path, suffix):
    weights = {"weight": torch.randn(4, 3, 1, 1), "bias": torch.randn(4)}
    path = tmp_path / f"encoder{suffix}"
    save_file(weights, path) if suffix == ".safetensors" else torch.save(weights, path)
    network = build_network(NAME, 2)
    initialize(network, NAME, path)
    encoder = encoder_of(network)
    assert encoder is not None
    assert torch.equal(encoder.state_dict()["weight"], weights["weight"])


def test_an_initialized_encoder_sees_colors_as_imagenet_has_them(smp):
    network = build_network(NAME, 2)
    assert isinstance(network, PaddedNetwork)
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    expected = network.network(((x + 1) / 2 - mean) / std)
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)


def test_weights_of_the_library_come_from_the_cache_and_are_never_fetched(
    smp, tmp_path, monkeypatch
):
    network = build_network(NAME, 2)
    monkeypatch.setattr(networks.huggingface_hub, "try_to_load_from_cache", lambda *a, **k: None)
    with pytest.raises(InputError, match=r"hf download smp-hub/resnet18.imagenet --revision 0"):
        initialize(network, NAME)
    save_file(
        {"weight": torch.zeros(4, 3, 1, 1), "bias": torch.ones(4)}, tmp_path / "w.safetensors"
    )

    def cached(repository, file, *, revision):
        assert (repository, file, revision) == (
            "smp-hub/resnet18.imagenet", "model.safetensors", "0" * 40,
        )  # fmt: skip
        return str(tmp_path / "w.safetensors")

    monkeypatch.setattr(networks.huggingface_hub, "try_to_load_from_cache", cached)
    initialize(network, NAME)
    encoder = encoder_of(network)
    assert encoder is not None
    assert torch.equal(encoder.state_dict()["bias"], torch.ones(4))


def test_weights_that_do_not_fit_or_are_not_there_are_refused(smp, tmp_path):
    network = build_network(NAME, 2)
    with pytest.raises(InputError, match=r"`encoder_weights`.*no such file"):
        initialize(network, NAME, tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(InputError, match="does not fit the encoder"):
        initialize(network, NAME, tmp_path / "other.pth")
    with pytest.raises(InputError, match=r"no weights .lucky.*imagenet"):
        initialize(network, "smp:Unet:resnet18:lucky")
    with pytest.raises(InputError, match=r"`encoder_weights`.*random weights"):
        initialize(build_network("unet", 2, width=0.125), "unet", tmp_path / "other.pth")


@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("unet", None),
        ("unet:efficientnet-lite0", "ImageNet weights of EfficientNet-Lite0, Apache-2.0"),
        ("smp:Unet:resnet18", None),
        (NAME, "imagenet weights of segmentation_models_pytorch"),
    ],
)
def test_networks_say_what_initialized_them(name, origin):
    assert initialized_on(name) == origin
