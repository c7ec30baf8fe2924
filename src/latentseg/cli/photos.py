"""The command about photos as latents: `latentseg invert`."""

from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    CommonFlags,
    GeneratorName,
    Maybe,
    OfCheckpoint,
    Off,
    OfSettings,
    Several,
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
        arg(
            metavar="PHOTO [PHOTO ...] OUT",
            help="Photos or folders of photos; last the output. (required)",
            help_behavior_hint="",
        ),
    ],
    *,
    labeler: Maybe[Path] = None,
    settings: Annotated[Literal["ours", "official"], arg(aliases=("--variant",))] = "ours",
    space: OfSettings[Literal["w", "w+", "z"]] = None,
    steps: OfSettings[int] = None,
    start: OfSettings[Literal["mean", "drawn"]] = None,
    noise: Off = True,
    perceptual: Several[Path] = (),
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """Finds the latents of photos, what the generator draws for them, and masks by a labeler.

    Args:
        generator: The generator whose latents are searched.
        paths: Photos, and last the output folder.
        labeler: Folder of a labeler of this generator. Its masks of the photos are written as well.
        settings: ours, or the constants of the official StyleGAN2 projector.
        space: w (one style), w+ (one style for each layer), or z (the latent of a generator without
            styles).
        steps: Number of steps of the search.
        start: Start at the mean latent, or at the nearest of some drawn ones.
        noise: Leave the noise maps of a StyleGAN as they are, instead of searching them as well.
        perceptual: Weights of a perceptual loss: torchvision's VGG16, and LPIPS' linear layers.
            Without them a multi-scale loss is used, which needs no weights.
        seed: Seeds all random numbers.
    """
    from latentseg.inversion.folder import invert as invert_all
    from latentseg.inversion.settings import SETTINGS

    photos, out = photos_and_out(paths, "invert")
    config = changed(SETTINGS[settings], space=space, steps=steps, start=start)
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
