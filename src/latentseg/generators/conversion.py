"""Converts checkpoints of other projects: afterwards their pickles are not needed any more."""

from dataclasses import replace
from pathlib import Path

import torch

from latentseg.errors import InputError
from latentseg.files import MANIFEST, locked, read_json, verify_manifest
from latentseg.generators.family import Imported, Options, SavedGenerator
from latentseg.generators.folders import NO_OPTIONS, save_generator
from latentseg.generators.programs import PROGRAMS
from latentseg.generators.registry import families
from latentseg.generators.sources import Source, open_source
from latentseg.images import Pixels, contact_sheet, to_pixels, write_image
from latentseg.progress import Progress, say
from latentseg.weights.containers import Checkpoint

SAMPLES = "samples.png"  # written first: its presence shows an interrupted conversion
PREVIEW_ROWS, PREVIEW_COLUMNS = 2, 4


def convert(
    source: str | Path,
    out: Path | str,
    *,
    options: Options = NO_OPTIONS,
    name: str | None = None,
    licence: str | None = None,
    half: bool = False,
    quiet: bool = False,
) -> Path:
    """Writes a checkpoint as a generator folder: safetensors, config.json, card, samples.

    Args:
        source: "family:path", the path of a checkpoint, an archive or a wheel that says what it
            is, or the name of an installed package, as `load_generator` takes them.
        out: Made if missing. If it holds the same conversion already, nothing is done.
        options: Of the family; `latentseg generators --family NAME` lists them.
        name: Of the generator; by default that of the file.
        licence: Of the weights, if it is not that of the family's authors.
        half: Store float16, half the size.
        quiet: Print nothing.

    Returns:
        `out`, which `load_generator` opens.

    Raises:
        InputError: no such file, of no known family, an option does not fit, or `out` holds
            something else.
        CorruptFileError: the file is damaged.
        UnsafeFileError: it could only be opened by running code from it.
    """
    out = Path(out)
    opened = _opened(str(source), options)
    checkpoint = opened.checkpoint
    asked = {
        "sha256": checkpoint.sha256,
        "file": checkpoint.path.name,
        "options": {key: _shown(value) for key, value in options.items()},
        "name": name,
        "licence": licence,
        "half": half,
    }
    with locked(out):
        if _is_done(out, asked):
            say(f"{out}: converted before", quiet=quiet)
            return out
        generator, imported = opened.load()
        generator.info = replace(
            generator.info,
            name=name or generator.info.name,
            licence=licence or generator.info.licence,
        )
        for note in imported.notes:
            say(f"{checkpoint.path.name}: {note}", quiet=quiet)
        write_image(out / SAMPLES, _preview(generator, quiet))
        save_generator(
            generator,
            out,
            card=_card(generator, imported, checkpoint, options),
            origin={**asked, "embedded_sources": dict(checkpoint.sources), "notes": imported.notes},
            half=half,
        )
    return out


def _opened(source: str, options: Options) -> Source:
    opened = open_source(source, options)
    checkpoint = opened.checkpoint
    if checkpoint.kind in PROGRAMS:
        raise InputError(
            f"{checkpoint.path}: a {checkpoint.kind} program, whose layers cannot be converted. "
            f"Use it as it is: latentseg run {checkpoint.path} RUN --trust-code"
        )
    if "generator" in checkpoint.metadata or (checkpoint.path / MANIFEST).is_file():
        raise InputError(f"{checkpoint.path}: is a generator of latentseg already.")
    return opened


def _is_done(out: Path, asked: dict[str, object]) -> bool:
    if (out / MANIFEST).is_file():
        verify_manifest(out)
        config = read_json(out / "config.json")
        origin = config.get("origin") if isinstance(config, dict) else None
        if isinstance(origin, dict) and asked.items() <= origin.items():
            return True
        raise InputError(f"{out}: holds another generator. Choose another folder.")
    is_begun = (out / SAMPLES).exists()
    if not is_begun and any(not path.name.startswith(".") for path in out.iterdir()):
        raise InputError(f"{out}: not empty and not begun by this command. Choose another folder.")
    return False


def _shown(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


@torch.no_grad()
def _preview(generator: SavedGenerator, quiet: bool) -> Pixels:
    n_images, images = PREVIEW_ROWS * PREVIEW_COLUMNS, []
    with Progress("samples", total=n_images, quiet=quiet) as progress:
        for seed in range(n_images):
            images.append(to_pixels(generator(generator.sample(torch.tensor([seed]))))[0])
            progress.update(len(images))
    rows = [images[i : i + PREVIEW_COLUMNS] for i in range(0, n_images, PREVIEW_COLUMNS)]
    return contact_sheet(rows)


def _card(
    generator: SavedGenerator, imported: Imported, checkpoint: Checkpoint, options: Options
) -> str:
    info, sampling = generator.info, generator.sampling
    family = families()[info.family]
    choices = {choice: getattr(sampling, choice) for choice in family.choices}
    chosen = "\n".join(f"| {name} | {value} |" for name, value in {**options, **choices}.items())
    notes = "\n".join(f"- {note}" for note in imported.notes) or "- nothing"
    return f"""# {info.name}

{family.title}, images of {info.size[0]} x {info.size[1]} pixels, \
{info.n_classes or "no"} classes. Converted by latentseg from `{checkpoint.path.name}`.

![samples]({SAMPLES})

**Licence of the weights: {info.licence}.** It holds for every dataset and every segmenter made with
this generator, too.

| | |
|---|---|
| sha256 of the file | `{checkpoint.sha256}` |
| latents | {info.space} {info.latent} |
{chosen}

What the file does not say and was assumed:

{notes}
"""
