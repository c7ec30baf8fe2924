"""What a generator training leaves at each report: contact sheet, distance, card, the generator."""

import copy
import json
from dataclasses import asdict, dataclass, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from latentseg.files import read_text, write_text
from latentseg.generators.families.stylegan2 import StyleGAN2
from latentseg.generators.family import Sampling
from latentseg.generators.folders import save_generator
from latentseg.generators.protocols import GeneratorInfo
from latentseg.generators.style_generator import StyleGenerator
from latentseg.generators.training.config import CHANGEABLE, GeneratorTrainingConfig
from latentseg.generators.training.distance import FrechetDistance, sliced_wasserstein
from latentseg.generators.training.feature_distances import FeatureDistances
from latentseg.generators.training.page import preview_of, write_page
from latentseg.generators.training.photos import Photos
from latentseg.generators.training.steps import Training
from latentseg.images import contact_sheet, to_pixels, write_image

PREVIEW_ROWS, PREVIEW_COLUMNS = 8, 12
HELPED = "features of ImageNet classes helped the generator"
SHOWN_DISTANCES = ("fd-lite0", "precision", "recall")  # on the progress line, beside swd
PSI = 0.9  # truncation of samples: a generator of few photos gains little from a lower one


@dataclass(frozen=True)
class Measures:
    """What is measured of drawn images at each report, beside the sliced Wasserstein distance.

    Attributes:
        by_features: fd-lite0, precision and recall; None where the features are not installed.
        fid: The FID; None without the Inception weights.
    """

    by_features: FeatureDistances | None = None
    fid: FrechetDistance | None = None


class Report:
    """Writes the state of a training: metrics, contact sheet, page, the generator with its card.

    Args:
        out: Folder of the training.
        photos: What it learns from.
        name, licence: Of the generator.
        measures: What is measured.
    """

    def __init__(
        self, out: Path, photos: Photos, *, name: str, licence: str, measures: Measures
    ) -> None:
        self.out, self.photos, self.name, self.licence = out, photos, name, licence
        self.measures = measures

    def write(self, training: Training, losses: dict[str, Tensor]) -> dict[str, float]:
        """Measures the averaged generator as it is now, and saves it. Returns the distances."""
        network, config = training.average, training.config
        distances = self._measure(network, config)
        reached = {
            "step": training.step,
            "images": training.step * config.batch,
            **{name: getattr(config, name) for name in CHANGEABLE},
            **{key: round(value.item(), 4) for key, value in losses.items()},
            **distances,
        }
        row = {**reached, "seconds": round(training.seconds)}
        rows = append_metrics(self.out / "metrics.jsonl", row)
        write_preview(network, preview_of(self.out, training.step))
        self._save(network, config, rows, reached)
        self._write_page(config, rows)
        shown = ("swd", *SHOWN_DISTANCES)
        return {name: distances[name] for name in shown if name in distances}

    def _measure(self, network: StyleGAN2, config: GeneratorTrainingConfig) -> dict[str, float]:
        distances = measure_distance(network, self.photos.pixels, config.distance_images)
        if self.measures.by_features is not None:
            n = min(config.distance_images, len(self.photos))
            distances |= self.measures.by_features(draw(network, n, psi=1.0, seed=1))
        if self.measures.fid is not None:
            n = self.measures.fid.n_images
            distances["fid"] = round(self.measures.fid(draw(network, n, psi=1.0, seed=1)), 2)
        return distances

    def _save(
        self,
        network: StyleGAN2,
        config: GeneratorTrainingConfig,
        rows: list[dict[str, Any]],
        reached: dict[str, Any],
    ) -> None:
        source = self._source(config)
        info = GeneratorInfo(
            name=self.name,
            size=config.size,
            latent=(),
            n_classes=network.config.n_classes,
            space="",
            licence=self.licence,
            source=source,
            sha256="",
            family="stylegan2",
        )
        # A copy: a generator freezes its weights, and this network goes on learning.
        generator = StyleGenerator(copy.deepcopy(network), info, Sampling(psi=PSI))
        save_generator(
            generator,
            self.out / "generator",
            card=card_text(self.name, self.licence, source, config, rows, reached),
            origin={**asdict(config), **reached},
            half=True,
        )

    def _source(self, config: GeneratorTrainingConfig) -> str:
        """Where the weights come from; it travels to all that is made from the generator."""
        source = f"trained with latentseg train-generator on {len(self.photos)} photos"
        return source if config.features == "none" else f"{source}; {HELPED}"

    def _write_page(self, config: GeneratorTrainingConfig, rows: list[dict[str, Any]]) -> None:
        height, width = config.size
        write_page(
            self.out,
            rows,
            name=self.name,
            summary=f"A StyleGAN2 for images of {height} x {width} pixels, {self._source(config)}.",
            commands=commands_of(config, rows),
            psi=PSI,
            preview_rows=PREVIEW_ROWS,
        )


@torch.no_grad()
def draw(network: StyleGAN2, n: int, *, psi: float, seed: int = 0, batch: int = 64) -> Tensor:
    """Draws `n` images (n, 3, H, W) uint8 on the CPU, with stored noise; classes in turn."""
    device, config = network.mapping.w_avg.device, network.config
    z = torch.randn(n, config.z_dim, generator=torch.Generator().manual_seed(seed)).to(device)
    labels = torch.arange(n, device=device) % config.n_classes if config.n_classes else None
    images = []
    for start in range(0, n, batch):
        part = slice(start, start + batch)
        w = network.mapping(z[part], None if labels is None else labels[part])
        w = torch.lerp(network.mapping.w_avg, w, psi)
        x = network(w[:, None].expand(-1, network.n_layers, -1))
        images.append(torch.from_numpy(to_pixels(x)).permute(0, 3, 1, 2))
    return torch.cat(images)


def write_preview(network: StyleGAN2, path: Path) -> None:
    """A contact sheet of 96 images from fixed latents, truncated as samples are."""
    drawn = draw(network, PREVIEW_ROWS * PREVIEW_COLUMNS, psi=PSI).permute(0, 2, 3, 1).numpy()
    rows = [list(row) for row in drawn.reshape(PREVIEW_ROWS, PREVIEW_COLUMNS, *drawn.shape[1:])]
    write_image(path, contact_sheet(rows))


def measure_distance(network: StyleGAN2, photos: Tensor, n: int) -> dict[str, float]:
    """Sliced Wasserstein distance x 1000 of drawn images to photos, per pyramid level and mean.

    Truncation is off: the distance asks for the variety of the photos, too. `floor` is the
    distance of two disjoint halves of the photos, what a perfect generator would reach.
    """
    n = min(n, len(photos) // 2)
    order = torch.randperm(len(photos), generator=torch.Generator().manual_seed(0))
    real, held = photos[order[:n]], photos[order[n : 2 * n]]
    levels = sliced_wasserstein(draw(network, n, psi=1.0, seed=1), real)
    floor = sliced_wasserstein(held, real)
    return {f"swd_{px}": round(value, 2) for px, value in levels.items()} | {
        "swd": round(sum(levels.values()) / len(levels), 2),
        "swd_floor": round(sum(floor.values()) / len(floor), 2),
    }


def append_metrics(path: Path, row: dict[str, Any]) -> list[dict[str, Any]]:
    """Adds one object to a JSONL file, replacing rows of the same or a later step; all rows."""
    rows = [json.loads(line) for line in read_text(path).splitlines()] if path.exists() else []
    rows = [*(earlier for earlier in rows if earlier["step"] < row["step"]), row]
    write_text(path, "".join(json.dumps(each) + "\n" for each in rows))
    return rows


def commands_of(config: GeneratorTrainingConfig, rows: list[dict[str, Any]]) -> str:
    """The commands that train this generator, one for each of the settings it went through.

    They repeat it exactly if the settings were changed at a report.
    """
    stages = [
        list(stage)
        for _, stage in groupby(rows, lambda row: [_setting(row.get(s)) for s in CHANGEABLE])
    ]
    return "\n".join(
        _command(
            replace(config, **{s: _setting(stage[-1].get(s)) for s in CHANGEABLE}),
            stage[-1]["images"],
        )
        for stage in stages
    )


def _setting(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _command(config: GeneratorTrainingConfig, images: int) -> str:
    options = {"images": images}
    for field in fields(config):
        value = getattr(config, field.name)
        if value != field.default and field.name != "images":
            options[field.name] = value
    flags = [
        f"--{name.replace('_', '-')} {_flag_value(value)}".rstrip()
        for name, value in options.items()
    ]
    return " ".join(["latentseg train-generator PHOTOS OUT", *flags])


def _flag_value(value: Any) -> str:
    if isinstance(value, bool):
        return ""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def card_text(
    name: str,
    licence: str,
    source: str,
    config: GeneratorTrainingConfig,
    rows: list[dict[str, Any]],
    reached: dict[str, Any],
) -> str:
    """The generator's README.md: what it draws, how it was trained, what was reached.

    It holds nothing that differs when the same training is repeated, as the time does.
    """
    measured = "\n".join(f"| {key} | {value} |" for key, value in reached.items())
    explained = EXPLAINED if "fd-lite0" not in reached else f"{EXPLAINED}\n{EXPLAINED_FEATURES}"
    return f"""# {name}

A StyleGAN2 for images of {config.size[0]} x {config.size[1]} pixels, {source}:

```
{commands_of(config, rows)}
```

What was reached:

| | |
|---|---|
{measured}

{explained}

Licence of the weights: {licence}
"""


EXPLAINED = """\
`swd` is the sliced Wasserstein distance x 1000 to the photos (Karras et al. 2018), mean over the
levels of the Laplacian pyramid. It needs no network and knows no objects. `swd_floor` is the
distance between two halves of the photos. `d`, `g`, `r1` are the last losses."""
EXPLAINED_FEATURES = """\
`fd-lite0` is the Frechet distance between features of EfficientNet-Lite0 of drawn images and of
photos; it compares with other values of fd-lite0 only. `precision` and `recall` are those of
Kynkaanniemi et al. 2019 on the same features."""
