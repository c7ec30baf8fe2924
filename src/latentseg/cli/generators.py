"""Commands about generators: list, convert, train."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    COMMON,
    PROCESSES,
    Common,
    CommonFlags,
    OfProcesses,
    Out,
    console,
    read_options,
    tell,
    write_result,
)
from latentseg.files import read_json

if TYPE_CHECKING:
    from latentseg.generators.family import Family


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
    tell(
        common,
        "More about one: latentseg generators --family NAME. Folders of `latentseg "
        "train-generator` and `latentseg convert`, TorchScript and torch.export files, and "
        "module:callable (--template) can be opened, too.",
    )
    rows = [{**generator.info.to_json(), "abilities": abilities(generator)} for generator in opened]
    write_result(common, {"bundled": rows, "families": known})


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
    processes: OfProcesses = PROCESSES,
    common: CommonFlags = COMMON,
) -> None:
    """A generator of your own domain. The same command continues; raise --images to go on.

    Args:
        photos: Folder of photos; with --classes, one subfolder of photos per class.
        out: Folder of the training; OUT/generator can be opened at any time.
        size: Height and width in pixels.
        channels: Channels per resolution, coarse to fine; by default fitted to the size.
        images: Photos shown in all.
        batch: Photos per step.
        lr: Learning rate; it, the average and the augmentation may be others when it goes on.
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
        devices=processes.devices,
        nodes=processes.nodes,
        quiet=common.quiet,
    )
    tell(common, str(folder))
    write_result(common, read_json(folder / "config.json"))
