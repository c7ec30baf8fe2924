"""The command line: one function per command, which reads flags and makes one call of the library.

Nothing that takes long to import is imported before a command runs.
"""

import json as json_module
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import OmitArgPrefixes, Positional, arg

from latentseg import __version__
from latentseg.errors import InputError, LatentsegError
from latentseg.files import read_json, write_json
from latentseg.interrupts import Terminated

if TYPE_CHECKING:
    from rich.console import Console

    from latentseg.generators import Generator
    from latentseg.generators.family import Family
    from latentseg.labelers.directions import DirectionsConfig
    from latentseg.labelers.few_shot import FewShotConfig
    from latentseg.labelers.style_mixing import StyleMixingConfig
    from latentseg.students.segmenter import Segmenter
    from latentseg.students.training import TrainConfig

GeneratorName = Annotated[
    Positional[str],
    arg(
        metavar="GENERATOR",
        help="Bundled name, generator folder, checkpoint (FAMILY:FILE, or FILE if it says what it "
        "is), or module:callable.",
    ),
]
Out = Annotated[Positional[Path], arg(metavar="OUT", help="Folder of the result.")]
Model = Annotated[
    Positional[str], arg(metavar="MODEL", help="Bundled name, model folder or run folder.")
]
Mode = Literal["light", "dark", "both"]
Variant = Literal["ours", "official", "paper"]


@dataclass(frozen=True)
class Common:
    """Flags that mean the same everywhere."""

    device: str = "auto"
    """Where to compute: auto (CUDA, then MPS, then CPU), cpu, cuda, cuda:1, mps."""
    json: Path | None = None
    """Write the result as JSON to this file; - for stdout."""
    quiet: bool = False
    """No progress on stderr."""
    debug: bool = False
    """Show the traceback of an error."""


@dataclass(frozen=True)
class CheckpointFlags:
    """What is asked of the generator."""

    classes: tuple[int, ...] = ()
    """Class labels to draw, of a conditional generator; by default all, equally often."""
    option: tuple[str, ...] = ()
    """NAME=VALUE of a checkpoint's family; see latentseg generators --family NAME."""
    trust_code: bool = False
    """Open a TorchScript or torch.export file: it is a program, which then runs."""


@dataclass(frozen=True)
class DirectionsFlags:
    """Of the method directions; by default as the preset or the variant has it."""

    variant: Variant | None = None
    """Settings of the search: ours, those of the official code, or of the paper."""
    mode: Literal["light", "dark", "both", "ensemble"] | None = None
    """Directions that make the mask; run can also average students of light and dark."""
    radius: float | None = None
    """Step that makes masks, in standard deviations of the latent; by default chosen."""
    contrast_weight: float | None = None
    """Weight of the contrast loss, lambda in the paper."""
    structure_weight: float | None = None
    """Weight of the structure loss."""
    search_radius: float | None = None
    """Step during the search."""
    search_steps: int | None = None
    """Most steps of the search."""
    search_restarts: int | None = None
    """Random starts of the search."""


@dataclass(frozen=True)
class StyleMixingFlags:
    """Of the method style-mixing; by default as measured best."""

    k: int | None = None
    """Segments; 2 are foreground and background."""
    variants: int | None = None
    """Variants of each image, itself included."""
    first_mixed_layer: int | None = None
    """Layers from this one on take another style; by default chosen."""
    colour: Literal["rgb", "lab"] | None = None
    """Colour space of the pixels."""
    normalisation: Literal["none", "plane", "correlation"] | None = None
    """What is made equal before pixels are compared."""
    clustering: Literal["kmeans", "spherical", "mixture"] | None = None
    """How pixels are clustered."""
    spatial_weight: float | None = None
    """Weight of the place of a pixel beside its colours."""
    meaning: Literal["shared", "matched"] | None = None
    """For k above 2: one clustering for all images, or clusters matched to prototypes."""
    foreground: Literal["border", "centre", "area", "vote"] | None = None
    """For k 2: which segment is the foreground."""
    memory: float | None = None
    """GiB that may be used beside the generator's weights."""


@dataclass(frozen=True)
class FewShotFlags:
    """Of the method few-shot."""

    labels: Path | None = None
    """Folder of the painter: the painted images."""
    settings: Literal["ours", "official", "bryandlee", "datasetgan"] | None = None
    """Head and training: ours, or those of published code."""
    head: Literal["mlp-small", "mlp", "cnn", "cnn-s", "cnn-m", "cnn-l", "ensemble"] | None = None
    """The network that segments the generator's features."""


COMMON = Common()
DIRECTIONS, STYLE_MIXING, FEW_SHOT = DirectionsFlags(), StyleMixingFlags(), FewShotFlags()
OfFewShot = OmitArgPrefixes[FewShotFlags]
OfDirections = OmitArgPrefixes[DirectionsFlags]
OfStyleMixing = OmitArgPrefixes[StyleMixingFlags]
CommonFlags = OmitArgPrefixes[Common]
CHECKPOINT = CheckpointFlags()
OfCheckpoint = OmitArgPrefixes[CheckpointFlags]


def run(
    generator: GeneratorName,
    out: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    method: Literal["directions", "style-mixing", "voting"] = "directions",
    agree: Literal["directions", "style-mixing"] | None = None,
    preset: Literal["quick", "standard", "paper"] = "standard",
    eval: tuple[Path, ...] = (),
    photos: Path | None = None,
    rounds: int | None = None,
    ceiling: Path | None = None,
    count: int | None = None,
    network: str | None = None,
    width: float | None = None,
    steps: int | None = None,
    protocol: str | None = None,
    keep_dataset: bool = False,
    seed: int = 0,
    directions: OfDirections = DIRECTIONS,
    style_mixing: OfStyleMixing = STYLE_MIXING,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """The whole job: label, synthesise, train, evaluate, report. The same command continues it.

    Args:
        generator: What to learn from.
        out: The run folder.
        method: How masks are made; voting takes directions and style-mixing together.
        agree: Another method, whose masks have to agree, or a sample is dropped.
        preset: quick for a first look, standard for quality, paper for the published settings.
        eval: Real photos with masks to measure on; may be given several.
        photos: Unlabelled photos of the same domain, for self-training.
        rounds: Rounds of self-training; by default those of the preset.
        ceiling: Real photos with masks: the same student learns from them, for comparison.
        count: Synthetic pairs; 0 draws new ones for as long as the student trains.
        network: "unet", or "smp:ARCHITECTURE:ENCODER" with the extra `networks`.
        width: Width of the U-Net, 1 in the paper.
        steps: Training steps of the student.
        protocol: How results are measured: melas2021 or pooled.
        keep_dataset: Keep the synthetic pairs in RUN/dataset.
        seed: Of everything random.
    """
    from latentseg.run import PRESETS, VOTERS
    from latentseg.run import run as run_all

    used = VOTERS if method == "voting" else (method, agree)
    _refuse_flags_of_others(used, directions, style_mixing)
    base = PRESETS[preset]
    student = _student(base.student, network=network, width=width, steps=steps)
    config = replace(
        base,
        method=method,
        agree=agree,
        directions=_directions(base.directions, directions),
        style_mixing=_style_mixing(base.style_mixing, style_mixing),
        ensemble=directions.mode == "ensemble",
        count=base.count if count is None else count or None,
        student=student,
        rounds=_changed(base.rounds, rounds=rounds, train=student),
        protocol=protocol or base.protocol,
        seed=seed,
    )
    run_all(
        generator,
        out,
        config=config,
        eval_data=eval,
        photos=photos,
        ceiling=ceiling,
        keep_dataset=keep_dataset,
        classes=checkpoint.classes,
        options=_options(checkpoint.option),
        trust_code=checkpoint.trust_code,
        device=common.device,
        quiet=common.quiet,
    )
    results = read_json(out / "results.json")
    _print_results(common, results)
    _tell(common, f"report: {out / 'report.html'}\nmodel: {out / 'model'}")
    _write_json(common, results)


def generators(
    *, family: str | None = None, template: bool = False, common: CommonFlags = COMMON
) -> None:
    """What is bundled, what else can be opened, and which labelers each serves.

    Args:
        family: Tell about this family: its files, licence and options.
        template: Print a generator of your own to start from.
    """
    if template:
        from latentseg.generators.external import template_text

        print(template_text(), end="")
        return
    from latentseg.generators import list_generators, load_generator
    from latentseg.generators.abilities import abilities
    from latentseg.generators.registry import families, find_family

    if family is not None:
        _tell_family(common, find_family(family))
        return
    opened = [load_generator(bundled.name, device="cpu") for bundled in list_generators()]
    bundled = {generator.info.name: abilities(generator) for generator in opened}
    known = {name: each.abilities for name, each in families().items()}
    _print_abilities(common, "Bundled generators", bundled)
    _print_abilities(common, "Checkpoints that can be opened: FAMILY:FILE", known)
    _tell(
        common,
        "More about one: latentseg generators --family NAME. Folders of `latentseg "
        "train-generator` and `latentseg convert`, TorchScript and torch.export files, and "
        "module:callable (--template) can be opened, too.",
    )
    rows = [{**generator.info.to_json(), "abilities": abilities(generator)} for generator in opened]
    _write_json(common, {"bundled": rows, "families": known})


def _print_abilities(common: Common, title: str, rows: dict[str, tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    from latentseg.labelers import METHODS, labelers_for

    # Narrow enough for 80 columns.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0)
    )
    for column in ("", "abilities", *METHODS):
        table.add_column(column.replace("-", "-\n"), no_wrap=True)
    for name, has in rows.items():
        served = ("yes" if method in labelers_for(has) else "-" for method in METHODS)
        table.add_row(name, ", ".join(has), *served)
    _console(common).print(table)


def _tell_family(common: Common, family: "Family") -> None:
    from latentseg.generators.family import CHOICES

    choices = {
        name: f"{CHOICES[name]}; default {getattr(family.defaults, name)}"
        for name in family.choices
    }
    lines = [
        f"{family.name}: {family.title}",
        f"files     {family.files}",
        f"licence   {family.licence}",
        f"abilities {', '.join(family.abilities)}",
        "options of `latentseg convert --option NAME=VALUE ...`:",
        *(f"  {name:<14} {what}" for name, what in {**family.options, **choices}.items()),
    ]
    _tell(common, "\n".join(lines))
    _write_json(common, {"family": family.name, "options": {**family.options, **choices}})


def convert(
    checkpoint: Annotated[
        Positional[str],
        arg(metavar="CHECKPOINT", help="FAMILY:FILE, or a file or folder that says what it is."),
    ],
    out: Out,
    *,
    option: tuple[str, ...] = (),
    name: str | None = None,
    licence: str | None = None,
    half: bool = False,
    common: CommonFlags = COMMON,
) -> None:
    """A checkpoint of another project as a generator folder: no pickle is needed any more.

    Args:
        checkpoint: What to convert.
        out: Folder of the result: safetensors, config.json, a card with licence and sha256.
        option: NAME=VALUE of its family; see latentseg generators --family NAME.
        name: Of the generator; by default that of the file.
        licence: Of the weights, if not that of the family's authors.
        half: Store float16, half the size.
    """
    from latentseg.generators.conversion import convert as convert_all

    folder = convert_all(
        checkpoint,
        out,
        options=_options(option),
        name=name,
        licence=licence,
        half=half,
        quiet=common.quiet,
    )
    config = read_json(folder / "config.json")
    _tell(common, f"{folder}\nlicence: {config['licence']}")
    _write_json(common, config)


def _options(given: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE as values: JSON where it is JSON, else text."""
    options = {}
    for each in given:
        name, equals, text = each.partition("=")
        if not equals or not name:
            raise InputError(f"--option {each}: expected NAME=VALUE.")
        try:
            value = json_module.loads(text)
        except ValueError:
            value = text
        options[name] = tuple(value) if isinstance(value, list) else value
    return options


def train_generator(
    photos: Annotated[Positional[Path], arg(metavar="PHOTOS")],
    out: Out,
    *,
    size: tuple[int, int] = (64, 64),
    channels: tuple[int, ...] | None = None,
    images: int = 1_000_000,
    batch: int = 32,
    lr: float = 2.5e-3,
    r1_weight: float = 0.1,
    style_mixing: float = 0.9,
    ema_images: int = 10_000,
    augmentation: tuple[Literal["color", "translation", "cutout"], ...] = ("color", "translation"),
    adaptive: bool = False,
    classes: bool = False,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    report_images: int = 32_000,
    inception: Path | None = None,
    name: str | None = None,
    licence: str = "unknown: that of the photos",
    seed: int = 0,
    common: CommonFlags = COMMON,
) -> None:
    """A generator of your own domain. The same command continues; raise --images to go on.

    The learning rate, the average and the augmentation may be others from where it goes on.

    Args:
        photos: Folder of photos; with --classes, one subfolder of photos per class.
        out: Folder of the training; OUT/generator can be opened at any time.
        size: Height and width in pixels.
        channels: Channels per resolution, coarse to fine; by default fitted to the size.
        images: Photos shown in all.
        batch: Photos per step.
        lr: Learning rate.
        r1_weight: Weight of the gradient penalty.
        style_mixing: Chance that an image is drawn from two styles.
        ema_images: Half-life of the averaged generator, in photos shown.
        augmentation: Differentiable augmentation of photos and drawn images.
        adaptive: Let its strength follow the discriminator's overfitting.
        classes: Learn the subfolders as classes.
        precision: auto takes bf16 where the hardware has it.
        report_images: Photos between two reports.
        inception: Weights of the Inception network, to report the FID as well (extra `metrics`).
        name: Of the generator.
        licence: Of the weights, for its card.
        seed: Of everything random.
    """
    from latentseg.generators.training import GeneratorTrainingConfig
    from latentseg.generators.training import train_generator as train_all
    from latentseg.generators.training.loop import default_channels

    config = GeneratorTrainingConfig(
        size=size,
        channels=channels or default_channels(size),
        images=images,
        batch=batch,
        lr=lr,
        r1_weight=r1_weight,
        style_mixing=style_mixing,
        ema_images=ema_images,
        augmentation=augmentation,
        adaptive=adaptive,
        precision=precision,
        report_images=report_images,
        seed=seed,
    )
    folder = train_all(
        photos,
        out,
        config=config,
        with_classes=classes,
        inception=inception,
        name=name,
        licence=licence,
        device=common.device,
        quiet=common.quiet,
    )
    _tell(common, str(folder))
    _write_json(common, read_json(folder / "config.json"))


def fit(
    method: Annotated[
        Positional[Literal["directions", "style-mixing", "few-shot", "feature-clusters"]],
        arg(metavar="METHOD"),
    ],
    generator: GeneratorName,
    out: Out,
    *,
    seed: int = 0,
    directions: OfDirections = DIRECTIONS,
    style_mixing: OfStyleMixing = STYLE_MIXING,
    few_shot: OfFewShot = FEW_SHOT,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """A labeler: finds what turns generated images into masks, with a quality report.

    Args:
        method: directions (Melas-Kyriazi et al. 2021), style-mixing (Feng 2023), few-shot from
            painted images (Tritrong et al. 2021), or feature-clusters (Pakhomov et al. 2021).
        generator: Whose images it will label.
        out: Folder of the labeler.
        seed: Of everything random.
    """
    from latentseg.labelers.directions import DirectionsConfig, fit_directions
    from latentseg.labelers.feature_clusters import fit_feature_clusters
    from latentseg.labelers.few_shot import fit_few_shot
    from latentseg.labelers.style_mixing import StyleMixingConfig, fit_style_mixing

    _refuse_flags_of_others((method,), directions, style_mixing, few_shot)
    if directions.mode == "ensemble":
        raise InputError("--mode ensemble averages students: it belongs to `latentseg run`.")
    if method == "few-shot" and few_shot.labels is None:
        raise InputError(
            "few-shot learns from painted images: --labels FOLDER of `latentseg paint`."
        )
    opened = _generator(generator, checkpoint, common)
    if method == "directions":
        config = _directions(DirectionsConfig(), directions)
        fit_directions(opened, config=config, seed=seed, out=out, quiet=common.quiet)
    elif method == "style-mixing":
        config = _style_mixing(StyleMixingConfig(), style_mixing)
        fit_style_mixing(opened, config=config, seed=seed, out=out, quiet=common.quiet)
    elif few_shot.labels is not None:
        config = _few_shot(few_shot)
        fit_few_shot(opened, few_shot.labels, config=config, seed=seed, out=out, quiet=common.quiet)
    else:
        fit_feature_clusters(opened, seed=seed, out=out)
    shown = [out / name for name in ("contact_sheet.png", "classes.html") if (out / name).exists()]
    _tell(common, f"{out}\nlook at: {', '.join(map(str, shown))}")
    _write_json(common, read_json(out / "quality.json"))


def paint(
    generator: GeneratorName,
    out: Out,
    *,
    parts: tuple[str, ...] = (),
    port: int | None = None,
    open: bool = True,
    preview: bool = True,
    export: Path | None = None,
    import_masks: Annotated[Path | None, arg(name="import")] = None,
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """Paints parts on generated images, on a page in the browser; Ctrl-C ends it.

    Args:
        generator: Whose images are painted.
        out: The painting: a dataset folder. One that is there is gone on with.
        parts: Names of the classes of a new painting; more can be added on the page.
        port: On 127.0.0.1; by default any free one.
        open: Open the page in the browser.
        preview: Teach a head while painting, and show what it makes of other images.
        export: Write images, masks with a palette and classes.json here, to paint elsewhere.
        import_masks: Take the PNG masks of this folder into the painting, if all of them fit.
        seed: Of the images to choose from.
    """
    if export is not None or import_masks is not None:
        _exchange(out, export, import_masks, common)
        return
    try:
        from latentseg.app.server import paint as serve
    except ImportError as error:
        raise InputError(
            f"the painter needs an extra ({error}): pip install 'latentseg[app]'"
        ) from error
    from latentseg.generators import HasFeatures
    from latentseg.labelers.few_shot import HeadPreview

    opened = _generator(generator, checkpoint, common)
    head = None
    if preview and isinstance(opened, HasFeatures):
        # A generator of its own: it reads features in a thread while the other one draws.
        head = HeadPreview(_generator(generator, checkpoint, common))
    serve(
        opened,
        out,
        seed=seed,
        parts=parts,
        previewer=head,
        port=port,
        open_browser=open,
        quiet=common.quiet,
    )


def _exchange(out: Path, export: Path | None, masks: Path | None, common: Common) -> None:
    from latentseg.app.exchange import export_painting, import_masks

    shares: dict[str, float] = {}
    if masks is not None:
        done = import_masks(out, masks)
        shares |= dict(zip(done.names, done.painted, strict=True))
    if export is not None:
        done = export_painting(out, export)
        shares |= dict(zip(done.names, done.painted, strict=True))
    for name, share in shares.items():
        _tell(common, f"{name}  {share:.0%} painted")
    _write_json(common, shares)


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
        seed: Of everything random.
    """
    del format  # one layout so far; the flag is part of the promise
    from latentseg.labelers import load_labeler
    from latentseg.labelers.agreement import AgreementLabeler, VotingLabeler
    from latentseg.synthesis.writers import synthesize

    opened = _generator(generator, checkpoint, common)
    chosen = load_labeler(labeler, opened)
    if agree is not None:
        chosen = AgreementLabeler(chosen, load_labeler(agree, opened))
    if vote is not None:
        chosen = VotingLabeler(chosen, load_labeler(vote, opened))
    folder = synthesize(
        opened, chosen, count=count, out=out, seed=seed, suffix=suffix, quiet=common.quiet
    )
    _tell(common, str(folder))
    _write_json(common, read_json(folder / "dataset.json"))


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
    config = _student(base, network=network, width=width, steps=steps)
    config = _changed(config, batch=batch, lr=lr, augment=augment)
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
    _tell(common, str(model))
    _write_json(common, read_json(model / "config.json"))


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
    segmenter = _segmenter(model, common)
    scorer = segmenter.mirrored() if flip else segmenter
    result = measure(scorer, opened, protocol=protocol, limit=limit, quiet=common.quiet)
    beside = floors(opened, protocol=protocol, limit=limit)
    values = {**result.to_json(), "setting": model}
    values["floors"] = {name: floor.to_json() for name, floor in beside.items()}
    _print_results(common, [values])
    _write_json(common, {**values, "per_image": result.to_json(per_image=True)["per_image"]})


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
        _segmenter(model, common), photos, out, flip=flip, quiet=common.quiet
    )
    _tell(common, f"{len(written)} photos segmented: {out}")
    _write_json(common, {"written": [str(path) for path in written], "problems": problems})
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{len(problems)} photos were left out:\n  {listed}")


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
    _write_json(common, {"dataset": str(dataset), "problems": problems})
    if problems:
        listed = "\n  ".join(problems)
        raise InputError(f"{dataset}: {len(problems)} problems:\n  {listed}")
    opened = open_dataset(dataset, classes=classes, foreground=foreground)
    _tell(common, f"{dataset}: {len(opened)} pairs, classes {', '.join(opened.classes)}: sound")


def doctor(*, common: CommonFlags = COMMON) -> None:
    """Versions, devices, and what works here; says how to mend what does not."""
    from latentseg.diagnosis import diagnose

    findings = diagnose()
    for name, finding in findings.items():
        _tell(common, f"{name:<22} {finding}")
    _write_json(common, findings)


COMMANDS: dict[str, Callable[..., Any]] = {
    "run": run,
    "generators": generators,
    "convert": convert,
    "train-generator": train_generator,
    "fit": fit,
    "paint": paint,
    "synth": synth,
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "check": check,
    "doctor": doctor,
}


def main() -> None:
    """Entry point: exit 0 done, 1 our error, 2 usage, 130 interrupted, 143 terminated."""
    # Threads that spin while they wait are slow where cores are shared; torch reads it on import.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    arguments = sys.argv[1:]
    if arguments == ["--version"]:
        print(__version__)
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS,
            prog="latentseg",
            description="Turn any pretrained image generator into an image segmenter.",
            args=arguments,
            config=(tyro.conf.DisallowNone, tyro.conf.FlagCreatePairsOff),
        )
    except KeyboardInterrupt as interrupt:
        print("\ninterrupted; the same command again continues.", file=sys.stderr)
        sys.exit(143 if isinstance(interrupt, Terminated) else 130)
    except (LatentsegError, OSError) as error:
        if "--debug" in arguments:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated


def _changed(config: Any, **options: Any) -> Any:
    """`config` with the options that were given, that is, that are not None."""
    return replace(config, **{name: value for name, value in options.items() if value is not None})


def _directions(base: "DirectionsConfig", flags: DirectionsFlags) -> "DirectionsConfig":
    from latentseg.labelers.directions import VARIANTS

    return _changed(
        VARIANTS[flags.variant] if flags.variant else base,
        mode=None if flags.mode == "ensemble" else flags.mode,
        generation_radius=flags.radius,
        contrast_weight=flags.contrast_weight,
        structure_weight=flags.structure_weight,
        radius=flags.search_radius,
        steps=flags.search_steps,
        restarts=flags.search_restarts,
    )


def _style_mixing(base: "StyleMixingConfig", flags: StyleMixingFlags) -> "StyleMixingConfig":
    given = {name: value for name, value in vars(flags).items() if value is not None}
    if "variants" in given:
        given["n_variants"] = given.pop("variants")
    if "memory" in given:
        given["memory"] = round(given["memory"] * 2**30)
    return replace(base, **given)


def _few_shot(flags: FewShotFlags) -> "FewShotConfig":
    from latentseg.labelers.few_shot import VARIANTS

    return _changed(VARIANTS[flags.settings or "ours"], head=flags.head)


def _refuse_flags_of_others(used: Sequence[str | None], *flags: object) -> None:
    """Refuses flags of a method that does not take part.

    Raises:
        InputError: there are some; they are named.
    """
    methods = {
        DirectionsFlags: "directions",
        StyleMixingFlags: "style-mixing",
        FewShotFlags: "few-shot",
    }
    for each in flags:
        given = [
            f"--{name.replace('_', '-')}" for name, value in vars(each).items() if value is not None
        ]
        if given and methods[type(each)] not in used:
            raise InputError(
                f"{', '.join(given)}: of the method {methods[type(each)]}, which is not asked for."
            )


def _student(
    base: "TrainConfig", *, network: str | None, width: float | None, steps: int | None
) -> "TrainConfig":
    """`base` with other sizes; the learning rate falls at the same share of the steps."""
    if network not in (None, "unet") and width is None:
        width = 1.0  # the width of a preset is one of the U-Net
    decay_at = None if steps is None else round(steps * base.decay_at / base.steps)
    return _changed(base, network=network, width=width, steps=steps, decay_at=decay_at)


def _generator(name: str, flags: CheckpointFlags, common: Common) -> "Generator":
    from latentseg.generators import load_generator

    return load_generator(
        name,
        device=common.device,
        classes=flags.classes,
        options=_options(flags.option),
        trust_code=flags.trust_code,
    )


def _segmenter(model: str, common: Common) -> "Segmenter":
    from latentseg.students.segmenter import Segmenter

    return Segmenter.from_pretrained(model, device=common.device)


def _licence(dataset: Path) -> str:
    description = dataset / "dataset.json"
    if description.is_file():
        return read_json(description).get("licence", "That of the dataset.")
    return "That of the dataset."


def _print_results(common: Common, results: list[dict[str, Any]]) -> None:
    from rich.table import Table

    for dataset in dict.fromkeys(result["dataset"] for result in results):
        same = [result for result in results if result["dataset"] == dataset]
        last = same[-1]
        floors = {f"floor: {name}": row for name, row in (last.get("floors") or {}).items()}
        ceiling = last.get("ceiling")
        rows = {row["setting"]: row for row in same} | floors
        if ceiling:
            rows["ceiling: the same student, true masks"] = ceiling
        table = Table(title=f"{dataset}, {last['protocol']}, {last['n_images']} photos")
        table.add_column("", overflow="fold")
        for column in ("acc", "IoU", "pooled IoU", "max F"):
            table.add_column(column, justify="right", no_wrap=True)
        for setting, row in rows.items():
            numbers = (row[name] for name in ("acc", "iou", "iou_pooled", "max_f"))
            table.add_row(setting, *("-" if n is None else f"{n:.3f}" for n in numbers))
        _console(common).print(table)


def _console(common: Common) -> "Console":
    """Where people read the result: stdout, unless JSON is to be there."""
    from rich.console import Console

    return Console(stderr=str(common.json) == "-")


def _tell(common: Common, text: str) -> None:
    print(text, file=sys.stderr if str(common.json) == "-" else sys.stdout)


def _write_json(common: Common, value: Any) -> None:
    if common.json is None:
        return
    if str(common.json) == "-":
        print(json_module.dumps(value, indent=2))
        return
    write_json(common.json, value)
