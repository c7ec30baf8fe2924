"""Reads the GANs of "Which training methods for GANs do actually converge?" (Mescheder et al.)."""

from latentseg.generators.families.resnet_gan import (
    RESNET2_CHANNELS,
    ResNetGAN,
    ResNetGANConfig,
    chosen_weights,
    read_network,
)
from latentseg.generators.family import Family, Imported, Options
from latentseg.generators.noise_generator import adapt
from latentseg.weights.containers import Checkpoint


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a checkpoint of GAN-stability; None if it is one."""
    names = checkpoint.names("generator")
    for name in ("embedding.weight", "fc.weight", "conv_img.weight"):
        if name not in names:
            return f"no parameter {name!r} under 'generator'"
    if not names & {"resnet.0.conv_0.weight", "resnet_0_0.conv_0.weight"}:
        return "neither a parameter 'resnet.0.conv_0.weight' nor 'resnet_0_0.conv_0.weight'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a checkpoint; without the option `weights` the moving average, as its authors do.

    Raises:
        InputError: an option has no such value.
        CorruptFileError: a parameter is missing, or of a shape that fits no network.
    """
    return read_network(chosen_weights(checkpoint, options, "average"), "embedding.weight")


FAMILY = Family(
    name="gan-stability",
    title="GAN-stability (Mescheder et al. 2018)",
    files="*.pt, networks resnet, resnet2, resnet3 and resnet4",
    licence="MIT as its repository; the images it was trained on may allow research only",
    config=ResNetGANConfig,
    build=ResNetGAN,
    adapt=adapt,
    objection=objection,
    read=read,
    options={"weights": "average (moving average over training; default), or raw (as trained)"},
    choices=("class_weights",),
    abilities=("features", "classes"),
    published={
        "celebahq-1024": ResNetGANConfig("resnet", (512, 512, 512, 512, 256, 128, 64, 32, 16, 16)),
        "celeba-256": ResNetGANConfig("resnet4", (1024, 1024, 1024, 512, 256, 128, 64, 64)),
        "lsun-256": ResNetGANConfig("resnet3", (2048, 1024, 1024, 512, 256, 128, 64)),
        "imagenet-128": ResNetGANConfig("resnet2", RESNET2_CHANNELS, n_classes=1000, embed_dim=256),
    },
)
