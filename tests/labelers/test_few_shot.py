import json
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.errors import CorruptFileError, DivergedError, InputError
from latentseg.files import read_json, write_json
from latentseg.images import IGNORE, Pixels, read_image, to_pixels, write_image, write_mask
from latentseg.labelers.features import Hypercolumns
from latentseg.labelers.few_shot import FewShotLabeler, answer, fit_few_shot, painted_features
from latentseg.labelers.few_shot_settings import (
    KIND,
    OURS,
    SETTINGS,
    FewShotConfig,
    HeadTrainConfig,
)
from latentseg.labelers.head_training import HeadTraining, balance, segmentation_loss
from latentseg.labelers.painted import PaintedImages, read_painting
from latentseg.training_states import Checkpoints
from tests.closeness import assert_same_masks
from tests.few_shot_world import FewShotWorld
from tests.parts_world import PARTS, PartsWorld
from tests.world import seeds

QUICK = replace(SETTINGS["ours"], training=replace(OURS, steps=150, pixels=512))


def painting(n: int = 1, *, first: int = 0) -> PaintedImages:
    """The first images of the world, painted without a fault."""
    world, drawn = FewShotWorld(), tuple(range(first, first + n))
    masks = world.masks(world.sample(torch.tensor(drawn))).numpy()
    return PaintedImages(PARTS, tuple(f"{seed:04d}" for seed in drawn), drawn, masks)


@cache
def fitted() -> FewShotLabeler:
    return fit_few_shot(FewShotWorld(), painting(), config=QUICK, quiet=True)


def mean_iou(masks: Pixels, truth: Pixels) -> float:
    pairs = [(masks == i, truth == i) for i in range(len(PARTS) + 1)]
    return float(np.mean([(a & b).sum() / (a | b).sum() for a, b in pairs]))


def score(labeler: FewShotLabeler) -> float:
    """Mean IoU on images that were not painted."""
    world = FewShotWorld()
    latents = world.sample(seeds(32))
    return mean_iou(labeler.label(latents).masks.numpy(), world.masks(latents).numpy())


def write_painting(folder: Path, made: PaintedImages, *, size: tuple[int, int] = (32, 32)) -> None:
    world = FewShotWorld(size)
    for name, seed, mask in zip(made.names, made.seeds, made.masks, strict=True):
        with torch.no_grad():
            image = to_pixels(world(world.sample(torch.tensor([seed]))))[0]
        write_image(folder / "images" / f"{name}.png", image)
        write_mask(folder / "masks" / f"{name}.png", mask)
    write_json(folder / "dataset.json", {"classes": list(made.classes), "ignore": IGNORE})
    images = [
        {"name": name, "seed": seed, "label": None, "is_done": True}
        for name, seed in zip(made.names, made.seeds, strict=True)
    ]
    classes = [{"name": name, "colour": "#00ff00"} for name in made.classes]
    record = {"format": 1, "generator": world.info.to_json(), "seed": 0}
    write_json(folder / "painting.json", record | {"classes": classes, "images": images})


def test_fit_when_one_image_is_painted_then_parts_of_all_others_are_found():
    assert score(fitted()) >= 0.95


def test_fit_when_few_pixels_are_painted_then_the_others_do_not_count():
    made = painting(2)
    masks = made.masks.copy()
    masks[:, :, ::2] = IGNORE
    masks[:, 1::2] = IGNORE
    labeler = fit_few_shot(FewShotWorld(), replace(made, masks=masks), config=QUICK, quiet=True)
    assert score(labeler) >= 0.9


def test_fit_when_labels_are_shuffled_then_nothing_is_learned():
    made = painting()
    order = np.random.default_rng(0).permutation(made.masks.size)
    shuffled = replace(made, masks=made.masks.ravel()[order].reshape(made.masks.shape))
    labeler = fit_few_shot(FewShotWorld(), shuffled, config=QUICK, quiet=True)
    assert score(labeler) < 0.35


@pytest.mark.parametrize(
    ("head", "steps", "least"), [("cnn-s", 20, 0.5), ("cnn", 40, 0.3), ("ensemble", 15, 0.7)]
)
def test_fit_when_with_another_head_then_it_learns(head, steps, least):
    training = replace(OURS, steps=steps, pixels=256, class_weights="balanced", flip=True)
    config = replace(QUICK, head=head, training=training, max_uncertainty_share=0.0)
    made = painting(2)
    labeler = fit_few_shot(FewShotWorld(), made, config=config, quiet=True)
    masks = labeler.label(FewShotWorld().sample(torch.tensor(made.seeds))).masks.numpy()
    assert mean_iou(masks, made.masks) > least


def test_label_when_the_batch_is_split_then_masks_and_verdicts_agree():
    labeler = fitted()
    latents = labeler.generator.sample(seeds(9))
    whole = labeler.label(latents)
    parts = [labeler.label(latents[rows]) for rows in (slice(0, 1), slice(1, 5), slice(5, 9))]
    assert_same_masks(whole.masks, torch.cat([part.masks for part in parts]))
    assert torch.equal(whole.rejected_by, torch.cat([part.rejected_by for part in parts]))
    torch.testing.assert_close(whole.confidence, torch.cat([part.confidence for part in parts]))


def test_soft_labels_when_asked_then_they_are_probabilities_with_the_masks_as_maxima():
    labeler = fitted()
    latents = labeler.generator.sample(seeds(3))
    soft = labeler.label_softly(latents)[1]
    assert soft.shape == (3, 4, 32, 32)
    torch.testing.assert_close(soft.sum(dim=1), torch.ones(3, 32, 32))
    assert_same_masks(soft.argmax(dim=1), labeler.label(latents).masks)


def test_soft_labels_when_columns_are_of_another_size_then_they_are_at_that_of_the_images():
    config = replace(QUICK, size=(16, 16))
    labeler = fit_few_shot(FewShotWorld(), painting(), config=config, quiet=True)
    soft = labeler.label_softly(labeler.generator.sample(seeds(2)))[1]
    assert soft.shape == (2, 4, 32, 32)
    assert score(labeler) > 0.7


def test_label_when_the_worst_tenth_is_refused_then_about_a_tenth_is():
    labelled = fitted().label(fitted().generator.sample(seeds(200, key=5)))
    refused = labelled.rejected_by == FewShotLabeler.filters.index("uncertainty") + 1
    assert 0.03 < float(refused.double().mean()) < 0.25


def test_label_when_area_or_confidence_are_asked_for_then_the_first_filter_is_named():
    def verdicts(**options: float) -> set[int]:
        config = replace(QUICK, max_uncertainty_share=0.0, **options)
        labeler = FewShotLabeler(
            FewShotWorld(), fitted().heads, config=config, classes=PARTS, seed=0
        )
        return set(labeler.label(labeler.own_latents(4)).rejected_by.tolist())

    assert verdicts() == {0}
    assert verdicts(max_area=0.0, min_confidence=1.0) == {1}
    assert verdicts(min_confidence=1.0) == {2}


def test_fit_when_given_a_folder_then_it_writes_all_and_loads_the_same(tmp_path: Path):
    write_painting(tmp_path / "painted", painting())
    out = tmp_path / "out"
    labeler = fit_few_shot(FewShotWorld(), tmp_path / "painted", config=QUICK, out=out, quiet=True)
    latents = labeler.generator.sample(seeds(4))
    assert_same_masks(labeler.label(latents).masks, fitted().label(latents).masks)
    assert json.dumps(labeler.info) == json.dumps(fitted().info)
    quality = read_json(out / "quality.json")
    assert min(quality["iou_on_painted_pixels"].values()) > 0.95
    assert quality["kept"] + sum(quality["removed"].values()) == quality["samples"]
    assert read_image(out / "contact_sheet.png").shape[1] > 16 * 96
    assert not (out / "checkpoints").exists()
    again = fit_few_shot(FewShotWorld(), painting(), config=QUICK, out=out, quiet=True)
    assert_same_masks(again.label(latents).masks, labeler.label(latents).masks)


def test_fit_when_the_folder_holds_what_other_images_taught_then_it_is_refused(tmp_path: Path):
    fit_few_shot(FewShotWorld(), painting(), config=QUICK, out=tmp_path, quiet=True)
    with pytest.raises(InputError, match="painting"):
        fit_few_shot(FewShotWorld(), painting(2), config=QUICK, out=tmp_path, quiet=True)


def test_labeler_when_any_file_is_damaged_or_of_another_generator_then_it_is_refused(
    tmp_path: Path,
):
    fitted().save(tmp_path)
    world = FewShotWorld()
    world.info = replace(world.info, sha256="f" * 64)
    with pytest.raises(InputError, match="latentseg fit few-shot"):
        FewShotLabeler.load(tmp_path, world)
    for path in list(tmp_path.iterdir()):
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises((CorruptFileError, InputError)):
            FewShotLabeler.load(tmp_path, FewShotWorld())
        path.write_bytes(content)


@pytest.mark.parametrize("head", ["mlp-small", "cnn-s", "ensemble"])
def test_training_when_interrupted_and_continued_then_weights_are_the_same(
    head: str, tmp_path: Path
):
    columns = Hypercolumns(FewShotWorld())
    features = painted_features(columns, painting(2))
    steps = 6 if head == "ensemble" else 12
    config = replace(OURS, steps=steps, pixels=128, checkpoint_every=4)

    def training(checkpoints: Checkpoints | None) -> HeadTraining:
        return HeadTraining(features, head, 4, config=config, checkpoints=checkpoints)

    whole = training(None)
    assert whole.run(quiet=True)
    checkpoints, asked = Checkpoints(tmp_path), []
    cut = training(checkpoints)
    assert not cut.run(quiet=True, is_wanted=lambda: len(asked) < 9 and not asked.append(0))
    rest = training(checkpoints)
    assert rest.member * steps + rest.step in (6, 8)  # states are kept where a member begins, too
    assert rest.run(quiet=True)
    for name, tensor in whole.heads.state_dict().items():
        assert torch.equal(tensor, rest.heads.state_dict()[name]), name


def test_training_when_features_are_not_finite_then_it_stops():
    world = FewShotWorld()
    world.mixtures[0] = world.mixtures[0] * torch.inf
    with pytest.raises(DivergedError, match="learning rate"):
        fit_few_shot(world, painting(), config=QUICK, quiet=True)


def test_training_when_memory_is_short_then_a_cnn_learns_from_rows():
    columns = Hypercolumns(FewShotWorld(), memory=600_000)
    features = painted_features(columns, painting())
    training = HeadTraining(features, "cnn-s", 4, config=replace(OURS, steps=40))
    seen: list[int] = []
    (head,) = training.heads.heads
    head.first.register_forward_pre_hook(lambda module, given: seen.append(given[0].shape[2]))
    assert training.run(quiet=True)
    assert max(seen) < 32
    found = answer(training.heads, Hypercolumns(FewShotWorld()), features.latents)
    masks = found.probabilities.argmax(dim=1).numpy()
    assert mean_iou(masks, painting().masks) > 0.5


def test_loss_when_pixels_are_not_painted_then_they_have_no_gradient():
    logits = torch.zeros(1, 3, 2, 2, requires_grad=True)
    mask = torch.tensor([[[0, IGNORE], [2, IGNORE]]], dtype=torch.uint8)
    segmentation_loss(logits, mask, None).backward()
    assert logits.grad is not None
    assert logits.grad[..., 1].abs().max() == 0
    assert logits.grad[..., 0].abs().min() > 0


def test_balance_when_classes_are_rare_or_missing_then_weights_stay_bounded():
    masks = torch.tensor([0] * 98 + [1] + [IGNORE] * 5, dtype=torch.uint8)
    assert balance(masks, 3).tolist() == pytest.approx([99 / (3 * 98), 10, 1])


def test_fit_when_the_generator_has_no_features_then_it_is_refused_before_any_work(
    tmp_path: Path,
):
    world = PartsWorld()
    with pytest.raises(InputError, match=r"It can serve: .*directions"):
        fit_few_shot(world, tmp_path / "nothing", out=tmp_path / "out")
    assert world.draws == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("masks", "named"),
    [
        (np.full((1, 32, 32), IGNORE, np.uint8), "no pixel is painted"),
        (np.tile(np.array([0, 1], np.uint8), (1, 32, 16)), "painted nowhere: head, foot"),
        (np.tile(np.array([1, 2, 3, 3], np.uint8), (1, 32, 8)), "painted nowhere: background"),
        (np.full((1, 32, 32), 7, np.uint8), r"pixel \(0, 0\) has the class id 7"),
        (np.zeros((1, 16, 16), np.uint8), "16 x 16"),
    ],
)
def test_fit_when_painted_images_cannot_be_used_then_the_error_says_why(masks, named):
    with pytest.raises(InputError, match=named):
        fit_few_shot(FewShotWorld(), replace(painting(), masks=masks), quiet=True)


def test_read_when_a_folder_is_painted_then_all_of_it_is_read(tmp_path: Path):
    made = painting(2)
    write_painting(tmp_path, made)
    write_mask(tmp_path / "masks" / "0001.png", np.full((32, 32), IGNORE, np.uint8))
    found = read_painting(tmp_path, FewShotWorld())
    assert (found.classes, found.names, found.seeds) == (PARTS, ("0000",), (0,))
    assert np.array_equal(found.masks, made.masks[:1])


def test_read_when_a_folder_is_wrong_then_the_file_is_named(tmp_path: Path):
    def changed(name: str, **values: object) -> None:
        write_json(tmp_path / name, read_json(tmp_path / name) | values)

    with pytest.raises(InputError, match="latentseg paint"):
        read_painting(tmp_path, FewShotWorld())
    write_painting(tmp_path, painting())
    other = FewShotWorld()
    other.info = replace(other.info, name="other")
    other.sample = lambda seeds: FewShotWorld().sample(seeds + 1)  # pyright: ignore
    with pytest.raises(InputError, match=r"0000\.png: generator 'other' draws another image"):
        read_painting(tmp_path, other)
    write_mask(tmp_path / "masks" / "0000.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(InputError, match=r"0000\.png: 8 x 8"):
        read_painting(tmp_path, FewShotWorld())
    (tmp_path / "masks" / "0000.png").unlink()
    with pytest.raises(InputError, match="no pixel is painted"):
        read_painting(tmp_path, FewShotWorld())
    changed("dataset.json", classes=["other"])
    with pytest.raises(InputError, match="different classes"):
        read_painting(tmp_path, FewShotWorld())
    changed("painting.json", images=[{"name": "../0000", "seed": 0}])
    with pytest.raises(CorruptFileError, match="not the name of a file"):
        read_painting(tmp_path, FewShotWorld())
    changed("painting.json", images=[{"name": "0000"}])
    with pytest.raises(CorruptFileError, match="seed"):
        read_painting(tmp_path, FewShotWorld())
    changed("painting.json", format=2)
    with pytest.raises(InputError, match="format 2"):
        read_painting(tmp_path, FewShotWorld())


@pytest.mark.parametrize("config", SETTINGS.values(), ids=list(SETTINGS))
def test_config_when_written_then_it_is_read_alike(config: FewShotConfig):
    made = replace(config, size=(8, 8), layers=(0, 2))
    assert KIND.options(json.loads(json.dumps(asdict(made))), "here") == made


@pytest.mark.parametrize(
    "make",
    [
        lambda: FewShotConfig(head="tree"),  # pyright: ignore[reportArgumentType]
        lambda: FewShotConfig(min_area=2),
        lambda: FewShotConfig(memory=0),
        lambda: KIND.options({"hed": "mlp"}, "here"),
        lambda: HeadTrainConfig(steps=0),
        lambda: HeadTrainConfig(schedule="linear"),  # pyright: ignore[reportArgumentType]
        lambda: HeadTrainConfig(pixels=1),
    ],
)
def test_config_when_wrong_then_it_is_refused(make):
    with pytest.raises(InputError, match=r"expected|must be|at least|Perhaps"):
        make()
