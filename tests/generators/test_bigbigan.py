"""BigBiGAN against what the official network computes, and its bank of latents."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, InputError
from latentseg.generators.families.bigbigan import FAMILY, read_bank
from latentseg.generators.families.biggan import BigGAN
from latentseg.generators.family import Options, SavedGenerator
from latentseg.generators.folders import load_folder, save_generator
from latentseg.generators.protocols import GeneratorInfo
from latentseg.weights.containers import open_checkpoint
from tests.generators.golden import assert_close, cases, golden

INFO = GeneratorInfo("tiny", (0, 0), (), 0, "", "none stated", "test", "", FAMILY.name)
CASE = "bigbigan/bigbigan128"


def opened(path: Path, options: Options | None = None) -> SavedGenerator:
    """As `registry.import_checkpoint` does, of this family."""
    imported = FAMILY.read(open_checkpoint(path), options or {})
    sampling = FAMILY.sampling(imported.sampling, options or {})
    info = replace(INFO, size=imported.config.size)
    return FAMILY.generator(replace(imported, sampling=sampling), info, path)


@pytest.fixture
def bank(tmp_path: Path) -> Path:
    values = np.random.default_rng(0).normal(3, 0.5, (7, 6)).astype(np.float32)
    np.save(tmp_path / "photos_z.npy", values)
    return tmp_path / "photos_z.npy"


def test_golden_tensors_are_reproduced() -> None:
    assert cases("bigbigan") == [CASE]
    case = golden(CASE)
    expected, network = dict(case.expected), opened(case.path).network
    assert isinstance(network, BigGAN)
    image, maps = network.draw(expected.pop("z"), None)
    assert_close(image, expected.pop("image"))
    assert_close(network.shared.weight, expected.pop("embedding"))
    for i in (0, 1):
        assert_close(maps[i][:1], expected.pop(f"features.blocks.{i}.0"))
    assert not expected


def test_file_is_known_by_its_name() -> None:
    assert FAMILY.objection(golden(CASE).checkpoint) is None
    assert FAMILY.objection(golden("biggan/ajbrock128").checkpoint) is None  # stored alike
    assert "name" in (FAMILY.doubt(golden("biggan/ajbrock128").checkpoint) or "")
    assert FAMILY.doubt(golden(CASE).checkpoint) is None
    assert "linear.weight" in (FAMILY.objection(golden("dcgan/rgb64").checkpoint) or "")


def test_assumed_constants_are_noted_and_can_be_given() -> None:
    checkpoint = golden(CASE).checkpoint
    notes = FAMILY.read(checkpoint, {}).notes
    assert [note.split()[0] for note in notes] == ["bn_eps", "sn_eps"]
    given = FAMILY.read(checkpoint, {"bn_eps": 1e-5, "sn_eps": 1e-6})
    assert (given.config.bn_eps, given.notes) == (1e-5, ())
    with pytest.raises(InputError, match="sn_eps"):
        FAMILY.read(checkpoint, {"sn_eps": "nonsense"})


def test_missing_parameter_is_named(tmp_path: Path) -> None:
    state = torch.load(golden(CASE).path, weights_only=True)
    del state["blocks.3.1.o.weight"]
    torch.save(state, tmp_path / "BigBiGAN_x1.pth")
    with pytest.raises(CorruptFileError, match=r"blocks\.3\.1\.o\.weight"):
        opened(tmp_path / "BigBiGAN_x1.pth")


def test_bank_is_drawn_from_and_travels_with_the_folder(bank: Path, tmp_path: Path) -> None:
    generator = opened(golden(CASE).path, {"latents": str(bank)})
    rows = torch.from_numpy(np.load(bank))
    drawn = generator.sample(torch.arange(40)).values
    assert {tuple(row.tolist()) for row in drawn} == {tuple(row.tolist()) for row in rows}
    torch.testing.assert_close(generator.extras["bank"], rows)
    save_generator(generator, tmp_path / "out", card="", origin={})
    again = load_folder(tmp_path / "out")
    latents = again.sample(torch.arange(3))
    assert torch.equal(latents.values, drawn[:3])
    torch.testing.assert_close(again(latents), generator(latents))
    assert (
        "7 rows of photos_z.npy"
        in FAMILY.read(golden(CASE).checkpoint, {"latents": str(bank)}).notes[-1]
    )


def test_bank_noise_spreads_the_latents_and_needs_a_bank(bank: Path) -> None:
    path = golden(CASE).path
    seeds = torch.arange(400)
    plain = opened(path, {"latents": str(bank)}).sample(seeds).values
    noisy = opened(path, {"latents": str(bank), "bank_noise": 1.0}).sample(seeds).values
    rows = torch.from_numpy(np.load(bank))
    torch.testing.assert_close(
        (noisy - plain).std(dim=0), rows.std(dim=0, correction=0), rtol=0.2, atol=0
    )
    with pytest.raises(InputError, match="bank_noise"):
        opened(path, {"bank_noise": 0.5})


def test_archive_of_one_array_is_a_bank_too(bank: Path, tmp_path: Path) -> None:
    values = np.load(bank)
    np.savez(tmp_path / "one.npz", z=values.astype(np.float64))
    torch.testing.assert_close(read_bank(tmp_path / "one.npz", 6), torch.from_numpy(values))
    np.savez(tmp_path / "two.npz", z=values, y=values)
    with pytest.raises(InputError, match="2 arrays"):
        read_bank(tmp_path / "two.npz", 6)


@pytest.mark.parametrize(
    ("values", "error", "reason"),
    [
        (np.zeros((3, 5)), InputError, r"\(3, 5\), expected \(N, 6\)"),
        (np.zeros((0, 6)), InputError, r"\(0, 6\)"),
        (np.zeros(6), InputError, r"\(6,\)"),
        (np.zeros((2, 6), dtype=complex), InputError, "complex"),
        (np.full((2, 6), np.nan), CorruptFileError, "not finite"),
        (np.array([["a"] * 6], dtype=object), CorruptFileError, "Python objects"),
    ],
)
def test_unfit_bank_is_refused(
    values: np.ndarray, error: type[Exception], reason: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "bad.npy", values, allow_pickle=True)
    with pytest.raises(error, match=reason):
        read_bank(tmp_path / "bad.npy", 6)


def test_bank_that_is_no_array_is_refused(bank: Path, tmp_path: Path) -> None:
    whole = bank.read_bytes()
    contents = {"cut": whole[:-4], "empty": b"", "text": b"0.1 0.2", "zip": b"PK\x03\x04 no zip"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CorruptFileError, match=name):
            read_bank(tmp_path / name, 6)
    for nonsense in (tmp_path / "nowhere.npy", 3, None):
        with pytest.raises(InputError, match=r"latents|no such file"):
            read_bank(nonsense, 6)
