"""MobileStyleGAN from OpenVINO's files, with tiny random weights, and from the real package."""

import os
import re
import zipfile
from pathlib import Path

import pytest
import torch

from latentseg.errors import CorruptFileError, InputError, LatentsegError
from latentseg.generators import load_generator
from latentseg.generators.conversion import convert
from latentseg.generators.families.mobilestylegan import MobileStyleGAN
from latentseg.generators.packages import PACKAGES
from latentseg.generators.protocols import HasFeatures, HasVariants
from latentseg.generators.style_generator import StyleGenerator
from latentseg.weights.openvino_ir import read_graph
from tests.generators.golden import assert_close
from tests.generators.openvino_files import save_networks
from tests.generators.tiny_mobilestylegan import tiny

BOTH = torch.arange(2)
WHEEL = os.environ.get("LATENTSEG_RANDOM_FACE", "")


@pytest.fixture
def network() -> MobileStyleGAN:
    made = tiny(size=(32, 16), channels=(8, 8, 4), mapping_layers=2).network
    assert isinstance(made, MobileStyleGAN)
    return made


@pytest.fixture
def folder(network: MobileStyleGAN, tmp_path: Path) -> Path:
    return save_networks(network, tmp_path / "data")


def wheel_of(folder: Path, name: str = "random_face-2021.7.21.1-py3-none-any.whl") -> Path:
    path = folder.parent / name
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("random_face/__init__.py", "raise SystemExit('was run')")
        for file in sorted(folder.iterdir()):
            archive.write(file, f"random_face/data/{file.name}")
    return path


def test_networks_draw_what_they_were_made_from(network: MobileStyleGAN, folder: Path) -> None:
    opened = load_generator(folder, device="cpu")
    assert isinstance(opened, StyleGenerator)
    z = opened.prior.draw(BOTH)[0]
    assert_close(opened.network.style(z, None), network.style(z, None))
    latents = opened.sample(BOTH)
    ws = latents.values[:, None].expand(-1, network.n_layers, -1)
    assert_close(opened(latents), network.draw(ws, "const")[0])
    assert opened.info.size == (32, 16)
    assert isinstance(opened, HasFeatures)
    assert isinstance(opened, HasVariants)


def test_the_mean_style_is_that_of_many_latents(network: MobileStyleGAN, folder: Path) -> None:
    opened = load_generator(folder, device="cpu")
    assert isinstance(opened, StyleGenerator)
    drawn = torch.Generator().manual_seed(7)
    mean = network.style(torch.randn(20_000, 6, generator=drawn), None).mean(dim=0)
    spread = opened.spread.max()
    assert (opened.network.centre(None) - mean).abs().max() < 0.1 * spread
    assert opened.sampling.psi == 0.5


@pytest.mark.parametrize("name", ["data", "data/SynthesisNetwork.xml", "data/MappingNetwork.xml"])
def test_folder_and_either_file_are_opened(folder: Path, name: str) -> None:
    opened = load_generator(folder.parent / name, device="cpu")
    assert opened.info.family == "mobilestylegan"
    assert len(opened.info.sha256) == 64


def test_wheel_is_opened_as_it_is_and_converted(folder: Path, tmp_path: Path) -> None:
    wheel = wheel_of(folder)
    opened, unpacked = (load_generator(path, device="cpu") for path in (wheel, folder))
    latents = opened.sample(BOTH)
    assert_close(opened(latents), unpacked(latents))
    assert opened.info.name == "random-face"
    assert "non-commercial" in opened.info.licence
    made = load_generator(convert(wheel, tmp_path / "made", quiet=True), device="cpu")
    assert made.info.licence == opened.info.licence
    assert_close(made(latents), opened(latents))


def test_installed_package_is_found_and_not_imported(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=re.escape("pip install --no-deps random-face")):
        load_generator("random-face")
    site = tmp_path / "site"
    (site / "random_face").mkdir(parents=True)
    (site / "random_face" / "__init__.py").write_text("raise SystemExit('was run')")
    record = site / "random_face-2021.7.21.1.dist-info"
    record.mkdir()
    (record / "METADATA").write_text("Metadata-Version: 2.1\nName: random-face\nVersion: 1\n")
    monkeypatch.syspath_prepend(site)
    with pytest.raises(CorruptFileError, match="random_face/data is missing"):
        load_generator("random-face")
    folder.rename(site / "random_face" / "data")
    assert load_generator("random-face", device="cpu").info.name == "random-face"


def test_every_package_says_what_it_is() -> None:
    for name, package in PACKAGES.items():
        assert package.name == name
        assert package.licence
        assert package.draws
        assert package.command.endswith(name)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("0.2", "0.2", None),
        ('type="PReLU"', 'type="Relu"', "is a Relu"),
        ('strides="2, 1"', 'strides="1, 2"', "no filter of a wavelet"),
        ('transpose_a="false"', 'transpose_a="true"', "transposes"),
        ('pads_begin="1, 1"', 'pads_begin="0, 0"', "pads_begin"),
        ('name="SynthesisNetwork"', 'name="Other"', "no network 'SynthesisNetwork'"),
        ('type="Squeeze"', 'type="Sqrt"', "is a Sqrt"),
        ('type="Tile"', 'type="Sigmoid"', "Sigmoid"),
    ],
)
def test_other_graphs_are_refused_by_the_layer(
    folder: Path, old: str, new: str, message: str | None
) -> None:
    path = folder / "SynthesisNetwork.xml"
    path.write_text(path.read_text().replace(old, new))
    if message is None:
        load_generator(folder, device="cpu")
        return
    with pytest.raises(LatentsegError, match=message):
        load_generator(folder)


def test_slope_of_another_kind_is_refused(network: MobileStyleGAN, tmp_path: Path) -> None:
    folder = save_networks(network, tmp_path / "other")
    slope = torch.tensor([0.2]).numpy().tobytes()
    path = folder / "SynthesisNetwork.bin"
    path.write_bytes(path.read_bytes().replace(slope, torch.tensor([0.3]).numpy().tobytes()))
    with pytest.raises(CorruptFileError, match=r"another slope than 0\.2"):
        load_generator(folder)


@pytest.mark.slow
@pytest.mark.skipif(not WHEEL, reason="LATENTSEG_RANDOM_FACE names no wheel of random-face")
def test_the_real_package_draws_what_openvino_draws() -> None:
    openvino = pytest.importorskip("openvino")
    opened = load_generator(WHEEL, device="cpu")
    latents = opened.sample(BOTH)
    with zipfile.ZipFile(WHEEL) as archive:
        files = [
            archive.read(f"random_face/data/SynthesisNetwork.{suffix}") for suffix in ("xml", "bin")
        ]
    core = openvino.Core()
    model = core.read_model(model=files[0], weights=files[1])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for image, latent in zip(opened(latents), latents.values, strict=True):
        assert_close(image, torch.from_numpy(compiled(latent[None].numpy())[0][0]))


def test_graph_keeps_what_it_read(folder: Path) -> None:
    graph = read_graph(folder / "MappingNetwork.xml")
    assert graph.name == "MappingNetwork"
    assert graph.result.kind == "Multiply"
