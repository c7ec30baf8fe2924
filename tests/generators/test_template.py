"""The generator to copy: what `latentseg generators --template` prints works."""

from pathlib import Path

import pytest
import torch

from latentseg.generators import load_generator
from latentseg.generators.external import template_text
from latentseg.generators.protocols import Generator


@pytest.fixture
def copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator:
    (tmp_path / "my_copied_module.py").write_text(template_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return load_generator("my_copied_module:build", device="cpu")


def test_copied_template_meets_the_clauses_of_a_generator(copied: Generator) -> None:
    assert isinstance(copied, Generator)
    latents = copied.sample(torch.arange(5))
    x = copied(latents)
    assert latents.values.shape == (5, *copied.info.latent)
    assert x.shape == (5, 3, *copied.info.size)
    assert x.abs().max() <= 1
    assert torch.equal(copied.sample(torch.tensor([3])).values[0], latents.values[3])
    torch.testing.assert_close(copied(latents[3:4])[0], x[3], atol=1e-5, rtol=1e-5)
    z = latents.values.requires_grad_()
    (gradient,) = torch.autograd.grad(copied(latents.with_values(z)).sum(), z)
    assert (gradient.abs().amax(dim=1) > 0).all()


def test_copied_template_shifts_by_standard_deviations(copied: Generator) -> None:
    many = copied.sample(torch.arange(2000))
    moved = copied.shift(many, torch.ones(16)).values - many.values
    torch.testing.assert_close(moved[0] / many.values.std(0), torch.ones(16), atol=0.1, rtol=0)


def test_template_is_short() -> None:
    code = [line for line in template_text().splitlines() if line.strip()]
    assert len(code) < 60
