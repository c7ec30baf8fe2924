"""Parts from painted images, as a user meets them: painting in, segmenter and report out."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg import cli
from latentseg.app.exchange import import_masks
from latentseg.app.painting import start_painting
from latentseg.datasets.shard_files import is_sharded
from latentseg.errors import InputError
from latentseg.evaluation.metrics import confusion_matrix, iou
from latentseg.generators import load_generator
from latentseg.images import read_mask, to_pixels, write_image, write_mask
from latentseg.labelers.few_shot import fit_few_shot
from latentseg.labelers.painted import read_painting
from latentseg.run import PRESETS, preset, run
from tests.few_shot_world import FewShotWorld
from tests.parts_world import PARTS

WORLD = "tests.few_shot_world:FewShotWorld"
EXAMPLE = Path(__file__).parents[1] / "examples" / "street96"
SHORT = ["--count", 32, "--steps", 80, "--width", 0.25]

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def latentseg(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def command(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["latentseg", *map(str, arguments), "--quiet"])
        code = 0
        try:
            cli.main()
        except SystemExit as stopped:
            code = int(stopped.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return command


@pytest.fixture(scope="module")
def painting(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images of the world, painted without a mistake."""
    folder, world = tmp_path_factory.mktemp("painting"), FewShotWorld()
    begun = start_painting(folder / "painted", world.info.to_json(), seed=0, parts=PARTS)
    for seed in range(3):
        latents = world.sample(torch.tensor([seed]))
        chosen = begun.choose(seed, to_pixels(world(latents))[0], None)
        write_mask(folder / "masks" / f"{chosen.name}.png", world.masks(latents)[0].numpy())
    import_masks(folder / "painted", folder / "masks")
    return folder / "painted"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight pictures with labels by name: those of the world, the parts in another order."""
    folder, world = tmp_path_factory.mktemp("photos") / "real", FewShotWorld()
    latents = world.sample(torch.arange(100, 108))
    ids = np.array([0, *range(len(PARTS), 0, -1)], np.uint8)
    for i, (image, mask) in enumerate(
        zip(to_pixels(world(latents)), world.masks(latents).numpy(), strict=True)
    ):
        write_image(folder / "images" / f"{i}.png", image)
        write_mask(folder / "masks" / f"{i}.png", ids[mask])
    description = {"classes": PARTS[::-1], "ignore": 255, "foreground": None}
    (folder / "dataset.json").write_text(json.dumps(description))
    return folder


@pytest.mark.slow
def test_run_from_painted_images_to_parts_of_photos(
    latentseg: Command, painting: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = ["run", WORLD, out, "--method", "few-shot", "--painted", painting, "--eval", photos]
    code, shown, err = latentseg(*asked, "--preset", "quick", *SHORT)
    assert code == 0, err
    assert "IoU of each class" in shown
    (result,) = json.loads((out / "results.json").read_text())
    assert result["protocol"] == "tritrong2021"
    assert result["setting"] == "3 painted images"
    assert set(result["class_iou"]) == {"background", *PARTS}
    assert result["mean_iou"] > 2 * result["floors"]["background"]["mean_iou"]
    page = (out / "report.html").read_text()
    assert "No mask was painted" not in page
    assert "IoU of each class" in page
    code, shown, _ = latentseg("predict", out, photos / "images", tmp_path / "masks")
    assert code == 0
    assert set(np.unique(read_mask(tmp_path / "masks" / "0_mask.png"))) <= {0, 1, 2, 3}


def test_run_refuses_few_shot_without_painting_and_painting_without_few_shot(
    painting: Path, tmp_path: Path
) -> None:
    for config, painted in ((preset("quick", "few-shot"), None), (PRESETS["quick"], painting)):
        with pytest.raises(InputError, match=r"`painted`: .* painted images"):
            run(WORLD, tmp_path / "run", config=config, painted=painted, quiet=True)
    assert not (tmp_path / "run").exists()


def test_soft_labels_go_through_synth_shards_check_and_train(
    latentseg: Command, painting: Path, tmp_path: Path
) -> None:
    head, student = tmp_path / "head", ["--preset", "quick", "--steps", 4, "--width", 0.125]
    assert latentseg("fit", "few-shot", WORLD, head, "--painted", painting)[0] == 0
    for layout in ("folder", "shards"):
        data = tmp_path / layout
        asked = ["synth", WORLD, head, data, "--count", 70, "--soft", "--format", layout]
        code, shown, err = latentseg(*asked, "--stats")
        assert code == 0, err
        assert "look_alikes" in shown
        assert data.with_name(f"{layout}.statistics.png").is_file()
        assert is_sharded(data) == (layout == "shards")
        code, _, err = latentseg("check", data)
        assert code == 0, err
        assert latentseg("train", data, tmp_path / f"{layout}-run", *student)[0] == 0
    models = [(tmp_path / f"{each}-run/model/model.safetensors") for each in ("folder", "shards")]
    assert all(path.is_file() for path in models)


def test_datasets_go_to_other_tools_and_back(
    latentseg: Command, photos: Path, tmp_path: Path
) -> None:
    code, _, err = latentseg("convert-dataset", photos, tmp_path / "coco", "--format", "coco")
    assert code == 0, err
    assert (
        latentseg("convert-dataset", tmp_path / "coco", tmp_path / "back", "--format", "folder")[0]
        == 0
    )
    for path in sorted((photos / "masks").iterdir()):
        assert np.array_equal(read_mask(path), read_mask(tmp_path / "back" / "masks" / path.name))
    code, _, err = latentseg("synth", WORLD, tmp_path / "none", tmp_path / "out", "--workers", 2)
    assert code == 2
    assert "--format shards" in err


def test_invert_finds_latents_and_masks_of_photos(
    latentseg: Command, photos: Path, painting: Path, tmp_path: Path
) -> None:
    head, out = tmp_path / "head", tmp_path / "out"
    assert latentseg("fit", "few-shot", WORLD, head, "--painted", painting)[0] == 0
    picture = photos / "images" / "0.png"
    code, shown, err = latentseg(
        "invert", WORLD, picture, out, "--labeler", head, "--steps", 5, "--start", "drawn"
    )
    assert code == 0, err
    assert "dB" in shown
    assert read_mask(out / "0_mask.png").shape == (32, 32)


def test_example_painting_is_complete() -> None:
    painted = read_painting(EXAMPLE / "painted", load_generator("street96", device="cpu"))
    assert painted.classes == ("hair", "skin", "upper", "lower", "shoes")
    assert len(painted.names) == 10
    assert set(np.unique(painted.masks)) == {0, 1, 2, 3, 4, 5}


@pytest.mark.slow
def test_head_of_eight_example_images_sees_the_parts_of_two_others() -> None:
    generator = load_generator("street96", device="cpu")
    painted = read_painting(EXAMPLE / "painted", generator)
    eight = replace(
        painted, names=painted.names[:8], seeds=painted.seeds[:8], masks=painted.masks[:8]
    )
    labeler = fit_few_shot(generator, eight, quiet=True)
    masks = labeler.label(generator.sample(torch.tensor(painted.seeds[8:]))).masks.numpy()
    pairs = zip(masks, painted.masks[8:], strict=True)
    confusion = np.sum([confusion_matrix(*pair, n_classes=6) for pair in pairs], axis=0)
    assert iou(confusion).mean() > 0.5
