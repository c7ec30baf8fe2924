"""The command line as a user runs it: exit codes, messages, files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from latentseg import cli
from latentseg.images import read_image, read_mask, write_image, write_mask
from latentseg.labelers.registry import kinds
from tests.app.painted import begin
from tests.datasets.fabricate import blob, make_dataset
from tests.labelers.test_few_shot import painting, write_painting

ROOT = Path(__file__).parents[1]
WORLD = "tests.world:World"


@pytest.fixture
def latentseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["latentseg", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_nothing_heavy_is_imported_for_the_help() -> None:
    heavy = {"torch", "numpy", "scipy", "kornia", "PIL", "matplotlib", "torchvision", "timm"}
    program = f"import sys, latentseg.cli; print(sorted({heavy!r} & sys.modules.keys()))"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("command", ["fit", "run"])
@pytest.mark.parametrize(
    ("method", "settings"),
    [(kind.name, settings) for kind in kinds().values() for settings in kind.settings],
)
def test_help_shows_the_defaults_of_every_published_settings(command, method, settings, latentseg):
    named = [method] if command == "fit" else ["--method", method]
    code, out, _ = latentseg(command, *named, "--settings", settings, "--help")
    assert code == 0
    assert "--settings" in out


def test_help_names_every_command(latentseg) -> None:
    code, out, _ = latentseg("--help")
    assert code == 0
    assert all(command in out for command in cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_flag_of_every_command_is_explained(latentseg, command: str) -> None:
    code, out, _ = latentseg(command, "--help")
    assert code == 0
    assert "--device" in out
    words = " ".join(out.split())
    assert "{None}" not in words  # an option is left out, never given as None


def test_version_is_printed(latentseg) -> None:
    assert latentseg("--version")[:2] == (0, "0.1.0\n")


def test_unknown_flag_is_a_usage_error_with_a_suggestion(latentseg) -> None:
    code, _, err = latentseg("synth", "pets64", "labeler", "out", "--cuont", 3)
    assert code == 2
    assert "--count" in err


def test_error_is_one_message_and_debug_shows_where(latentseg, tmp_path: Path) -> None:
    code, out, err = latentseg("fit", "directions", "no-such-generator", tmp_path / "out")
    assert (code, out) == (1, "")
    assert "no such generator" in err
    assert "Traceback" not in err
    _, _, err = latentseg("fit", "directions", "no-such-generator", tmp_path / "out", "--debug")
    assert "Traceback" in err


def test_missing_and_empty_folders_are_named(latentseg, tmp_path: Path) -> None:
    for command in (["check", tmp_path / "none"], ["train", tmp_path / "none", tmp_path / "out"]):
        code, _, err = latentseg(*command)
        assert code == 1
        assert "none" in err
    code, _, err = latentseg("train-generator", tmp_path, tmp_path / "out")
    assert code == 1
    assert "no images" in err


def test_check_accepts_a_sound_dataset_and_lists_every_problem(latentseg, tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", [blob(i) for i in range(4)])
    code, out, _ = latentseg("check", tmp_path / "data")
    assert code == 0
    assert "sound" in out
    masks = sorted((tmp_path / "data" / "masks").iterdir())
    masks[0].unlink()
    masks[1].write_bytes(b"broken")
    code, _, err = latentseg("check", tmp_path / "data")
    assert code == 1
    assert masks[0].stem in err
    assert masks[1].name in err


def test_doctor_and_generators_answer_in_json(latentseg) -> None:
    code, out, _ = latentseg("doctor", "--json", "-")
    assert code == 0
    assert json.loads(out)["latentseg"] == "0.1.0"
    code, out, _ = latentseg("generators", "--json", "-")
    assert code == 0
    assert [row["name"] for row in json.loads(out)["bundled"]] == ["pets64", "street96"]


def test_stages_one_by_one_from_generator_to_masks_of_photos(latentseg, tmp_path: Path) -> None:
    labeler, data, student, masks = (
        tmp_path / name for name in ("labeler", "data", "run", "masks")
    )
    quick = ["--search-steps", 12, "--search-restarts", 1, "--radius", 2]
    assert latentseg("fit", "directions", WORLD, labeler, *quick)[0] == 0
    assert (labeler / "contact_sheet.png").is_file()
    assert latentseg("synth", WORLD, labeler, data, "--count", 24)[0] == 0
    assert latentseg("check", data)[0] == 0
    small = ["--preset", "quick", "--width", 0.125, "--steps", 6, "--batch", 8]
    assert latentseg("train", data, student, *small)[0] == 0
    code, out, _ = latentseg("eval", student, data, "--json", tmp_path / "result.json")
    assert code == 0
    assert "best fixed ellipse" in out
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["protocol"] == "melas2021"
    assert len(result["per_image"]) == 24
    photo = tmp_path / "photo.jpg"
    write_image(photo, np.full((50, 70, 3), 128, np.uint8))
    code, out, _ = latentseg("predict", student, photo, data / "images", masks)
    assert code == 0
    assert "25 photos" in out
    assert read_mask(masks / "photo_mask.png").shape == (50, 70)
    assert read_image(masks / "photo_overlay.jpg").shape == (50, 70, 3)
    assert (masks / "photo_cutout.png").is_file()


def test_masks_of_any_tool_are_measured(latentseg, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", [blob(i) for i in range(3)])
    for name, _, truth in list(dataset)[:2]:
        write_mask(tmp_path / "masks" / f"{name}.png", truth)
    options = ["--protocol", "feng2023", "--json", tmp_path / "result.json"]
    code, out, err = latentseg("eval", tmp_path / "masks", tmp_path / "data", *options)
    assert code == 0
    assert "2 images" in out
    assert "1 photos have no mask: 0002." in err
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["mean_iou"], result["trimap_mean"], result["n_images"]) == (1, 1, 2)
    assert "ellipse" in result["floors"]


def test_judge_scores_a_labeler_against_a_segmenter(latentseg, tmp_path: Path, model: Path) -> None:
    labeler = tmp_path / "labeler"
    quick = ["--search-steps", 12, "--search-restarts", 1, "--radius", 2]
    assert latentseg("fit", "directions", WORLD, labeler, *quick)[0] == 0
    options = ["--model", model, "--count", 5, "--json", tmp_path / "result.json"]
    code, out, _ = latentseg("judge", WORLD, labeler, *options)
    assert code == 0
    assert "5 images" in out
    assert "Pseudo truth" in out
    (result, *_) = json.loads((tmp_path / "result.json").read_text())
    assert (result["protocol"], result["n_images"]) == ("feng2023", 5)
    assert result["setting"] == "all images"
    code, _, err = latentseg("judge", WORLD, labeler, "--model", tmp_path / "no.tflite")
    assert code == 1
    assert "no.tflite: there is no such file" in err


def test_predict_goes_on_after_a_bad_photo_and_names_it(
    latentseg, tmp_path: Path, model: Path
) -> None:
    photos = tmp_path / "photos"
    write_image(photos / "good.png", np.zeros((40, 40, 3), np.uint8))
    (photos / "bad.jpg").write_bytes(b"not a picture")
    code, out, err = latentseg("predict", model, photos, tmp_path / "out")
    assert code == 1
    assert "1 photos" in out
    assert "bad.jpg" in err
    assert (tmp_path / "out" / "good_mask.png").is_file()
    code, _, err = latentseg("predict", model, photos)
    assert code == 2
    assert "output folder" in err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    from latentseg.students.networks import build_network
    from latentseg.students.segmenter import Segmenter

    network = build_network("unet", 2, width=0.125)
    segmenter = Segmenter([network], classes=("pet",), input_size=(32, 32), width=0.125)
    segmenter.save(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.slow
def test_terminated_command_says_so_and_the_same_command_continues(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for index in range(8):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        write_image(tmp_path / "photos" / f"{index}.png", picture)
    command = [
        sys.executable,
        "-c",
        "from latentseg.cli import main; main()",
        "train-generator",
        str(tmp_path / "photos"),
        str(tmp_path / "out"),
        "--size",
        "16",
        "16",
        "--channels",
        "8",
        "8",
        "8",
        "--batch",
        "4",
        "--report-images",
        "32",
        "--device",
        "cpu",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*command, "--images", "1000000"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    deadline = time.monotonic() + 60
    while (
        not list((tmp_path / "out").glob("checkpoints/*/MANIFEST.json"))
        and time.monotonic() < deadline
    ):
        time.sleep(0.1)
    process.terminate()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "continues" in err
    assert "Traceback" not in err
    kept = sorted((tmp_path / "out" / "checkpoints").iterdir())[-1]
    step = int(kept.name.removeprefix("step-"))
    images = (step + 4) * 4
    done = subprocess.run(
        [*command, "--images", str(images)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0
    assert f"continuing from step {step}" in done.stderr


def test_checkpoint_is_converted_fitted_and_drawn_from(latentseg, tmp_path: Path) -> None:
    case = ROOT / "tests" / "data" / "golden" / "stylegan2-ada" / "cond16-orig"
    pickle = case / "network-snapshot-025000.pkl"
    folder, labeler, data = (tmp_path / name for name in ("generator", "labeler", "data"))
    code, out, err = latentseg(
        "convert", f"stylegan2:{pickle}", folder, "--option", "psi=0.5", "--json", "-"
    )
    assert code == 0
    assert "non-commercial" in err
    config = json.loads(out)
    assert config["sampling"]["psi"] == 0.5
    assert read_image(folder / "samples.png").shape[2] == 3
    quick = ("--search-steps", 2, "--search-restarts", 1, "--classes", 1, "--quiet")
    assert latentseg("fit", "directions", folder, labeler, *quick)[0] == 0
    assert json.loads((labeler / "labeler.json").read_text())["generator"]["classes"] == [1]
    code, _, _ = latentseg("synth", folder, labeler, data, "--count", 2, "--quiet")
    assert code in (0, 1)  # random weights: the filters may refuse every sample
    code, _, err = latentseg("fit", "directions", folder, tmp_path / "x", "--classes", 7)
    assert code == 2
    assert "0 to 2" in err


def test_wrong_option_and_wrong_family_of_a_checkpoint_are_explained(latentseg, tmp_path) -> None:
    pickle = ROOT / "tests/data/golden/stylegan2-ada/uncond32/network-snapshot-025000.pkl"
    for option, message in (
        ("psi", "NAME=VALUE"),
        ("psi=3", "--option psi: expected above 0"),
        ("size=3", "--option: stylegan2 has no size"),
    ):
        code, _, err = latentseg("convert", pickle, tmp_path / "out", "--option", option)
        assert code == 2
        assert message in err
    code, _, err = latentseg("convert", f"biggan:{pickle}", tmp_path / "out")
    assert code == 1
    assert "Families that fit: stylegan2" in err


def test_generators_shows_abilities_families_and_the_template(latentseg, tmp_path: Path) -> None:
    code, out, _ = latentseg("generators", "--json", tmp_path / "all.json")
    assert code == 0
    found = json.loads((tmp_path / "all.json").read_text())
    assert "variants" in found["families"]["biggan"]
    assert all(name in out for name in found["families"])
    code, out, _ = latentseg("generators", "--family", "stylegan2")
    assert "psi" in out
    assert "non-commercial" in out
    code, _, err = latentseg("generators", "--family", "stylegan9")
    assert (code, "Known: " in err) == (2, True)
    code, out, _ = latentseg("generators", "--template")
    assert code == 0
    compile(out, "template.py", "exec")


def test_program_is_opened_only_when_trusted(latentseg, tmp_path: Path) -> None:
    program = ROOT / "tests/data/golden/torch-export/conv32/model/generator.pt2"
    fit = (
        "fit",
        "directions",
        program,
        tmp_path / "out",
        "--search-steps",
        2,
        "--search-restarts",
        1,
    )
    code, _, err = latentseg(*fit)
    assert code == 1
    assert "--trust-code" in err
    assert latentseg(*fit, "--trust-code", "--quiet")[0] == 0


def test_flags_of_a_method_that_takes_no_part_are_refused(latentseg, tmp_path: Path) -> None:
    for arguments in (
        ("fit", "directions", WORLD, tmp_path / "out", "--k", 3),
        ("fit", "style-mixing", WORLD, tmp_path / "out", "--radius", 2),
        ("run", WORLD, tmp_path / "out", "--method", "style-mixing", "--search-steps", 3),
        ("run", WORLD, tmp_path / "out", "--method", "feature-clusters", "--variants", 3),
    ):
        code, _, err = latentseg(*arguments)
        assert code == 2
        assert "which is not asked for" in err
    assert not (tmp_path / "out").exists()


def test_style_mixing_from_generator_to_named_parts(latentseg, tmp_path: Path) -> None:
    world, labeler, data = "tests.parts_world:PartsWorld", tmp_path / "labeler", tmp_path / "data"
    code, out, _ = latentseg("fit", "style-mixing", world, labeler, "--k", 4, "--quiet")
    assert code == 0
    assert "classes.html" in out
    found = json.loads((labeler / "classes.json").read_text())
    named = {
        number: "background" if name == "background" else "thing" for number, name in found.items()
    }
    (labeler / "classes.json").write_text(json.dumps(named))
    assert latentseg("synth", world, labeler, data, "--count", 3, "--quiet")[0] == 0
    assert json.loads((data / "dataset.json").read_text())["classes"] == ["thing"]


def test_labelers_can_agree_and_vote_on_a_dataset(latentseg, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    quick = ("--search-steps", 8, "--search-restarts", 1, "--radius", 2, "--quiet")
    assert latentseg("fit", "directions", WORLD, one, *quick)[0] == 0
    fit = ("fit", "style-mixing", WORLD, other, "--first-mixed-layer", 1, "--quiet")
    assert latentseg(*fit)[0] == 0
    for flag in ("--agree", "--vote"):
        data = tmp_path / flag.strip("-")
        done = latentseg("synth", WORLD, other, data, flag, one, "--count", 3, "--quiet")
        assert done[0] == 0
        method = json.loads((data / "dataset.json").read_text())["labeler"]["method"]
        assert method in ("agreement", "voting")


def test_painted_images_teach_a_head_that_labels_a_dataset(latentseg, tmp_path: Path) -> None:
    painted, head, data = tmp_path / "painted", tmp_path / "head", tmp_path / "data"
    write_painting(painted, painting(1))
    world = "tests.few_shot_world:FewShotWorld"
    assert latentseg("fit", "few-shot", world, head, "--painted", painted, "--quiet")[0] == 0
    assert latentseg("synth", world, head, data, "--count", 3, "--quiet")[0] == 0
    assert json.loads((data / "dataset.json").read_text())["classes"] == ["body", "head", "foot"]
    code, _, err = latentseg("fit", "few-shot", world, tmp_path / "x")
    assert (code, "--painted" in err) == (2, True)


def test_clusters_of_features_label_without_labels(latentseg, tmp_path: Path) -> None:
    world, out = "tests.few_shot_world:FewShotWorld", tmp_path / "labeler"
    assert latentseg("fit", "feature-clusters", world, out, "--quiet")[0] == 0
    assert json.loads((out / "labeler.json").read_text())["method"] == "feature-clusters"


def test_painting_leaves_and_comes_back(latentseg, tmp_path: Path) -> None:
    painting_folder, away = tmp_path / "painting", tmp_path / "away"
    begin(painting_folder)
    code, out, _ = latentseg("paint", WORLD, painting_folder, "--export", away)
    assert code == 0
    assert "0% painted" in out
    for mask in (away / "masks").glob("*.png"):
        write_mask(mask, np.ones((24, 32), np.uint8))
    code, out, _ = latentseg("paint", WORLD, painting_folder, "--import", away / "masks")
    assert code == 0
    assert "100% painted" in out
