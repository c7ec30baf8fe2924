"""The command about photos as latents: `latentseg invert`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    CommonFlags,
    GeneratorName,
    OfCheckpoint,
    changed,
    open_generator,
    photos_and_out,
    refuse_left_out,
    tell,
    write_result,
)
from latentseg.files import read_json


def invert(
    generator: GeneratorName,
    paths: Annotated[
        Positional[tuple[Path, ...]],
        arg(metavar="PHOTO [PHOTO ...] OUT", help="Photos or folders of photos; last the output."),
    ],
    *,
    labeler: Path | None = None,
    variant: Literal["ours", "official"] = "ours",
    space: Literal["w", "w+", "z"] | None = None,
    steps: int | None = None,
    start: Literal["mean", "drawn"] | None = None,
    noise: bool = True,
    perceptual: tuple[Path, ...] = (),
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """The latents of photos, what the generator draws for them, and their masks by a labeler.

    Args:
        generator: What draws.
        paths: Photos, and last the output folder.
        labeler: Folder of a labeler of this generator; its masks of the photos are written, too.
        variant: Constants of our own, or those of the official projectors.
        space: w: one style; w+: one for each layer; z: the latent of a generator without styles.
        steps: Of the search.
        start: The mean latent, or the nearest of some drawn ones.
        noise: Search the noise maps of a StyleGAN, too.
        perceptual: Weights of a perceptual loss: VGG16 of torchvision, and those of LPIPS. Without
            them a multi-scale loss is used.
        seed: Of everything random.
    """
    from latentseg.inversion.search import VARIANTS
    from latentseg.inversion.search import invert as invert_all

    photos, out = photos_and_out(paths, "invert")
    config = changed(VARIANTS[variant], space=space, steps=steps, start=start)
    found = invert_all(
        open_generator(generator, checkpoint, common),
        photos,
        out=out,
        config=changed(config, noise=config.noise and noise),
        labeler=labeler,
        perceptual=perceptual,
        seed=seed,
        device=common.device,
        quiet=common.quiet,
    )
    for one in found:
        tell(common, f"{one.name}  {one.psnr:.1f} dB  {one.warning}".rstrip())
    tell(common, f"look at: {out / 'inversions.png'}")
    record = read_json(out / "inversions.json")
    write_result(common, record)
    refuse_left_out(list(record["left_out"]))
