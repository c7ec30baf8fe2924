"""Generators that are programs: opened on trust only, checked when opened."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentseg.errors import InputError, UnsafeFileError
from latentseg.generators import load_generator
from latentseg.generators.programs import PROGRAMS, ProgramGenerator, load_program
from latentseg.generators.protocols import HasFeatures, Latents
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import assert_close, golden

# torch.jit is deprecated, its files are not gone.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
EXPORTED = golden("torch-export/conv32")


class Drawer(nn.Module):
    """Latents (B, 6), and labels if there are classes, to images (B, channels, 8, 8)."""

    def __init__(self, n_classes: int = 0, channels: int = 3) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(6, channels * 64)
        self.embedding = nn.Embedding(max(n_classes, 1), 6)
        self.channels = channels

    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z).tanh().unflatten(1, (self.channels, 8, 8))


class ClassDrawer(Drawer):
    def forward(self, z: Tensor, labels: Tensor) -> Tensor:  # pyright: ignore
        return self.linear(z + self.embedding(labels)).tanh().unflatten(1, (self.channels, 8, 8))


class Random(Drawer):
    def forward(self, z: Tensor) -> Tensor:
        x = self.linear(z).unflatten(1, (self.channels, 8, 8))
        return x + torch.randn_like(x)


class Flat(Drawer):
    def forward(self, z: Tensor) -> Tensor:
        return self.linear(z)


def scripted(network: nn.Module, folder: Path) -> Path:
    torch.jit.script(network.eval()).save(folder / "drawer.pt")  # pyright: ignore
    return folder / "drawer.pt"


def exported(network: nn.Module, folder: Path, n_inputs: int = 1, dynamic: bool = True) -> Path:
    inputs = (torch.zeros(2, 6), torch.zeros(2, dtype=torch.int64))[:n_inputs]
    shapes = tuple({0: torch.export.Dim("batch")} for _ in inputs) if dynamic else None
    program = torch.export.export(network.eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, folder / "drawer.pt2")
    return folder / "drawer.pt2"


def opened(path: Path, **options: Any) -> ProgramGenerator:
    return load_program(open_checkpoint(path), options, trust_code=True)


def test_golden_case_equals_the_official_image() -> None:
    generator = opened(EXPORTED.path)
    assert_close(generator(Latents(EXPORTED.expected["z"])), EXPORTED.expected["image"])
    assert generator.info.latent == (10,)
    assert generator.info.size == (32, 32)
    assert generator.info.sha256 == EXPORTED.checkpoint.sha256


def test_programs_are_opened_on_trust_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {"torchscript": scripted(Drawer(), tmp_path), "exported": EXPORTED.path}
    assert set(paths) == set(PROGRAMS)
    for name in ("torch.jit.load", "torch.export.load"):
        monkeypatch.setattr(name, lambda *_, **__: pytest.fail("the program was opened"))
    for kind, path in paths.items():
        checkpoint = open_checkpoint(path)
        assert checkpoint.kind == kind
        with pytest.raises(UnsafeFileError, match=f"{checkpoint.sha256}.*`trust_code`"):
            load_generator(path, device="cpu")


@pytest.mark.parametrize("save", [scripted, exported])
def test_program_meets_the_clauses_of_a_generator(
    save: Callable[[nn.Module, Path], Path], tmp_path: Path
) -> None:
    network = Drawer()
    generator = load_generator(
        save(network, tmp_path), device="cpu", options={"latent": 6}, trust_code=True
    )
    latents = generator.sample(torch.arange(5))
    assert torch.equal(generator.sample(torch.tensor([3])).values[0], latents.values[3])
    x = generator(latents)
    assert x.shape == (5, 3, 8, 8)
    torch.testing.assert_close(x, network(latents.values))
    torch.testing.assert_close(generator(latents[1:2]), x[1:2])
    z = latents.values.requires_grad_()
    (gradient,) = torch.autograd.grad(generator(Latents(z)).sum(), z)
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0
    moved = generator.shift(latents, torch.ones(6))
    torch.testing.assert_close(moved.values, latents.values + 1)
    assert not isinstance(generator, HasFeatures)
    if save is exported:  # torch cannot move TorchScript to its device without numbers
        assert generator.to("meta")(Latents(z.to("meta"))).device.type == "meta"


@pytest.mark.parametrize("save", [scripted, exported])
def test_classes_are_passed_on(save: Callable[..., Path], tmp_path: Path) -> None:
    network = ClassDrawer(n_classes=4)
    path = save(network, tmp_path, 2) if save is exported else save(network, tmp_path)
    generator = opened(path, latent=[6], n_classes=4)
    latents = generator.sample(torch.arange(40))
    assert latents.labels is not None
    assert set(latents.labels.tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(generator(latents), network(latents.values, latents.labels))
    one = generator.with_classes((2,)).sample(torch.arange(3)).labels
    assert one is not None
    assert one.tolist() == [2, 2, 2]
    with pytest.raises(InputError, match="cannot draw latents"):
        opened(path, latent=6)


def test_grey_images_get_three_channels(tmp_path: Path) -> None:
    generator = opened(scripted(Drawer(channels=1), tmp_path), latent=6)
    x = generator(generator.sample(torch.arange(2)))
    assert x.shape == (2, 3, 8, 8)
    assert torch.equal(x[:, 0], x[:, 2])


def test_options_say_what_the_file_does_not(tmp_path: Path) -> None:
    generator = opened(
        scripted(Drawer(), tmp_path), latent=6, licence="CC0", space="w", n_classes=0
    )
    assert (generator.info.licence, generator.info.space) == ("CC0", "w")
    assert opened(EXPORTED.path).info.licence == "not said by the file"


def test_options_of_nonsense_are_named(tmp_path: Path) -> None:
    path = scripted(Drawer(), tmp_path)
    with pytest.raises(InputError, match=r"has no psi\. There are: latent, n_classes"):
        opened(path, psi=0.5)
    with pytest.raises(InputError, match="shape of its latents is not in the file"):
        opened(path)
    for latent in ("six", 0, [6, -1], [], 2.5):
        with pytest.raises(InputError, match="expected a shape"):
            opened(path, latent=latent)
    with pytest.raises(InputError, match="`n_classes`: expected a whole number, found 'many'"):
        opened(path, latent=6, n_classes="many")
    with pytest.raises(InputError, match=r"cannot draw latents \[7\]"):
        opened(path, latent=7)
    with pytest.raises(InputError, match=r"`latent`: the program takes \[10\], found 7"):
        opened(EXPORTED.path, latent=7)


def test_programs_that_are_no_generators_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot draw|it gives \(3, 192\)"):
        opened(scripted(Flat(), tmp_path), latent=6)
    with pytest.raises(InputError, match="another image each time"):
        opened(scripted(Random(), tmp_path), latent=6)
    with pytest.raises(InputError, match=r"for batches of 2 only.*dynamic_shapes"):
        opened(exported(Drawer(), tmp_path, dynamic=False))


def test_damaged_programs_are_refused(tmp_path: Path) -> None:
    import zipfile

    for name, member in (("drawer.pt", "constants.pkl"), ("drawer.pt2", "archive_format")):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr(f"drawer/{member}", b"pt2")
        with pytest.raises(InputError, match=r"torch .* cannot open it"):
            opened(tmp_path / name, latent=6)
