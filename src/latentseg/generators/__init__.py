"""Generators: frozen networks that turn latents into images, opened by name, file or callable."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentseg.devices import pick_device
from latentseg.errors import InputError
from latentseg.files import read_json
from latentseg.generators.banks import read_bank
from latentseg.generators.packages import PACKAGES
from latentseg.generators.protocols import (
    Generator,
    GeneratorInfo,
    HasBank,
    HasClasses,
    HasEncoder,
    HasFeatures,
    HasVariants,
    Latents,
)

__all__ = [
    "BundledGenerator",
    "Generator",
    "GeneratorInfo",
    "HasBank",
    "HasClasses",
    "HasEncoder",
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


def load_generator(
    name: str | Path,
    *,
    device: str = "auto",
    classes: tuple[int, ...] = (),
    options: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    latents: Path | str | None = None,
    latent_noise: float = 0.0,
) -> Generator:
    """Opens a generator.

    Args:
        name: A bundled generator ("pets64"); a folder written by `latentseg train-generator` or
            `latentseg convert`, or its weights file; the checkpoint of another project, with its
            family ("stylegan2:ffhq.pkl") or without, also in an archive or a wheel; the name of an
            installed package with one ("random-face"); or "module:callable", a function of your
            own that builds an object of the `Generator` protocol.
        device: "auto", "cpu", "cuda", ...
        classes: Class labels to draw, of a conditional generator; () for all.
        options: Of a checkpoint's family, as `latentseg convert` takes them: {"psi": 0.5}.
        trust_code: Open files that are programs (TorchScript, torch.export): they are run.
        latents: Latents to draw instead of the generator's own, (N, ...) in a .npy, .npz or
            safetensors file, or a folder of `latentseg invert`; see `banks.read_bank`.
        latent_noise: Noise added to them, in standard deviations of the generator's own latents.

    Raises:
        InputError: nothing of that name (the nearest names are given), not a generator, of no
            known family, or without such classes or options; latents that do not fit.
        CorruptFileError: its files, or those of the latents, are damaged.
        UnsafeFileError: it is a program, and `trust_code` is not given.
    """
    generator = _open(str(name), options or {}, trust_code=trust_code)
    if classes:
        if not isinstance(generator, HasClasses):
            raise InputError(f"`classes`: {name} cannot be told which classes to draw.")
        generator = generator.with_classes(classes)
    if latents is not None:
        if not isinstance(generator, HasBank):
            raise InputError(
                f"{name}: cannot draw the latents of {latents}: it has no `with_bank`. Write one, "
                "as latentseg.generators.HasBank says."
            )
        generator = generator.with_bank(read_bank(latents, noise=latent_noise))
    elif latent_noise:
        raise InputError("`latent_noise`: there are no latents to add it to; give a file of them.")
    return generator.to(pick_device(device))


def _open(name: str, options: Mapping[str, Any], *, trust_code: bool) -> Generator:
    from latentseg.generators.external import build_external
    from latentseg.generators.folders import load_folder
    from latentseg.generators.sources import is_source

    bundled = {generator.name: generator.folder for generator in list_generators()}
    if name in bundled and not Path(name).exists():
        return load_folder(bundled[name], options)
    if is_source(name):
        return _open_source(name, options, trust_code=trust_code)
    if ":" in name:
        return build_external(name)
    near = difflib.get_close_matches(name, [*bundled, *PACKAGES], n=3, cutoff=0.4)
    hint = f" Perhaps {' or '.join(near)}?" if near else ""
    raise InputError(
        f"{name}: no such generator.{hint} Bundled: {', '.join(bundled) or 'none'}. The file of a "
        "checkpoint, an archive or a wheel with one, a folder of `latentseg train-generator` or "
        f"`latentseg convert`, module:callable, or an installed package ({', '.join(PACKAGES)}) "
        "works too; see `latentseg generators`."
    )


def _open_source(name: str, options: Mapping[str, Any], *, trust_code: bool) -> Generator:
    from latentseg.generators.folders import FILES, load_file, load_folder
    from latentseg.generators.programs import PROGRAMS, load_program
    from latentseg.generators.sources import open_source

    path = Path(name)
    folder = path / "generator" if (path / "generator").is_dir() else path
    if any((folder / file).is_file() for file in FILES):
        return load_folder(folder, options)
    source = open_source(name, options)
    checkpoint = source.checkpoint
    if checkpoint.kind in PROGRAMS:
        return load_program(checkpoint, source.options, trust_code=trust_code)
    if "generator" in checkpoint.metadata and source.family is None:
        return load_file(checkpoint, source.options)
    return source.load()[0]
