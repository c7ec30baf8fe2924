"""Commands about labelers: fit one, paint what it learns from."""

from collections.abc import Callable, Sequence
from inspect import Parameter
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from latentseg import labelers
from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    Common,
    CommonFlags,
    GeneratorName,
    Maybe,
    OfCheckpoint,
    Off,
    Out,
    Several,
    open_generator,
    tell,
    write_result,
)
from latentseg.cli.messages import usage_error
from latentseg.cli.methods import (
    MethodFlags,
    Painted,
    flags_of,
    given,
    refuse_flags_of_others,
    settings_flag,
    specialized,
)
from latentseg.errors import InputError
from latentseg.files import read_json
from latentseg.labelers.registry import find_kind

TEMPLATE = Path(labelers.__file__).with_name("template.py")
RESERVED = ("settings", "painted", "template", "seed", "classes", "option", "latents")


def fit_command(arguments: Sequence[str]) -> Callable[..., None]:
    """The command `fit`, with the flags of the method that its arguments name.

    Args:
        arguments: What follows `latentseg fit`.
    """
    if "--template" in arguments:
        return _print_template
    if not arguments or arguments[0].startswith("-"):
        return fit
    try:
        kind = find_kind(arguments[0])
    except InputError as error:
        usage_error(str(error))
    config = kind.settings.get(given(arguments, "--settings") or "", kind.default)
    flags = flags_of({kind.name: (config, kind.flags)}, reserved=RESERVED)
    refuse_flags_of_others(arguments, flags, reserved=RESERVED)

    first = next(iter(kind.settings))
    command = specialized(
        fit_kind,
        {
            "settings": (settings_flag([kind]), first),
            "labeler": (OmitArgPrefixes[flags], flags()),
            "painted": (Painted, Parameter.empty),
        },
        removed=() if kind.takes_painted else ("painted",),
    )
    command.__doc__ = (fit_kind.__doc__ or "").replace("Fits a labeler", kind.title)
    return command


def fit_kind(
    method: Annotated[Positional[str], arg(metavar="METHOD")],
    generator: GeneratorName,
    out: Out,
    *,
    painted: Path | None,
    settings: str,
    labeler: MethodFlags,
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """Fits a labeler.

    Args:
        method: The method whose flags these are.
        generator: The generator whose images it will label.
        out: Folder of the labeler.
        seed: Seeds all random numbers.
    """
    from latentseg.labelers.fitting import fit_labeler

    del settings  # they are the defaults of the labeler's flags
    config = labeler.configs[method]
    fit_labeler(
        find_kind(method),
        open_generator(generator, checkpoint, common),
        painted=painted,
        config=config,
        seed=seed,
        out=out,
        quiet=common.quiet,
    )
    shown = [out / name for name in ("contact_sheet.png", "classes.html") if (out / name).exists()]
    tell(common, f"{out}\nlook at: {', '.join(map(str, shown))}")
    write_result(common, read_json(out / "quality.json"))


def fit(
    method: Annotated[Positional[str], arg(metavar="METHOD")],
    generator: GeneratorName,
    out: Out,
    *,
    template: bool = False,
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """A labeler: finds what turns generated images into masks, with a quality report.

    `latentseg fit METHOD --help` shows the flags of one method.

    Args:
        method: directions (Melas-Kyriazi et al. 2021), style-mixing (Feng et al. 2023), few-shot
            from painted images (Tritrong et al. 2021), feature-clusters (Pakhomov et al. 2021), or
            module:callable, one of your own.
        generator: The generator whose images it will label.
        out: Folder of the labeler.
        template: Print a labeler of your own to start from.
        seed: Seeds all random numbers.
    """
    del generator, out, template, seed, checkpoint, common
    usage_error(f"the method stands first: latentseg fit {method} GENERATOR OUT")


def _print_template(*, template: bool = False, common: CommonFlags = COMMON) -> None:
    """Prints a labeler of your own to start from.

    Args:
        template: Print it.
    """
    del common
    if template:
        print(TEMPLATE.read_text(encoding="utf-8"), end="")


def paint(
    generator: GeneratorName,
    out: Out,
    *,
    parts: Several[str] = (),
    port: Maybe[int] = None,
    open: Off = True,
    preview: Off = True,
    export: Maybe[Path] = None,
    import_masks: Annotated[Path | None, arg(name="import", help_behavior_hint="")] = None,
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
        open: Print the address of the page, and open no browser.
        preview: Train no head while you paint, and show no masks of other images.
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
    from latentseg.app.head_preview import HeadPreview
    from latentseg.generators import HasFeatures

    opened = open_generator(generator, checkpoint, common)
    head = None
    if preview and isinstance(opened, HasFeatures):
        # A generator of its own: it reads features in a thread while the other one draws.
        head = HeadPreview(open_generator(generator, checkpoint, common))
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
        tell(common, f"{name}  {share:.0%} painted")
    write_result(common, shares)


def instances(
    generator: GeneratorName,
    labeler: Annotated[Positional[Path], arg(metavar="LABELER")],
    dataset: Annotated[Positional[Path], arg(metavar="DATASET")],
    out: Out,
    *,
    boxes: str,
    margin: float = 0.15,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """The objects of a dataset one by one: boxes in, instance masks in COCO format out.

    Args:
        generator: That drew the dataset.
        labeler: Of `latentseg fit style-mixing`.
        dataset: Folder of `latentseg synth`.
        out: Folder of the result: instances.json, contact_sheet.png.
        boxes: COCO file with boxes of the dataset's images, or module:callable, your detector: a
            function from an image (H, W, 3) uint8 to `labelers.instances.Box`es.
        margin: By how much of its sides a box is widened while its object is looked for.
    """
    from latentseg.generators.external import import_callable
    from latentseg.labelers import load_labeler
    from latentseg.labelers.instances import read_boxes, read_categories
    from latentseg.synthesis.objects import segment_objects

    is_file = Path(boxes).suffix == ".json"
    opened = open_generator(generator, checkpoint, common)
    segment_objects(
        load_labeler(labeler, opened),
        dataset,
        read_boxes(boxes) if is_file else import_callable(boxes),
        out=out,
        margin=margin,
        categories=read_categories(boxes) if is_file else None,
        quiet=common.quiet,
    )
    result = read_json(out / "instances.json")
    tell(common, f"{len(result['annotations'])} objects: {out / 'instances.json'}")
    tell(common, f"look at: {out / 'contact_sheet.png'}")
    write_result(common, result)
