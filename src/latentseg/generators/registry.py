"""All families of generators, and which of them a checkpoint belongs to."""

from dataclasses import replace
from functools import cache
from importlib import import_module

from latentseg.errors import InputError, LatentsegError
from latentseg.generators.family import Family, Imported, Options, SavedGenerator
from latentseg.generators.protocols import GeneratorInfo
from latentseg.weights.containers import Checkpoint

# Each has its FAMILY.
MODULES = (
    "stylegan2_files", "stylegan3", "stylegan_xl", "stylegan1_files", "mobilestylegan_files",
    "biggan", "bigbigan", "biggan_deep", "studiogan", "selfcond", "gan_stability", "r3gan", "dcgan",
    "progan", "diffusion", "autoencoder",
)  # fmt: skip


@cache
def families() -> dict[str, Family]:
    """Every family by its name."""
    found = {}
    for module in MODULES:
        family = import_module(f"latentseg.generators.families.{module}").FAMILY
        found[family.name] = family
    return found


def find_family(name: str) -> Family:
    """The family called `name`.

    Raises:
        InputError: there is none.
    """
    if name not in families():
        raise InputError(f"`family`: there is no {name}. Known: {', '.join(families())}.")
    return families()[name]


def identify(checkpoint: Checkpoint, name: str | None = None) -> Family:
    """The family of a checkpoint, which is that called `name` if it is given.

    Raises:
        InputError: it is of none, or not of that one; what was missed and the families that fit
            are named.
    """
    objections = {family: each.objection(checkpoint) for family, each in families().items()}
    if name is not None:
        family = find_family(name)
        if objections[name] is not None:
            fitting = [family for family, reason in objections.items() if reason is None]
            raise InputError(
                f"{checkpoint.path}: not a {name} checkpoint: {objections[name]}. "
                f"Families that fit: {', '.join(fitting) or 'none that latentseg knows'}."
            )
        return family
    for known, each in families().items():
        objections[known] = objections[known] or each.doubt(checkpoint)
    fitting = [family for family, reason in objections.items() if reason is None]
    if len(fitting) == 1:
        return families()[fitting[0]]
    if fitting:
        raise InputError(
            f"{checkpoint.path}: may be of {' or '.join(fitting)}. Say which: "
            f"{fitting[0]}:{checkpoint.path}"
        )
    reasons = "\n  ".join(f"{family}: {objection}" for family, objection in objections.items())
    raise InputError(f"{checkpoint.path}: {checkpoint.outline()}; no family knows it.\n  {reasons}")


def import_checkpoint(
    checkpoint: Checkpoint, name: str | None, options: Options
) -> tuple[SavedGenerator, Imported]:
    """Reads the checkpoint of another project.

    Args:
        checkpoint: File or folder, opened.
        name: Of its family; None to find out.
        options: Of the family: `Family.options` and `Family.choices`.

    Returns:
        The generator, on the CPU, and what its reader made of the file.

    Raises:
        InputError: it is of no family, or not of the one named, or an option does not fit.
        CorruptFileError: damaged, or parameters are missing or of another shape.
        UnsafeFileError: it could only be opened by running code from it.
    """
    family = identify(checkpoint, name)
    family.check_options(options)
    try:
        imported = family.read(checkpoint, options)
        imported = replace(imported, sampling=family.sampling(imported.sampling, options))
        info = GeneratorInfo(
            name=checkpoint.path.stem,
            size=imported.config.size,
            latent=(),
            n_classes=imported.config.n_classes,
            space="",
            licence=family.licence,
            source=f"{family.title}: {checkpoint.path.name}",
            sha256=checkpoint.sha256,
            family=family.name,
        )
        return family.generator(imported, info, checkpoint.path), imported
    except LatentsegError as error:
        fitting = [
            other.name
            for other in families().values()
            if other is not family and other.objection(checkpoint) is None
        ]
        hint = f" It may be of {' or '.join(fitting)} instead." if fitting else ""
        raise type(error)(f"{error} It was read as {family.name}.{hint}") from error
