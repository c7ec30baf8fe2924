"""Fits a labeler into a folder: the same for all kinds.

A folder is claimed for what was asked, locked while work is done in it, and finished when its
manifest is there; the same call again then reads what it holds.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from latentseg.errors import InputError
from latentseg.files import MANIFEST, claim, locked, write_json
from latentseg.generators.protocols import Generator
from latentseg.images import write_image
from latentseg.labelers.kinds import Fitted, LabelerKind
from latentseg.labelers.needs import check_ability
from latentseg.labelers.overview import write_overview
from latentseg.labelers.painted import PaintedImages, read_painting
from latentseg.labelers.protocols import Labeler

L = TypeVar("L", bound=Labeler)


def fit_labeler(
    kind: LabelerKind[L],
    generator: Generator,
    *,
    painted: Path | str | PaintedImages | None = None,
    config: Any = None,
    seed: int = 0,
    out: Path | str | None = None,
    quiet: bool = False,
) -> L:
    """Fits a labeler of any kind, and reports on it.

    Args:
        kind: Of the registry, or the user's own.
        generator: The generator whose images the labeler will label.
        painted: For a kind that learns from painted images: a folder of the painter, or what was
            painted.
        config: Of the kind's configuration type; None: its default settings.
        seed: Seeds all random numbers.
        out: Where the labeler, quality.json and contact_sheet.png are written. If it holds the
            finished labeler already, that one is returned; interrupted work is continued.
        quiet: Print no progress.

    Raises:
        InputError: the generator lacks what the labeler needs, painted images are missing or cannot
            be used, or `out` holds other work.
        DivergedError: a loss became NaN or infinite.
    """
    check_ability(generator, kind.needs, kind.name)
    config = kind.default if config is None else config
    inputs = read_inputs(kind, painted, generator)
    if kind.check is not None:
        kind.check(generator, *inputs, config)

    def fitted(folder: Path | None) -> Fitted[L]:
        return kind.fit(generator, *inputs, config=config, seed=seed, folder=folder, quiet=quiet)

    if out is None:
        return fitted(None).labeler
    out = Path(out)
    asked = {
        "method": kind.name,
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": asdict(config),
    }
    if inputs:
        asked["painting"] = inputs[0].digest
    with locked(out):
        claim(out, asked)
        if not (out / MANIFEST).is_file():
            _finish(fitted(out), out, seed)
    return kind.load(out, generator)


def read_inputs(
    kind: LabelerKind[Any], painted: Path | str | PaintedImages | None, generator: Generator
) -> tuple[PaintedImages, ...]:
    """What a kind learns from, beside the generator: the painted images, or nothing.

    Raises:
        InputError: the kind needs painted images and there are none, or the other way round; they
            cannot be read, or a class is painted nowhere.
    """
    if kind.takes_painted != (painted is not None):
        learns = "learns from painted images" if kind.takes_painted else "takes no painted images"
        raise InputError(
            f"`painted`: {kind.name} {learns}. `latentseg paint {generator.info.name} FOLDER` "
            "makes them, and few-shot takes them."
        )
    if painted is None:
        return ()
    if not isinstance(painted, PaintedImages):
        painted = read_painting(painted, generator)
    painted.check(generator.info.size)
    return (painted,)


def _finish(fitted: Fitted[Any], out: Path, seed: int) -> None:
    """Writes the report, and then the labeler, whose manifest comes last."""
    if fitted.quality is None or fitted.sheet is None:
        write_overview(fitted.labeler, out, seed=seed)
    if fitted.quality is not None:
        write_json(out / "quality.json", fitted.quality())
    if fitted.sheet is not None:
        write_image(out / "contact_sheet.png", fitted.sheet())
    if fitted.finish is not None:
        fitted.finish(out)
    fitted.labeler.save(out)
