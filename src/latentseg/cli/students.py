"""Commands about students: train, measure, predict."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    COMMON,
    PROCESSES,
    CommonFlags,
    Maybe,
    Model,
    Off,
    OfPreset,
    OfProcesses,
    Out,
    Several,
    changed,
    open_segmenter,
    photos_and_out,
    refuse_left_out,
    tell,
    write_result,
)
from latentseg.cli.messages import usage_error
from latentseg.cli.pictures import MASKS, PICTURES, OfMasks, OfPictures
from latentseg.cli.results import print_results
from latentseg.cli.self_training import SELF_TRAINING, OfSelfTraining
from latentseg.files import read_json
from latentseg.progress import say

if TYPE_CHECKING:
    from latentseg.students.training import TrainConfig


def train(
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    out: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    preset: Literal["quick", "standard", "paper"] = "standard",
    network: OfPreset[str] = None,
    width: OfPreset[float] = None,
    steps: OfPreset[int] = None,
    batch: OfPreset[int] = None,
    lr: OfPreset[float] = None,
    augment: OfPreset[Literal["none", "flip", "photo", "parts", "parts-photo"]] = None,
    weight_decay: OfPreset[float] = None,
    clip: OfPreset[float] = None,
    encoder_weights: Maybe[Path] = None,
    encoder_lr: Maybe[float] = None,
    ema: Maybe[float] = None,
    soft: Off = True,
    classes: Maybe[tuple[str, ...]] = None,
    foreground: Maybe[int] = None,
    group: Several[str] = (),
    size: Maybe[tuple[int, int]] = None,
    photos: Several[Path] = (),
    rounds: int = 3,
    self_training: OfSelfTraining = SELF_TRAINING,
    seed: int = 0,
    pictures: OfPictures = PICTURES,
    masks: OfMasks = MASKS,
    processes: OfProcesses = PROCESSES,
    common: CommonFlags = COMMON,
) -> None:
    """A student: a segmentation network trained on a dataset. The same command again resumes.

    Args:
        dataset: Images with masks, synthetic or real, in any layout that convert-dataset reads.
        out: Folder of the training; RUN/model is the segmenter.
        preset: quick, standard or paper.
        network: "unet", the papers' own; "unet:efficientnet-lite0", whose encoder has seen the
            photos of ImageNet (extra `features`); or "smp:ARCHITECTURE:ENCODER[:WEIGHTS]" with the
            extra `networks`.
        width: Width of the U-Net, 1 in the paper.
        steps: Training steps.
        batch: Pairs per step.
        lr: Learning rate of Adam.
        augment: none (Melas-Kyriazi 2021), flip, photo: what makes generated pictures look real;
            parts (Tritrong 2021): scaled, turned and moved; parts-photo: both.
        weight_decay: Weight decay of Adam.
        clip: Largest value of a gradient.
        encoder_weights: File of the weights of a pretrained encoder; by default those of the
            installed package, or of the user's cache.
        encoder_lr: Learning rate of a pretrained encoder; by default a tenth of the other.
        ema: The student is a moving average of its weights, of which this share is kept at each
            step, for example 0.99.
        soft: Learn from the masks alone, even where the dataset has class probabilities.
        classes: Names of the classes, if the masks do not say them.
        foreground: The value in the masks that is the foreground, if they do not say it.
        group: Classes made of the labels: named groupings or JSON files, applied in turn.
        size: Height and width at which the student works; by default those of the first image, and
            at least 128 px for an encoder that has seen photos.
        photos: Unlabelled photos of the same domain, for self-training afterwards; more than the
            generator saw if there are more. Photos, or folders.
        rounds: Rounds of self-training.
        seed: Seed of all random numbers.
    """
    from latentseg.datasets.pairs import FolderPairs
    from latentseg.datasets.real import open_dataset
    from latentseg.datasets.shard_files import is_sharded
    from latentseg.datasets.shard_pairs import ShardPairs
    from latentseg.distributed import rank_and_world
    from latentseg.students.self_training import self_train
    from latentseg.students.self_training_settings import SelfTrainingConfig
    from latentseg.students.training import PRESETS
    from latentseg.students.training import train as train_student

    if photos and rank_and_world()[1] * processes.devices * processes.nodes > 1:
        usage_error(
            "--photos: self-training is done by one process. Leave out --photos, or --devices."
        )
    base = PRESETS[preset]
    config = student_config(base, network=network, width=width, steps=steps)
    config = changed(
        config,
        batch=batch,
        lr=lr,
        augment=augment,
        weight_decay=weight_decay,
        clip=clip,
        size=size,
        encoder_weights=None if encoder_weights is None else str(encoder_weights),
        encoder_lr=encoder_lr,
        ema=ema,
    )
    config = replace(config, seed=seed)
    on_photos = self_training.changed(SelfTrainingConfig(rounds=rounds, train=config))
    if is_sharded(dataset):
        pairs = ShardPairs(dataset, size=size, seed=seed, soft=soft)
    else:
        opened = open_dataset(
            dataset,
            classes=classes,
            foreground=foreground,
            grouping=group,
            reading=pictures.reading,
            binarize=masks.binarize,
            invert=masks.invert,
            soft=soft,
        )
        for note in opened.notes:
            say(f"train: {note}", quiet=common.quiet)
        pairs = FolderPairs(opened, size=size, seed=seed)
    card = {"description": f"Trained on {dataset.absolute().name}.", "licence": _licence(dataset)}
    first = out / "student" if photos else out
    segmenter = train_student(
        pairs,
        out=first,
        config=config,
        card=card,
        device=common.device,
        devices=processes.devices,
        nodes=processes.nodes,
        quiet=common.quiet,
    )
    if photos:
        self_train(
            segmenter,
            photos,
            pairs,
            out=out / "photos",
            config=on_photos,
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
    classes: Maybe[tuple[str, ...]] = None,
    foreground: Maybe[int] = None,
    group: Several[str] = (),
    limit: Maybe[int] = None,
    flip: bool = False,
    scales: tuple[float, ...] = (1.0,),
    edges: Maybe[int] = None,
    pictures: OfPictures = PICTURES,
    masks: OfMasks = MASKS,
    common: CommonFlags = COMMON,
) -> None:
    """Measures a segmenter, or masks of any tool, on real photos, beside floors.

    Args:
        model: The segmenter; or a folder of masks, NAME.png or NAME_mask.png for a photo NAME.
        dataset: Photos with masks, in any layout that convert-dataset reads: a dataset folder,
            COCO, YOLO, CVAT, ECSSD, DUTS, DUT-OMRON, CUB, Flowers, CelebAMask-HQ, PASCAL-Part, ...
        protocol: melas2021, voynov2020, selfmask, mae, feng2023, boundary or pooled; tritrong2021
            or pooled for parts. It is part of the result.
        classes: Names of the classes, if the masks do not say them.
        foreground: The value in the masks that is the foreground, if they do not say it.
        group: Classes made of the labels: named groupings or JSON files, applied in turn.
        limit: At most so many photos, evenly spread.
        flip: Average the answer with that for the mirrored photo.
        scales: Average the answers to the photo seen at these multiples of the size at which the
            student works, for example 1 1.5.
        edges: Let masks end where the brightness of the photo changes, within this many pixels of
            the photo as the student sees it (guided filter).
    """
    from latentseg.evaluation.real_photos import evaluate as evaluate_model

    result = evaluate_model(
        model,
        dataset,
        protocol=protocol,
        classes=classes,
        foreground=foreground,
        group=group,
        reading=pictures.reading,
        binarize=masks.binarize,
        invert=masks.invert,
        limit=limit,
        flip=flip,
        scales=scales,
        edges=edges,
        device=common.device,
        quiet=common.quiet,
    )
    values = {**result.to_json(per_image=True), "setting": model}
    print_results(common, [values])
    write_result(common, values)


def predict(
    model: Model,
    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(
            metavar="PHOTO [PHOTO ...] OUT",
            help="Photos, folders (with those inside), .txt lists of photos, - for a list on "
            "stdin; last the output. (required)",
            help_behavior_hint="",
        ),
    ],
    *,
    outputs: tuple[Literal["masks", "overlays", "cutouts", "scores", "coco"], ...] = (
        *("masks", "overlays", "cutouts"),
    ),
    flip: bool = False,
    scales: tuple[float, ...] = (1.0,),
    edges: Maybe[int] = None,
    tile: Maybe[int] = None,
    tile_overlap: float = 0.5,
    pictures: OfPictures = PICTURES,
    common: CommonFlags = COMMON,
) -> None:
    """Masks of photos: NAME_mask.png, NAME_overlay.jpg, NAME_cutout.png and more.

    Args:
        model: The segmenter.
        paths: Photos, and last the output folder.
        outputs: What is written: masks, overlays, cutouts, scores (.npy of float32), coco
            (annotations.json).
        flip: Average the answer with that for the mirrored photo.
        scales: Average the answers to the photo seen at these multiples of the size at which the
            student works, for example 1 1.5.
        edges: Let masks end where the brightness of the photo changes, within this many pixels of
            the photo as the student sees it (guided filter).
        tile: See photos whose shorter side is longer than this in windows of this many photo
            pixels, for small objects in large photos. About an object with its surroundings; at
            least the size that the student was trained at.
        tile_overlap: Share of a window that its neighbour shows again, 0 to 0.9.
    """
    from latentseg.students.prediction import predict_files

    photos, out = photos_and_out(paths, "predict")
    segmented, problems = predict_files(
        open_segmenter(model, common),
        photos,
        out,
        outputs=outputs,
        flip=flip,
        scales=scales,
        edges=edges,
        tile=tile,
        tile_overlap=tile_overlap,
        reading=pictures.reading,
        quiet=common.quiet,
    )
    tell(common, f"{len(segmented)} photos segmented: {out}")
    listed = {"segmented": [str(path) for path in segmented], "problems": problems}
    write_result(common, listed)
    refuse_left_out(problems)


def export(
    model: Model,
    out: Out,
    *,
    format: Literal["safetensors", "onnx", "torch"] = "onnx",
    int8: bool = False,
    flip: bool = False,
    photos: Maybe[Path] = None,
    data: Maybe[Path] = None,
    group: Several[str] = (),
    push: Maybe[str] = None,
    private: bool = False,
    common: CommonFlags = COMMON,
) -> None:
    """A segmenter for elsewhere; refused unless its answers are those of the original.

    Args:
        model: The segmenter.
        out: Folder of the result.
        format: onnx: a photo of any size in, mask and scores out, with a predictor of one file that
            needs numpy, Pillow and onnxruntime; torch: a torch.export program; safetensors: a model
            folder.
        int8: onnx: 8-bit weights and activations for CPUs, if the IoU falls by less than 0.005.
        flip: Average the answer with that for the mirrored photo.
        photos: Real photos on which both must agree, and from which 8-bit ranges are taken; by
            default drawn ones.
        data: Photos with masks, on which the IoU of int8 is measured.
        group: Classes made of the labels of `data`.
        push: Upload to this repository of the Hugging Face Hub, NAME/REPO; `hf auth login` first.
        private: Make that repository private.
    """
    from latentseg.datasets.real import open_dataset
    from latentseg.evaluation.measuring import measure
    from latentseg.students import hub
    from latentseg.students.export import PhotoScorer, export_segmenter

    segmenter = open_segmenter(model, common)
    labelled = None if data is None else open_dataset(data, grouping=group)
    protocol = "melas2021" if len(segmenter.classes) == 1 else "tritrong2021"

    def iou(scorer: PhotoScorer) -> float:
        assert labelled is not None
        return measure(scorer, labelled, protocol=protocol, quiet=common.quiet).iou

    record = export_segmenter(
        segmenter,
        out,
        format=format,
        flip=flip,
        int8=int8,
        photos=photos,
        measure=None if labelled is None else iou,
        quiet=common.quiet,
    )
    tell(common, str(out))
    if agreement := record.get("agreement"):
        tell(
            common,
            f"on {agreement['n_photos']} photos ({agreement['photos']}): logits differ by at most "
            f"{agreement['max_difference']:.1e}, equal labels {agreement['equal_labels']:.3%}",
        )
    if push and format == "safetensors":
        tell(common, segmenter.push_to_hub(push, private=private))
    elif push:
        tell(common, hub.push(out, push, token=None, private=private))
    write_result(common, record)


def student_config(
    base: "TrainConfig", *, network: str | None, width: float | None, steps: int | None
) -> "TrainConfig":
    """`base` with other sizes; the learning rate falls at the same share of the steps."""
    from latentseg.students.networks import initialized_on

    if network not in (None, "unet") and width is None:
        width = 1.0  # the width of a preset is one of the U-Net
    if network is not None and steps is None and initialized_on(network):
        steps = base.steps // 2  # it has learned before
    decay_at = None if steps is None else round(steps * base.decay_at / base.steps)
    return changed(base, network=network, width=width, steps=steps, decay_at=decay_at)


def _licence(dataset: Path) -> str:
    description = dataset / "dataset.json"
    if description.is_file():
        return read_json(description).get("licence", "That of the dataset.")
    return "That of the dataset."
