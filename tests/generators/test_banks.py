"""Banks of latents: every generator draws them, with noise, and is otherwise what it was."""

import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latentseg.errors import CorruptFileError, InputError
from latentseg.files import claim, write_json, write_manifest, write_safetensors
from latentseg.generators import HasBank, load_generator
from latentseg.generators.abilities import abilities
from latentseg.generators.banks import Bank, read_bank
from latentseg.generators.family import Sampling
from latentseg.generators.folders import save_generator
from latentseg.generators.priors import Prior
from latentseg.generators.programs import Program, ProgramGenerator
from latentseg.generators.protocols import Generator, GeneratorInfo, Latents
from latentseg.generators.style_generator import StyleGenerator
from latentseg.images import to_pixels, write_image
from latentseg.inversion.folder import invert
from latentseg.inversion.settings import InversionConfig
from latentseg.labelers import load_labeler
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.directions_settings import DirectionsConfig
from latentseg.labelers.fit_directions import fit_directions
from latentseg.synthesis.writers import synthesize
from tests.closeness import assert_same_masks
from tests.generators.tiny import TINY
from tests.generators.tiny_biggan import tiny as tiny_biggan
from tests.generators.tiny_stylegan2 import tiny
from tests.world import SPREAD, World, seeds

QUICK = DirectionsConfig(steps=2, batch=2, restarts=1, restart_steps=1)
ROWS = 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def drawing(generator: Generator, bank: Bank) -> Generator:
    assert isinstance(generator, HasBank)
    return generator.with_bank(bank)


def styled(sampling: Sampling | None = None, **fields: Any) -> StyleGenerator:
    generator = tiny(sampling, **fields)
    assert isinstance(generator, StyleGenerator)
    return generator


def program(n_classes: int = 0) -> ProgramGenerator:
    def call(z: Tensor, *labels: Tensor) -> Tensor:
        return z[:, :3, None, None].expand(-1, 3, 4, 4).tanh()

    def move(device: torch.device) -> Program:
        return Program(call, move)

    info = GeneratorInfo("program", (4, 4), (6,), n_classes, "z", "CC0", "made up", "")
    return ProgramGenerator(move(torch.device("cpu")), info, torch.device("cpu"))


GENERATORS: dict[str, Callable[[], Generator]] = {**TINY, "program": program}


@pytest.mark.parametrize("name", GENERATORS)
def test_every_family_draws_rows_of_a_bank_and_is_otherwise_the_same(name: str) -> None:
    plain = GENERATORS[name]()
    before = plain.sample(torch.arange(ROWS))
    rows = before.values * 1.5 + 0.01
    banked = drawing(plain, Bank(rows))
    latents = banked.sample(seeds(40))
    assert {tuple(row.flatten().tolist()) for row in latents.values} == {
        tuple(row.flatten().tolist()) for row in rows
    }
    assert (latents.labels is None) == (before.labels is None)
    with torch.no_grad():
        torch.testing.assert_close(banked(latents[:2]), plain(latents[:2]))
    step = normal(*plain.info.latent)
    assert torch.equal(banked.shift(latents, step).values, plain.shift(latents, step).values)
    assert type(banked) is type(plain)
    assert abilities(banked) == abilities(plain)
    assert banked.info.bank
    assert replace(banked.info, bank=None) == plain.info
    assert torch.equal(plain.sample(torch.arange(ROWS)).values, before.values)


@pytest.mark.parametrize("plain", [styled(), tiny_biggan()], ids=["stylegan2", "biggan"])
def test_sample_depends_on_its_seed_only_and_noise_is_new_for_each(plain: Generator) -> None:
    bank = Bank(normal(ROWS, *plain.info.latent), noise=0.3)
    banked = drawing(plain, bank)
    whole = banked.sample(seeds(9))
    parts = [banked.sample(seeds(9)[rows]) for rows in (slice(0, 1), slice(1, 6), slice(6, 9))]
    assert torch.equal(whole.values, torch.cat([part.values for part in parts]))
    assert torch.equal(whole.values, drawing(plain, bank).sample(seeds(9)).values)
    assert len({tuple(row.tolist()) for row in whole.values}) == 9


def test_noise_is_in_deviations_of_the_generator_even_for_one_row() -> None:
    plain = styled()
    row = normal(1, 6)
    drawn = drawing(plain, Bank(row, noise=0.4)).sample(seeds(4000)).values
    torch.testing.assert_close(drawn.std(dim=0), 0.4 * plain.spread, rtol=0.05, atol=0)
    torch.testing.assert_close(drawn.mean(dim=0), row[0], rtol=0, atol=0.02)
    layered = drawing(plain, Bank(row.expand(1, plain.n_layers, 6), noise=0.4))
    ws = layered.sample(seeds(4000)).values
    torch.testing.assert_close(ws.std(dim=0)[1], 0.4 * plain.spread, rtol=0.05, atol=0)
    assert abs(np.corrcoef(ws[:, 0, 0], ws[:, 1, 0])[0, 1]) < 0.05  # layers apart


def test_bank_of_w_plus_makes_a_generator_of_w_plus() -> None:
    plain = styled()
    rows = normal(ROWS, plain.n_layers, 6)
    banked = drawing(plain, Bank(rows))
    assert (banked.info.latent, banked.info.space) == ((plain.n_layers, 6), "ws")
    latents = banked.sample(seeds(3))
    assert latents.values.shape == (3, plain.n_layers, 6)
    torch.testing.assert_close(banked(latents), plain(latents))
    step = normal(6)
    moved = banked.shift(latents, step).values - latents.values
    expected = (step * plain.spread).expand_as(moved)
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=1e-4)


def test_bank_is_not_truncated_and_w_becomes_one_style_per_layer_where_they_differ() -> None:
    rows = normal(ROWS, 6) * 3
    layered = styled(Sampling(psi=0.1, cutoff=2))
    latents = drawing(layered, Bank(rows)).sample(seeds(20)).values
    assert latents.shape == (20, layered.n_layers, 6)
    assert torch.equal(latents[:, 0], latents[:, -1])
    drawn = drawing(styled(Sampling(psi=0.1)), Bank(rows)).sample(seeds(20)).values
    assert torch.equal(drawn, latents[:, 0])
    assert {tuple(row) for row in drawn.tolist()} == {tuple(row) for row in rows.tolist()}


@pytest.mark.parametrize("plain", [styled(), tiny_biggan()], ids=["stylegan2", "biggan"])
def test_variants_take_their_appearance_from_the_bank(plain: Any) -> None:
    banked: Any = drawing(plain, Bank(normal(ROWS, *plain.info.latent)))
    own, others = banked.sample(seeds(2)), seeds(3, key=1)
    drawn = banked.variants(own, others, 0)
    expected = banked(banked.sample(others))
    torch.testing.assert_close(drawn[1], expected, atol=1e-4, rtol=1e-4)


def test_generator_with_a_bank_moves_as_a_whole() -> None:
    for plain in (styled(n_classes=3), tiny_biggan()):
        bank = Bank(normal(ROWS, *plain.info.latent), noise=0.1)
        latents = drawing(plain, bank).to("meta").sample(seeds(2))
        assert latents.values.device.type == "meta"
        assert latents.labels is not None
        assert latents.labels.device.type == "meta"


@pytest.mark.parametrize("plain", [program(3), tiny_biggan(), styled(n_classes=3)])
def test_labels_come_with_the_bank_or_are_drawn(plain: Any) -> None:
    rows = normal(ROWS, *plain.info.latent)
    free = drawing(plain, Bank(rows)).sample(seeds(60)).labels
    assert free is not None
    assert set(free.tolist()) == {0, 1, 2}
    labels = torch.tensor([2, 0, 2, 0, 0])
    given = Bank(rows, labels)
    drawn = drawing(plain, given).sample(seeds(60))
    assert drawn.labels is not None
    found = {(tuple(z.tolist()), int(y)) for z, y in zip(drawn.values, drawn.labels, strict=True)}
    assert found == {(tuple(z.tolist()), int(y)) for z, y in zip(rows, labels, strict=True)}
    for only in (
        drawing(plain.with_classes((2,)), given),
        plain.with_bank(given).with_classes((2,)),
    ):
        values = only.sample(seeds(60)).values
        assert {tuple(row.tolist()) for row in values} == {tuple(rows[i].tolist()) for i in (0, 2)}
        assert only.info.bank == Bank(rows, labels).description
    with pytest.raises(InputError, match=r"photos\.npz: has no latent of the classes \[1\]"):
        drawing(plain.with_classes((1,)), replace(given, source="photos.npz"))


@pytest.mark.parametrize(
    ("generator", "labels", "message"),
    [
        (tiny_biggan(), [0, 3, 1, 1, 1], "z.npz: has labels 0 to 3; .* are 0 to 2"),
        (tiny_biggan(), [0, -1, 1, 1, 1], "z.npz: has labels -1 to 1"),
        (styled(), [0, 0, 0, 0, 0], "none: it is unconditional"),
    ],
)
def test_labels_of_other_classes_are_refused(
    generator: Generator, labels: list[int], message: str
) -> None:
    rows = normal(ROWS, *generator.info.latent)
    with pytest.raises(InputError, match=message):
        drawing(generator, Bank(rows, torch.tensor(labels), source="z.npz"))


@pytest.mark.parametrize(
    ("generator", "shape", "expected"),
    [
        (styled(), (4, 7), r"\(4, 7\); generator 'tiny stylegan2' takes \(N, 6\) or \(N, 6, 6\)"),
        (styled(), (4, 3, 6), r"\(4, 3, 6\); .* takes \(N, 6\) or"),
        (tiny_biggan(), (4, 2, 5), r"\(4, 2, 5\); generator 'tiny biggan' takes \(N, 8\)\."),
    ],
)
def test_other_shapes_are_refused_with_file_and_both_shapes(
    generator: Generator, shape: tuple[int, ...], expected: str, tmp_path: Path
) -> None:
    np.save(tmp_path / "photos.npy", normal(*shape).numpy())
    with pytest.raises(InputError, match=r"photos\.npy: has shape " + expected):
        drawing(generator, read_bank(tmp_path / "photos.npy"))


def test_file_formats_give_the_same_distribution(tmp_path: Path) -> None:
    rows, labels = normal(ROWS, 6), torch.tensor([0, 1, 2, 0, 1])
    np.save(tmp_path / "a.npy", rows.numpy())
    np.savez(tmp_path / "b.npz", anything=rows.double().numpy())
    write_safetensors(tmp_path / "c.safetensors", {"z": rows})
    np.savez(tmp_path / "d.npz", latents=rows.numpy(), labels=labels.numpy())
    write_safetensors(tmp_path / "e.safetensors", {"latents": rows, "labels": labels})
    plain = [read_bank(tmp_path / name) for name in ("a.npy", "b.npz", "c.safetensors")]
    both = [read_bank(tmp_path / name) for name in ("d.npz", "e.safetensors")]
    assert len({bank.description for bank in plain}) == 1
    assert len({bank.description for bank in both}) == 1
    assert all(torch.equal(bank.latents, rows) for bank in plain + both)
    assert [None if bank.labels is None else bank.labels.tolist() for bank in plain + both] == [
        *[None] * 3,
        *[labels.tolist()] * 2,
    ]
    others = [Bank(rows + 1), Bank(rows, noise=0.1), Bank(rows.reshape(6, 5)), both[0]]
    assert len({bank.description for bank in [plain[0], *others]}) == 5


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path("exploded").write_text, ("the pickle ran",))


@pytest.mark.parametrize("name", ["pickled.npy", "pickled.npz", "bare.npy", "bare.safetensors"])
def test_pickles_are_refused_and_not_run(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    if name == "pickled.npy":
        np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    elif name == "pickled.npz":
        np.savez(path, latents=np.array([Bomb()], dtype=object))  # pyright: ignore[reportArgumentType]
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(CorruptFileError, match=name):
        read_bank(path)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ({"z": np.full((3, 6), np.nan)}, CorruptFileError, "not finite"),
        ({"z": np.full((3, 6), 1e300)}, CorruptFileError, "not finite"),  # infinite in float32
        ({"z": np.zeros((0, 6))}, InputError, r"shape \(0, 6\)"),
        ({"z": np.zeros((3, 0))}, InputError, r"shape \(3, 0\)"),
        ({"z": np.zeros(6)}, InputError, r"shape \(6,\); expected finite numbers in \(N, \.\.\.\)"),
        ({"z": np.zeros((3, 6), complex)}, InputError, "complex"),
        ({"z": np.array([["a"]])}, InputError, "expected numbers"),
        ({"y": np.zeros((3, 6)), "z": np.zeros((3, 6))}, InputError, "2 arrays in it; expected"),
        ({}, InputError, "0 arrays"),
        (
            {"latents": np.zeros((3, 6)), "labels": np.zeros(2)},
            InputError,
            r"labels of shape \(2,\); expected \(3,\)",
        ),
        ({"latents": np.zeros((3, 6)), "labels": np.full(3, 0.5)}, InputError, "whole numbers"),
    ],
)
def test_hostile_arrays_are_refused(
    arrays: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(error, match=rf"bad\.npz: .*{message}"):
        read_bank(tmp_path / "bad.npz")


def test_header_that_claims_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12, 6)}
    with (tmp_path / "claims.npy").open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(CorruptFileError, match=r"claims\.npy"):
        read_bank(tmp_path / "claims.npy")
    with pytest.raises(InputError, match=r"nowhere\.npy: there is no such file"):
        read_bank(tmp_path / "nowhere.npy")


@pytest.mark.parametrize("noise", [-0.1, float("nan"), float("inf")])
def test_noise_of_nonsense_is_refused(noise: float) -> None:
    with pytest.raises(InputError, match="latent_noise"):
        Bank(normal(ROWS, 6), noise=noise)


def test_inverted_photos_are_drawn_with_their_classes(tmp_path: Path) -> None:
    plain = tiny_biggan()
    with torch.no_grad():
        images = to_pixels(World((32, 32))(World((32, 32)).sample(seeds(3))))
    for i, image in enumerate(images):
        write_image(tmp_path / "photos" / f"{i}.png", image)
    config = InversionConfig(steps=2, candidates=4, mean_samples=8)
    out = tmp_path / "out"
    found = invert(plain, tmp_path / "photos", out=out, config=config, device="cpu", quiet=True)
    bank = read_bank(out)
    assert bank.labels is not None
    assert bank.labels.tolist() == [photo.label for photo in found]
    assert torch.equal(bank.latents, read_bank(out / "latents.npy").latents)
    assert len(drawing(plain, bank).sample(seeds(2))) == 2
    (out / "latents.npy").write_bytes(b"changed")
    with pytest.raises(CorruptFileError, match=r"latents\.npy"):
        read_bank(out)


@pytest.mark.parametrize("record", [{}, [], {"photos": [{"label": "cat"}] * 5}, {"photos": [1]}])
def test_records_of_inversions_that_are_none_are_refused(record: Any, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a folder of `latentseg invert`"):
        read_bank(tmp_path)
    np.save(tmp_path / "latents.npy", normal(ROWS, 6).numpy())
    with pytest.raises(InputError, match="never finished"):
        read_bank(tmp_path)
    write_json(tmp_path / "inversions.json", record)
    write_manifest(tmp_path)
    with pytest.raises(CorruptFileError, match=r"inversions\.json: not a record"):
        read_bank(tmp_path)


def test_generators_are_opened_with_latents_and_noise(tmp_path: Path) -> None:
    save_generator(tiny(), tmp_path / "g", card="", origin={})
    np.save(tmp_path / "photos.npy", normal(ROWS, 6).numpy())
    plain = load_generator(tmp_path / "g", device="cpu")
    banked = load_generator(
        tmp_path / "g", device="cpu", latents=tmp_path / "photos.npy", latent_noise=0.1
    )
    assert banked.info.bank
    assert banked.info.bank.startswith("5 latents, sha256 ")
    assert banked.info.bank.endswith("noise 0.1")
    assert plain.info.bank is None
    nearest = torch.cdist(banked.sample(seeds(9)).values, normal(ROWS, 6)).amin(dim=1)
    assert ((nearest > 0) & (nearest < 1)).all()
    with pytest.raises(InputError, match="`latent_noise`: there are no latents"):
        load_generator(tmp_path / "g", latent_noise=0.1)


class BankedWorld(World):
    """A generator of one's own with the one method that a bank needs."""

    prior: Prior | None = None

    def with_bank(self, bank: Bank) -> "BankedWorld":
        banked = BankedWorld(self.info.size)
        banked.info = replace(self.info, bank=bank.description)
        bank.check(self.info.name, [self.info.latent], self.info.n_classes)
        banked.prior = Prior(self.info.latent).drawn_from(bank, torch.tensor(SPREAD))
        return banked

    def sample(self, seeds: Tensor) -> Latents:
        return super().sample(seeds) if self.prior is None else Latents(*self.prior.draw(seeds))


def test_generators_of_ones_own_need_one_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_with_bank.py").write_text(
        "from tests.generators.test_banks import BankedWorld\nfrom tests.world import World\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    rows = World().sample(seeds(3)).values
    np.save(tmp_path / "z.npy", rows.numpy())
    banked = load_generator("own_with_bank:BankedWorld", device="cpu", latents=tmp_path / "z.npy")
    assert torch.cdist(banked.sample(seeds(9)).values, rows).amin(dim=1).max() < 1e-3
    with pytest.raises(InputError, match=r"own_with_bank:World: .*z\.npy: it has no `with_bank`"):
        load_generator("own_with_bank:World", latents=tmp_path / "z.npy")


def test_labeler_of_the_plain_generator_labels_the_bank_alike(tmp_path: Path) -> None:
    plain = BankedWorld()
    labeler = fit_directions(plain, config=QUICK, out=tmp_path / "labeler", quiet=True)
    rows = plain.sample(seeds(ROWS)).values
    banked = plain.with_bank(Bank(rows, noise=0.1))
    loaded = load_labeler(tmp_path / "labeler", banked)
    latents = banked.sample(seeds(6))
    assert_same_masks(loaded.label(latents).masks, labeler.label(latents).masks)
    assert isinstance(loaded, DirectionsLabeler)
    nearest = torch.cdist(loaded.own_latents(9).values, rows).amin(dim=1)
    assert nearest.max() < 1  # a latent of the prior is about 3 away


@pytest.mark.parametrize("shape", [(6,), (6, 6)], ids=["w", "w+"])
def test_labeler_is_fitted_to_a_bank_and_its_dataset_is_not_that_of_the_plain_generator(
    shape: tuple[int, ...], tmp_path: Path
) -> None:
    plain = styled()
    banked = drawing(plain, Bank(normal(ROWS, *shape), noise=0.2))
    keep_all = replace(QUICK, refinement=replace(QUICK.refinement, min_area=0.0, max_area=1.0))
    labeler = fit_directions(banked, config=keep_all, out=tmp_path / "labeler", quiet=True)
    again = load_labeler(tmp_path / "labeler", banked)
    latents = banked.sample(seeds(4))
    assert_same_masks(again.label(latents).masks, labeler.label(latents).masks)
    out = synthesize(banked, again, count=2, out=tmp_path / "dataset", quiet=True)
    recorded = json.loads((out / "dataset.json").read_text())["generator"]
    assert recorded["bank"] == banked.info.bank
    own = fit_directions(plain, config=keep_all, quiet=True)
    with pytest.raises(InputError, match="bank"):
        synthesize(plain, own, count=2, out=tmp_path / "dataset", quiet=True)


def test_work_begun_before_cards_named_banks_goes_on_but_not_with_a_bank(tmp_path: Path) -> None:
    plain = styled()
    card = plain.info.to_json()
    earlier = {name: value for name, value in card.items() if name != "bank"}
    claim(tmp_path, {"generator": earlier})
    assert claim(tmp_path, {"generator": card})
    banked = drawing(plain, Bank(normal(ROWS, 6)))
    with pytest.raises(InputError, match=r"generator\.bank: None there, '5 latents"):
        claim(tmp_path, {"generator": banked.info.to_json()})
