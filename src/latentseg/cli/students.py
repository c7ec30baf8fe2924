"""Commands about students: train, measure, predict."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.common import (
    COMMON,
    CommonFlags,
    Model,
    changed,
    open_segmenter,
    tell,
    write_result,
)
from latentseg.cli.results import print_results
from latentseg.errors import InputError
from latentseg.files import read_json

if TYPE_CHECKING:
    from latentseg.students.training import TrainConfig


def train(
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    out: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    preset: Literal["quick", "standard", "paper"] = "standard",
    network: str | None = None,
    width: float | None = None,
    steps: int | None = None,
    batch: int | None = None,
    lr: float | None = None,
    augment: Literal["none", "flip", "photo"] | None = None,
    size: tuple[int, int] | None = None,
    photos: Path | None = None,
    rounds: int = 3,
    seed: int = 0,
    common: CommonFlags = COMMON,
) -> None:
    """A student: a segmentation network trained on a dataset. The same command again resumes.

    Args:
        dataset: Images with masks, synthetic or real.
        out: Folder of the training; RUN/model is the segmenter.
        preset: quick, standard or paper.
        network: "unet", or "smp:ARCHITECTURE:ENCODER" with the extra `networks`.
        width: Width of the U-Net, 1 in the paper.
        steps: Training steps.
        batch: Pairs per step.
        lr: Learning rate of Adam.
        augment: none (the paper), flip, or photo: what makes generated pictures look real.
        size: Height and width of its input; by default those of the first image.
        photos: Unlabelled photos of the same domain, for self-training afterwards.
        rounds: Rounds of self-training.
        seed: Of everything random.
    """
    from latentseg.evaluation.datasets import open_dataset
    from latentseg.students.self_training import SelfTrainingConfig, self_train
    from latentseg.students.training import PRESETS
    from latentseg.students.training import train as train_student
    from latentseg.synthesis.pairs import FolderPairs

    base = PRESETS[preset]
    config = student_config(base, network=network, width=width, steps=steps)
    config = changed(config, batch=batch, lr=lr, augment=augment)
    config = replace(config, seed=seed)
    opened = open_dataset(dataset)
    pairs = FolderPairs(opened, size=size, seed=seed)
    card = {"description": f"Trained on {dataset.absolute().name}.", "licence": _licence(dataset)}
    first = out / "student" if photos else out
    segmenter = train_student(
        pairs, out=first, config=config, card=card, device=common.device, quiet=common.quiet
    )
    if photos:
        self_train(
            segmenter,
            photos,
            pairs,
            out=out / "photos",
            config=SelfTrainingConfig(rounds=rounds, train=config),
            device=common.device,
            quiet=common.quiet,
        )
    model = out / "photos" / "model" if photos else out / "model"
    tell(common, str(model))
    write_result(common, read_json(model / "config.json"))


def evaluate(
    model: Model,
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    *,
    protocol: str = "melas2021",
    classes: tuple[str, ...] | None = None,
    foreground: int | None = None,
    limit: int | None = None,
    flip: bool = False,
    common: CommonFlags = COMMON,
) -> None:
    """Measures a segmenter on real photos, beside floors that need no look at the photo.

    Args:
        model: The segmenter.
        dataset: Photos with masks: a dataset folder, or ECSSD, DUTS, DUT-OMRON, CUB, Flowers.
        protocol: melas2021 or pooled; the convention is part of the result.
        classes: Names of the classes, if the masks do not say them.
        foreground: The value in the masks that is the foreground, if they do not say it.
        limit: At most so many photos, evenly spread.
        flip: Average the answer with that for the mirrored photo.
    """
    from latentseg.evaluation.baselines import floors
    from latentseg.evaluation.datasets import open_dataset
    from latentseg.evaluation.protocols import evaluate as measure

    opened = open_dataset(dataset, classes=classes, foreground=foreground)
    segmenter = open_segmenter(model, common)
    scorer = segmenter.mirrored() if flip else segmenter
    result = measure(scorer, opened, protocol=protocol, limit=limit, quiet=common.quiet)
    beside = floors(opened, protocol=protocol, limit=limit)
    values = {**result.to_json(), "setting": model}
    values["floors"] = {name: floor.to_json() for name, floor in beside.items()}
    print_results(common, [values])
    write_result(common, {**values, "per_image": result.to_json(per_image=True)["per_image"]})


def predict(
    model: Model,
    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="PHOTO [PHOTO ...] OUT", help="Photos or folders of photos; last the output."),
    ],
    *,
    flip: bool = False,
    common: CommonFlags = COMMON,
) -> None:
    """Masks of photos: writes NAME_mask.png, NAME_overlay.jpg and NAME_cutout.png.

    Args:
        model: The segmenter.
        paths: Photos or folders, and last the output folder.
        flip: Average the answer with that for the mirrored photo.
    """
    if len(paths) < 2:
        raise InputError(
            "predict needs at least one photo (or folder) and, last, an output folder."
        )
    from latentseg.students.prediction import predict_files

    *photos, out = paths
    written, problems = predict_files(
        open_segmenter(model, common), photos, out, flip=flip, quiet=common.quiet
    )
    tell(common, f"{len(written)} photos segmented: {out}")
    write_result(common, {"written": [str(path) for path in written], "problems": problems})
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{len(problems)} photos were left out:\n  {listed}")


def student_config(
    base: "TrainConfig", *, network: str | None, width: float | None, steps: int | None
) -> "TrainConfig":
    """`base` with other sizes; the learning rate falls at the same share of the steps."""
    if network not in (None, "unet") and width is None:
        width = 1.0  # the width of a preset is one of the U-Net
    decay_at = None if steps is None else round(steps * base.decay_at / base.steps)
    return changed(base, network=network, width=width, steps=steps, decay_at=decay_at)


def _licence(dataset: Path) -> str:
    description = dataset / "dataset.json"
    if description.is_file():
        return read_json(description).get("licence", "That of the dataset.")
    return "That of the dataset."
