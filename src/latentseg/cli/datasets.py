"""Commands about datasets: make one, check one."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.common import (
    CHECKPOINT,
    COMMON,
    CommonFlags,
    GeneratorName,
    OfCheckpoint,
    Out,
    open_generator,
    tell,
    write_result,
)
from latentseg.errors import InputError
from latentseg.files import read_json


def synth(
    generator: GeneratorName,
    labeler: Annotated[Positional[Path], arg(metavar="LABELER")],
    out: Out,
    *,
    count: int = 10_000,
    format: Literal["folder"] = "folder",
    suffix: Literal["png", "jpg"] = "png",
    agree: Path | None = None,
    vote: Path | None = None,
    min_agreement: float = 0.5,
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """A labelled dataset: sample i depends only on (seed, i). Raise --count to go on.

    Args:
        generator: Draws the images.
        labeler: Folder written by `latentseg fit`.
        out: Folder of the dataset.
        count: Pairs in all.
        format: How it is laid out on disk.
        suffix: png is lossless; jpg is smaller.
        agree: Folder of another labeler, whose masks have to agree, or a sample is dropped.
        vote: Folder of another labeler, that votes on each pixel as well.
        min_agreement: Least IoU of the masks of two labelers that vote or have to agree.
        seed: Of everything random.
    """
    del format  # one layout so far; the flag is part of the promise
    from latentseg.labelers import load_labeler
    from latentseg.labelers.agreement import AgreementConfig, AgreementLabeler, VotingLabeler
    from latentseg.synthesis.writers import synthesize

    opened = open_generator(generator, checkpoint, common)
    chosen = load_labeler(labeler, opened)
    limits = AgreementConfig(min_agreement=min_agreement)
    if agree is not None:
        chosen = AgreementLabeler(chosen, load_labeler(agree, opened), config=limits)
    if vote is not None:
        chosen = VotingLabeler(chosen, load_labeler(vote, opened), config=limits)
    folder = synthesize(
        opened, chosen, count=count, out=out, seed=seed, suffix=suffix, quiet=common.quiet
    )
    tell(common, str(folder))
    write_result(common, read_json(folder / "dataset.json"))


def check(
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    *,
    classes: tuple[str, ...] | None = None,
    foreground: int | None = None,
    common: CommonFlags = COMMON,
) -> None:
    """Every problem of a dataset at once, with file names; exit 1 if there is any.

    Args:
        dataset: Photos with masks.
        classes: Names of the classes, if the masks do not say them.
        foreground: The value in the masks that is the foreground, if they do not say it.
    """
    from latentseg.evaluation.datasets import check_dataset, open_dataset

    problems = check_dataset(dataset, classes=classes, foreground=foreground)
    write_result(common, {"dataset": str(dataset), "problems": problems})
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{dataset}: {len(problems)} problems:\n  {listed}")
    opened = open_dataset(dataset, classes=classes, foreground=foreground)
    tell(common, f"{dataset}: {len(opened)} pairs, classes {', '.join(opened.classes)}: sound")
