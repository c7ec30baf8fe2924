"""The whole job on the world with known answers: what it leaves, and how it continues."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from latentseg import run as run_module
from latentseg.errors import InputError
from latentseg.files import verify_manifest
from latentseg.images import write_image
from latentseg.labelers import load_labeler
from latentseg.labelers.directions_settings import DirectionsConfig
from latentseg.labelers.style_mixing_settings import StyleMixingConfig
from latentseg.run import PRESETS, RunConfig, run
from latentseg.students.segmenter import Segmenter
from latentseg.students.self_training_settings import SelfTrainingConfig
from latentseg.students.training import TrainConfig, train
from latentseg.synthesis.writers import synthesize
from tests.datasets.fabricate import blob, make_dataset
from tests.world import World, fitted, seeds

WORLD = "tests.world:World"
STUDENT = TrainConfig(width=0.125, steps=40, batch=16, lr=3e-3, decay_at=30, augment="none")
TINY = RunConfig(
    labelers={
        "directions": DirectionsConfig(
            steps=10, restarts=1, restart_steps=5, generation_radius=2.0
        ),
        "style-mixing": StyleMixingConfig(n_variants=8, restarts=2),
    },
    count=24,
    student=STUDENT,
    rounds=SelfTrainingConfig(rounds=1, train=STUDENT, min_consistency=0.0),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from latentseg.images import to_pixels

    folder, world = tmp_path_factory.mktemp("photos"), World()
    drawn = to_pixels(world(world.sample(seeds(16))))
    for index, image in enumerate(drawn):
        write_image(folder / f"{index:02d}.png", image)
    return folder


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("real")
    make_dataset(folder / "pets", [blob(i) for i in range(8)])
    return folder / "pets"


def whole_job(out: Path, photos: Path, real: Path, config: RunConfig = TINY) -> Segmenter:
    return run(
        WORLD,
        out,
        config=config,
        eval_data=[real],
        photos=photos,
        ceiling=real,
        device="cpu",
        quiet=True,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, photos: Path, real: Path) -> Path:
    out = tmp_path_factory.mktemp("runs") / "world"
    whole_job(out, photos, real)
    return out


def test_run_folder_is_complete_and_verified(finished: Path) -> None:
    verify_manifest(finished)
    for name in (
        "config.json", "labeler/labeler.json", "labeler/contact_sheet.png", "samples/pairs.png",
        "samples/story.json", "photos/rounds.json", "results.json", "examples/examples.json",
        "model/model.safetensors", "model/README.md", "report.html",
    ):  # fmt: skip
        assert (finished / name).is_file(), name
    assert not (finished / "dataset").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "style-mixing"}, "style-mixing"),
        pytest.param(
            {"method": "style-mixing", "agree": "directions"}, "agreement", marks=pytest.mark.slow
        ),
        pytest.param(
            {"method": "directions", "vote": "style-mixing"}, "voting", marks=pytest.mark.slow
        ),
        pytest.param({"method": "feature-clusters"}, "feature-clusters", marks=pytest.mark.slow),
    ],
)
def test_other_methods_make_a_whole_run(
    tmp_path: Path, real: Path, options: dict[str, str], expected: str
) -> None:
    student = replace(STUDENT, steps=4, decay_at=3)
    config = replace(TINY, student=student, count=8, **options)
    run(WORLD, tmp_path / "run", config=config, eval_data=[real], device="cpu", quiet=True)
    verify_manifest(tmp_path / "run")
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["card"]
    assert card["labeler"]["method"] == expected
    assert (tmp_path / "run" / "labeler" / "contact_sheet.png").is_file()
    labeler = load_labeler(tmp_path / "run" / "labeler", World())
    assert labeler.info["method"] == expected
    page = (tmp_path / "run" / "report.html").read_text()
    assert ("the same layout in another look" in page) == (expected == "style-mixing")


def test_methods_that_do_not_go_together_are_refused() -> None:
    for options in (
        {"method": "magic"},
        {"agree": "directions"},
        {"method": "style-mixing", "agree": "magic"},
        {"vote": "few-shot"},
        {"agree": "style-mixing", "vote": "style-mixing"},
        {"agree": "style-mixing", "ensemble": True},
        {"method": "style-mixing", "ensemble": True},
    ):
        with pytest.raises(InputError, match=r"[Ee]xpected|ensemble|vote"):
            RunConfig(**options)  # pyright: ignore[reportArgumentType]


def test_results_stand_beside_floors_and_ceiling(finished: Path) -> None:
    results = json.loads((finished / "results.json").read_text())
    assert [row["setting"] for row in results] == [
        "label-free",
        "label-free, with unlabelled photos",
    ]
    for row in results:
        assert row["protocol"] == "melas2021"
        assert set(row["floors"]) == {"everything", "ellipse", "centre"}
        assert row["ceiling"]["n_images"] == 8


def test_report_is_one_page_without_outside_links(finished: Path) -> None:
    page = (finished / "report.html").read_text()
    assert "<img" in page
    assert 'src="http' not in page
    assert "with unlabelled photos" in page


def test_model_carries_licence_and_results(finished: Path) -> None:
    segmenter = Segmenter.from_pretrained(finished / "model", device="cpu")
    assert "Apache-2.0" in segmenter.card["licence"]
    assert segmenter.card["results"][0]["dataset"] == "pets"


def test_finished_run_is_not_done_again(
    finished: Path, photos: Path, real: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(run_module, "_Job")
    whole_job(finished, photos, real)


def test_other_options_in_the_same_folder_are_refused(
    finished: Path, photos: Path, real: Path
) -> None:
    with pytest.raises(InputError, match="count: 24 there, 48 now"):
        whole_job(finished, photos, real, replace(TINY, count=48))


@pytest.mark.slow
def test_interrupted_run_ends_as_an_uninterrupted_one(
    finished: Path, photos: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def killed(*arguments: object) -> None:
        raise KilledError

    out = tmp_path / "world"
    for stage in ("student", "improve", "measure"):
        with monkeypatch.context() as patch:
            patch.setattr(run_module._Job, stage, killed)
            with pytest.raises(KilledError):
                whole_job(out, photos, real)
    whole_job(out, photos, real)
    for name in ("model/model.safetensors", "results.json"):
        assert (out / name).read_bytes() == (finished / name).read_bytes()


@pytest.mark.slow
def test_ensemble_averages_students_of_both_directions(real: Path, tmp_path: Path) -> None:
    config = replace(TINY, ensemble=True, count=None)
    segmenter = run(
        WORLD, tmp_path / "out", config=config, eval_data=[real], device="cpu", quiet=True
    )
    assert len(segmenter.members) == 2
    assert sorted(path.name for path in (tmp_path / "out/student").iterdir()) == ["dark", "light"]


def test_bad_evaluation_data_is_refused_before_any_work(tmp_path: Path) -> None:
    make_dataset(tmp_path / "bad", [blob(i) for i in range(3)])
    broken = sorted((tmp_path / "bad" / "masks").iterdir())[:2]
    for path in broken:
        path.write_bytes(b"broken")
    with pytest.raises(InputError, match=f"(?s){broken[0].name}.*{broken[1].name}"):
        run(WORLD, tmp_path / "out", config=TINY, eval_data=[tmp_path / "bad"], quiet=True)
    assert not (tmp_path / "out").exists()


def test_presets_follow_the_paper() -> None:
    paper = PRESETS["paper"]
    assert (paper.student.steps, paper.student.batch, paper.student.decay_at) == (12_000, 95, 8_000)
    assert paper.student.width == 1
    assert paper.labelers["directions"].generation_radius == 5


def test_dataset_folder_is_all_that_training_needs(tmp_path: Path) -> None:
    labeler = fitted()
    data = synthesize(labeler.generator, labeler, count=8, out=tmp_path / "data", quiet=True)
    config = replace(STUDENT, steps=2, decay_at=1)
    segmenter = train(data, out=tmp_path / "run", config=config, device="cpu", quiet=True)
    assert segmenter.input_size == labeler.generator.info.size
