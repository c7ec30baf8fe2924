import sys
import types

import pytest
import torch
from torch import nn

from latentseg.errors import InputError
from latentseg.students import networks
from latentseg.students.networks import PaddedNetwork, build_network, count_parameters


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
        ("vnet", 1, "unknown"),
        ("unet", 0, "--width 0"),
        ("unet", 9, "--width 9"),
        ("smp:a:b", 2, "1 only"),
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
