"""Reads self-conditioned GANs (Liu et al. 2020), whose classes are clusters; and baselines."""

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

EMBEDDING = "get_latent.embedding.weight"


def objection(checkpoint: Checkpoint) -> str | None:
    """Why this is not a resnet2 of the self-conditioned GAN's authors; None if it is one."""
    names = checkpoint.names("generator")
    if "embedding.weight" in names:
        return "its class embedding is that of GAN-stability"
    for name in ("fc.weight", "resnet_0_1.conv_0.weight", "conv_img.weight"):
        if name not in names:
            return f"no parameter {name!r} under 'generator'"
    return None


def read(checkpoint: Checkpoint, options: Options) -> Imported:
    """Reads a checkpoint; without the option `weights` those that the paper's wrapper takes.

    Raises:
        InputError: an option has no such value.
        CorruptFileError: a parameter is missing, or of a shape that fits no network.
    """
    weights = chosen_weights(checkpoint, options, default="raw")
    return read_network(weights, EMBEDDING if EMBEDDING in weights else None)


FAMILY = Family(
    name="selfcond",
    title="Self-conditioned GAN (Liu et al. 2020)",
    files="*_model.pt: self-conditioned, class-conditional and unconditional, network resnet2",
    licence="MIT as its repository; the images it was trained on may allow research only",
    config=ResNetGANConfig,
    build=ResNetGAN,
    adapt=adapt,
    objection=objection,
    read=read,
    options={"weights": "raw (as trained; default), or average (moving average over training)"},
    choices=("class_weights",),
    abilities=("features", "classes"),
    published={
        "selfcond-128": ResNetGANConfig("resnet2", RESNET2_CHANNELS, n_classes=100, embed_dim=256),
        "uncond-128": ResNetGANConfig("resnet2", RESNET2_CHANNELS),
    },
)
