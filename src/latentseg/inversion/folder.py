"""Inverting a folder of photos: their latents, reconstructions and masks, each photo done once.

Source: Tritrong et al. 2021, the few-shot route to real photos.
"""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from latentseg.devices import pick_device
from latentseg.errors import InputError, LatentsegError
from latentseg.files import (
    MANIFEST,
    claim,
    locked,
    read_safetensors,
    sha256,
    write_bytes,
    write_json,
    write_manifest,
)
from latentseg.generators.chunks import parts
from latentseg.generators.protocols import Generator
from latentseg.generators.style_generator import StyleGenerator
from latentseg.images import (
    Pixels,
    contact_sheet,
    cover,
    list_images,
    read_image,
    to_tensor,
    write_image,
)
from latentseg.inversion.inverted import (
    FIT,
    RECORD,
    Inverted,
    read_record,
    write_found,
    write_mask_of,
)
from latentseg.inversion.losses import Loss, MultiScaleLoss, PerceptualLoss, unexplained
from latentseg.inversion.noise_maps import held, noise_maps, with_noise
from latentseg.inversion.search import Found, Inversion, choose_space
from latentseg.inversion.settings import SETTINGS, InversionConfig
from latentseg.labelers import Labelled, load_labeler
from latentseg.progress import Progress, say

SHOWN, LEAST_CELL_PX = 64, 96


def invert(
    generator: Generator,
    photos: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    config: InversionConfig = SETTINGS["ours"],
    labeler: Path | str | None = None,
    perceptual: Sequence[Path | str] = (),
    seed: int = 0,
    device: str = "auto",
    quiet: bool = False,
) -> list[Inverted]:
    """Finds latents whose images are the photos, and the photos' masks by a labeler.

    Photos are scaled until they cover the generator's size, and cut at the center. A photo NAME.*
    gives NAME.safetensors (see `read_inverted`), NAME_photo.png (what was inverted),
    NAME_reconstruction.png, and with a labeler NAME_mask.png and NAME_overlay.png. All together
    give inversions.json, inversions.png (photo, reconstruction, overlay) and latents.npy, (N, ...)
    in the order of inversions.json. A photo that an earlier call finished is not done again.

    Args:
        generator: Must be differentiable with respect to its latents.
        photos: Photos, or folders of photos.
        out: Folder of the results.
        config: Space, schedule and start of the search; `SETTINGS` has the published constants.
        labeler: Folder of a labeler of this generator, which makes the masks. It sees the noise
            maps that were found.
        perceptual: Files of `PerceptualLoss`. Without any, `MultiScaleLoss` is minimized.
        seed: Seeds all random numbers.
        device: "auto", "cpu", "cuda", ...
        quiet: Print no progress.

    Returns:
        What was found for each photo that could be read, in their order. The other photos are named
        on stderr at the end, and in inversions.json.

    Raises:
        InputError: the generator cannot be inverted, a folder holds no photo, none can be read, two
            have the same name, or `out` holds other work.
        CorruptFileError: the labeler or the perceptual weights are damaged.
        DivergedError: the loss became NaN or infinite.
    """
    generator = held(generator.to(pick_device(device)))
    loss: Loss = MultiScaleLoss()
    if perceptual:
        loss = PerceptualLoss(perceptual, generator.device, pixel_weight=config.pixel_weight)
    config = replace(config, space=choose_space(generator, config.space))
    masks = None if labeler is None else _Masks(generator, labeler)
    out, paths = Path(out), _listed(photos)
    if any(path.resolve().parent == out.resolve() for path in paths):
        raise InputError(f"{out}: this folder holds the photos. Give another one for the results.")
    asked = {
        "generator": generator.info.to_json(),
        "seed": seed,
        "options": asdict(config),
        "loss": loss.name,
        "perceptual": [sha256(file) for file in perceptual],
        "labeler": None if labeler is None else sha256(Path(labeler) / MANIFEST),
    }
    with locked(out):
        claim(out, asked, free=("options.batch",))
        job = _Job(generator, config, loss, masks, out, seed=seed, quiet=quiet)
        job.search(paths)
        return job.finish(paths)


class _Job:
    """The inversion of all photos in one folder."""

    def __init__(
        self,
        generator: Generator,
        config: InversionConfig,
        loss: Loss,
        masks: "_Masks | None",
        out: Path,
        *,
        seed: int,
        quiet: bool,
    ) -> None:
        self.generator, self.config, self.loss, self.masks = generator, config, loss, masks
        self.out, self.seed, self.quiet = out, seed, quiet
        self.done = read_record(out)
        self.problems: dict[str, str] = {}
        self.inversion: Inversion | None = None
        self.has_noise = config.noise and bool(noise_maps(generator))

    def search(self, paths: Sequence[Path]) -> None:
        """Inverts the photos that no earlier call has finished, batch by batch."""
        steps, quiet = self.config.steps, self.quiet
        say(
            f"invert: {len(paths)} photos in {self.config.space}, "
            f"{'with' if self.has_noise else 'without'} noise maps, loss {self.loss.name}; photos "
            f"are {FIT}",
            quiet=quiet,
        )
        size = self.generator.info.size
        at_once = min(self.config.batch, parts(self.config.batch, size)[0].stop)
        with Progress("invert", total=len(paths) * steps, unit="step", quiet=quiet) as progress:
            for first in range(0, len(paths), at_once):
                batch = paths[first : first + at_once]

                def tell(step: int, loss: float, first: int = first, n: int = len(batch)) -> None:
                    progress.update(first * steps + step * n, loss=loss)

                todo = [
                    photo
                    for photo in _readable(batch, size, self.problems)
                    if photo.name not in self.done or self.done[photo.name].sha256 != photo.sha256
                ]
                if todo:
                    self._invert(todo, tell)

    def _invert(self, todo: "Sequence[_Photo]", tell: Callable[[int, float], None]) -> None:
        (self.out / MANIFEST).unlink(missing_ok=True)
        if self.inversion is None:
            self.inversion = Inversion(self.generator, self.config, self.loss, seed=self.seed)
        x = to_tensor(np.stack([photo.image for photo in todo])).to(self.generator.device)
        found = self.inversion.find(x, [photo.key for photo in todo], tell)
        for i, (photo, missing) in enumerate(
            zip(todo, unexplained(found.images, x).tolist(), strict=True)
        ):
            inverted = write_found(
                self.out, found[i], photo.path, photo.sha256, photo.image, missing
            )
            if self.masks is not None:
                inverted = self.masks.write(self.out, inverted, found[i], photo.image)
            self.done[photo.name] = inverted
        self._record()

    def finish(self, paths: Sequence[Path]) -> list[Inverted]:
        """Writes the overview, and says which photos were left out."""
        for problem in self.problems.values():
            say(f"left out: {problem}")
        inverted = [self.done[path.stem] for path in paths if str(path) not in self.problems]
        if not inverted:
            raise InputError(
                f"None of {len(paths)} photos can be read: {'; '.join(self.problems.values())}"
            )
        self._record()
        _write_overview(self.out, list(self.done))
        write_manifest(self.out)
        return inverted

    def _record(self) -> None:
        write_json(
            self.out / RECORD,
            {
                "space": self.config.space,
                "noise": self.has_noise,
                "loss": self.loss.name,
                "fit": FIT,
                "classes": None if self.masks is None else self.masks.labeler.classes,
                "photos": [asdict(each) for each in self.done.values()],
                "left_out": list(self.problems.values()),
            },
        )


def _listed(photos: Path | str | Sequence[Path | str]) -> list[Path]:
    """The photos, and those in folders; two of one name, whose results would clash, are refused."""
    given = [photos] if isinstance(photos, Path | str) else photos
    paths = [
        path
        for each in map(Path, given)
        for path in (list_images(each) if each.is_dir() else [each])
    ]
    if not paths:
        raise InputError("No photos are given.")
    by_name: dict[str, Path] = {}
    for path in paths:
        other = by_name.setdefault(path.stem, path)
        if other != path:
            raise InputError(
                f"{other} and {path}: their results would have the same name. Invert them one by "
                "one, with different output folders."
            )
    return list(by_name.values())


@dataclass(frozen=True)
class _Photo:
    """A photo that could be read, fitted to the generator's size."""

    path: Path
    sha256: str
    image: Pixels

    @property
    def name(self) -> str:
        return self.path.stem

    @property
    def key(self) -> int:
        """What its random numbers depend on: its content, not its place."""
        return int(self.sha256[:15], 16)


def _readable(
    paths: Sequence[Path], size: tuple[int, int], problems: dict[str, str]
) -> Iterator[_Photo]:
    """The photos that can be read; the errors of the others are put into `problems`."""
    for path in paths:
        try:
            image = cover(read_image(path), size)
        except LatentsegError as error:
            problems[str(path)] = str(error)
        else:
            yield _Photo(path, sha256(path), image)


class _Masks:
    """The masks that a labeler makes of what was found."""

    def __init__(self, generator: Generator, folder: Path | str) -> None:
        self.generator, self.folder = generator, folder
        self.labeler = load_labeler(folder, generator)

    def write(self, out: Path, inverted: Inverted, found: Found, image: Pixels) -> Inverted:
        """Writes the mask of one photo."""
        labelled = self._label(found)
        number = int(labelled.rejected_by[0])
        return write_mask_of(
            out,
            inverted,
            image,
            labelled.masks[0].numpy(),
            confidence=float(labelled.confidence[0]),
            filter=self.labeler.filters[number - 1] if number else "",
        )

    def _label(self, found: Found) -> Labelled:
        """The labeler's answer, with the noise maps that were found."""
        if not found.noise or not isinstance(self.generator, StyleGenerator):
            return self.labeler.label(found.latents)
        noise = {name: maps[0] for name, maps in found.noise.items()}
        drawing = with_noise(self.generator, noise)
        return load_labeler(self.folder, drawing).label(found.latents)


def _write_overview(out: Path, names: Sequence[str]) -> None:
    """Writes inversions.png and latents.npy."""
    rows = []
    for name in names[:SHOWN]:
        files = [out / f"{name}_{what}.png" for what in ("photo", "reconstruction", "overlay")]
        rows.append([read_image(file) for file in files if file.is_file()])
    height, width = rows[0][0].shape[:2]
    scale = max(1, round(LEAST_CELL_PX / max(height, width)))
    titles = ("photo", "reconstruction", "overlay")[: len(rows[0])]
    sheet = contact_sheet(rows, titles=titles, cell=(height * scale, width * scale))
    write_image(out / "inversions.png", sheet)
    latents = [read_safetensors(out / f"{name}.safetensors")["latent"] for name in names]
    buffer = io.BytesIO()
    np.save(buffer, torch.stack(latents).numpy())
    write_bytes(out / "latents.npy", buffer.getvalue())
