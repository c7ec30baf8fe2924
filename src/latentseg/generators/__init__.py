"""Generators: frozen networks that turn latents into images, opened by name, folder or callable."""

import difflib
from dataclasses import dataclass
from pathlib import Path

from latentseg.devices import pick_device
from latentseg.errors import InputError
from latentseg.files import read_json
from latentseg.generators.protocols import (
    Generator,
    GeneratorInfo,
    HasFeatures,
    HasVariants,
    Latents,
)

__all__ = [
    "BundledGenerator",
    "Generator",
    "GeneratorInfo",
    "HasFeatures",
    "HasVariants",
    "Latents",
    "list_generators",
    "load_generator",
]

ASSETS = Path(__file__).parent / "assets"


@dataclass(frozen=True)
class BundledGenerator:
    """A generator that comes with the package.

    Attributes:
        name: What `load_generator` takes.
        size: (height, width) of its images in pixels.
        licence: Of its weights.
        folder: Its card, configuration and weights.
    """

    name: str
    size: tuple[int, int]
    licence: str
    folder: Path


def list_generators() -> list[BundledGenerator]:
    """The bundled generators, by name; their weights are not read."""
    found = []
    for path in sorted(ASSETS.glob("*/config.json")):
        config = read_json(path)
        height, width = config["network"]["size"]
        found.append(
            BundledGenerator(path.parent.name, (height, width), config["licence"], path.parent)
        )
    return found


def load_generator(name: str | Path, *, device: str = "auto") -> Generator:
    """Opens a generator.

    Args:
        name: A bundled generator ("pets64"), a folder written by `latentseg train-generator`, or
            "module:callable", a function of your own that builds an object of the `Generator`
            protocol.
        device: "auto", "cpu", "cuda", ...

    Raises:
        InputError: nothing of that name (the nearest names are given), or not a generator.
        CorruptFileError: its files are damaged.
    """
    from latentseg.generators.external import build_external
    from latentseg.generators.folders import load_folder

    target = pick_device(device)
    folder = Path(name)
    if folder.is_dir():
        trained = folder / "generator"
        return load_folder(trained if trained.is_dir() else folder).to(target)
    bundled = {generator.name: generator.folder for generator in list_generators()}
    if str(name) in bundled:
        return load_folder(bundled[str(name)]).to(target)
    if ":" in str(name):
        return build_external(str(name)).to(target)
    near = difflib.get_close_matches(str(name), bundled, n=3, cutoff=0.4)
    hint = f" Perhaps {' or '.join(near)}?" if near else ""
    raise InputError(
        f"{name}: no such generator.{hint} Bundled: {', '.join(bundled) or 'none'}. A folder of "
        "`latentseg train-generator` or module:callable works too; see `latentseg generators`."
    )
