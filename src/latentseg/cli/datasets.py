"""Commands about datasets: make one, check one."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    CommonFlags,
    GeneratorName,
    Maybe,
    OfCheckpoint,
    Out,
    Several,
    open_generator,
    tell,
    write_result,
)
from latentseg.cli.messages import usage_error
from latentseg.cli.methods import MethodFlags, flags_of, specialized
from latentseg.cli.pictures import MASKS, PICTURES, OfMasks, OfPictures
from latentseg.errors import InputError
from latentseg.files import read_json
from latentseg.labelers.agreement_settings import AgreementConfig

COMBINATION = "combination"


def synth_command() -> Callable[..., None]:
    """The command `synth`, with the thresholds for two labelers as flags."""
    flags = flags_of({COMBINATION: (AgreementConfig(), {})})
    return specialized(synth, {COMBINATION: (OmitArgPrefixes[flags], flags())})


def synth(
    generator: GeneratorName,
    labeler: Annotated[Positional[Path], arg(metavar="LABELER")],
    out: Out,
    *,
    count: int = 10_000,
    format: Literal["folder", "shards", "coco", "yolo", "voc", "hf"] = "folder",
    suffix: Literal["png", "jpg"] = "png",
    soft: bool = False,
    shard_size: Maybe[int] = None,
    workers: Maybe[int] = None,
    stats: bool = False,
    lossy: bool = False,
    agree: Maybe[Path] = None,
    vote: Maybe[Path] = None,
    combination: MethodFlags,
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """A labeled dataset: sample i depends only on (seed, i). Raise --count to go on.

    Args:
        generator: Draws the images.
        labeler: Folder written by `latentseg fit`.
        out: Folder of the dataset.
        count: Pairs in all.
        format: How it is laid out on disk: folder (PNG), shards (WebDataset tars, for many workers
            and machines), or that of another tool; see latentseg convert-dataset.
        suffix: png is lossless; jpg is smaller.
        soft: Keep the class probabilities, too, of a labeler that has them (few-shot).
        shard_size: shards: samples in each.
        workers: shards: processes on this machine. Under torchrun or Slurm each task takes its own
            shards. Any number of workers makes the same files.
        stats: Show yield, areas and look-alikes; OUT.statistics.png is a picture of them.
        lossy: yolo: accept polygons that lose more than 1 % of a mask.
        agree: Folder of another labeler, whose masks have to agree, or a sample is dropped.
        vote: Folder of another labeler, that votes on each pixel as well.
        seed: Seed of all random numbers.
    """
    from latentseg.datasets.conversion import convert_dataset as convert_all
    from latentseg.datasets.statistics import statistics
    from latentseg.distributed import rank_and_world
    from latentseg.labelers import load_labeler
    from latentseg.labelers.agreement import AgreementLabeler, VotingLabeler
    from latentseg.synthesis.shards import synthesize_shards
    from latentseg.synthesis.stream import Stream
    from latentseg.synthesis.streamed_images import StreamedImages
    from latentseg.synthesis.writers import synthesize

    if format != "shards" and (shard_size, workers) != (None, None):
        usage_error("--shard-size and --workers belong to --format shards.")
    limits = combination.configs[COMBINATION]
    opened = open_generator(generator, checkpoint, common)
    chosen = load_labeler(labeler, opened)
    if agree is not None:
        chosen = AgreementLabeler(chosen, load_labeler(agree, opened), config=limits)
    if vote is not None:
        chosen = VotingLabeler(chosen, load_labeler(vote, opened), config=limits)
    if format == "folder":
        synthesize(
            opened,
            chosen,
            count=count,
            out=out,
            seed=seed,
            suffix=suffix,
            soft=soft,
            quiet=common.quiet,
        )
    elif format == "shards":
        rank, world = rank_and_world()
        synthesize_shards(
            opened,
            chosen,
            count=count,
            out=out,
            seed=seed,
            suffix=suffix,
            soft=soft,
            shard_size=shard_size,
            workers=workers or 1,
            rank=rank,
            world=world,
            quiet=common.quiet,
        )
    else:
        images = StreamedImages(Stream(opened, chosen, seed=seed), count)
        convert_all(images, out, format=format, lossy=lossy, quiet=common.quiet)
    tell(common, str(out))
    if not (out / "dataset.json").is_file():
        return  # other machines are still at their shards
    result = read_json(out / "dataset.json")
    if stats:
        picture = out.with_name(f"{out.name}.statistics.png")
        result["statistics"] = statistics(out, picture=picture)
        tell(common, f"{json.dumps(result['statistics'], indent=2)}\nlook at: {picture}")
    write_result(common, result)


def check(
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    *,
    classes: Maybe[tuple[str, ...]] = None,
    foreground: Maybe[int] = None,
    group: Several[str] = (),
    pictures: OfPictures = PICTURES,
    masks: OfMasks = MASKS,
    common: CommonFlags = COMMON,
) -> None:
    """Every problem of a dataset at once, with file names; exit 1 if there is any.

    Args:
        dataset: Photos with masks, in any layout that convert-dataset reads.
        classes: Names of the classes, if the masks do not say them.
        foreground: The value in the masks that is the foreground, if they do not say it.
        group: Classes made of the labels: named groupings or JSON files, applied in turn.
    """
    from latentseg.datasets.real import check_dataset, open_dataset

    problems = check_dataset(
        dataset,
        classes=classes,
        foreground=foreground,
        grouping=group,
        reading=pictures.reading,
        binarize=masks.binarize,
        invert=masks.invert,
    )
    write_result(common, {"dataset": str(dataset), "problems": problems})
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{dataset}: {len(problems)} problems:\n  {listed}")
    opened = open_dataset(
        dataset,
        classes=classes,
        foreground=foreground,
        grouping=group,
        reading=pictures.reading,
        binarize=masks.binarize,
        invert=masks.invert,
    )
    for note in opened.notes:
        tell(common, f"{dataset}: {note}")
    tell(common, f"{dataset}: {len(opened)} pairs, classes {', '.join(opened.classes)}: sound")


def convert_dataset(
    source: Annotated[Positional[Path], arg(metavar="SOURCE")],
    out: Out,
    *,
    format: Literal["coco", "yolo", "folder", "voc", "hf"],
    lossy: bool = False,
    instances: bool = False,
    classes: Maybe[tuple[str, ...]] = None,
    foreground: Maybe[int] = None,
    group: Several[str] = (),
    pictures: OfPictures = PICTURES,
    masks: OfMasks = MASKS,
    common: CommonFlags = COMMON,
) -> None:
    """Labeled photos in the format of another tool, and back; masks stay exact.

    Args:
        source: Dataset folder, COCO file or folder, YOLO, PASCAL VOC or Hugging Face folder, or a
            published dataset.
        out: Folder of the result.
        format: coco (run lengths), yolo (polygons), folder (PNG, our own), voc (PNG), or hf
            (Hugging Face `datasets`).
        lossy: yolo: accept polygons that lose more than 1 % of a mask, and ignored pixels.
        instances: coco: one annotation for each connected component instead of each class.
        classes: Names of the classes, if the masks do not say them.
        foreground: The value in the masks that is the foreground, if they do not say it.
        group: Classes made of the labels: named groupings or JSON files, applied in turn.
    """
    from latentseg.datasets.conversion import convert_dataset as convert_all
    from latentseg.datasets.real import open_dataset

    dataset = open_dataset(
        source,
        classes=classes,
        foreground=foreground,
        grouping=group,
        reading=pictures.reading,
        binarize=masks.binarize,
        invert=masks.invert,
        examine=False,
    )
    folder = convert_all(
        dataset, out, format=format, lossy=lossy, instances=instances, quiet=common.quiet
    )
    tell(common, str(folder))
    write_result(common, read_json(folder / "dataset.json"))
