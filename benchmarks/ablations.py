"""The ablations of Melas-Kyriazi et al. 2021: python benchmarks/ablations.py --data DATASET.

Directions (their Table 3), weight of the contrast loss (Table 4), length of the step (Table 7; here
of the step that makes masks). Everything else stays: search, number of pairs, student, protocol.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from latentseg.datasets.pairs import FolderPairs
from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.evaluation.measuring import measure
from latentseg.evaluation.results import Result
from latentseg.files import write_json
from latentseg.generators import load_generator
from latentseg.labelers.directions import DirectionsLabeler
from latentseg.labelers.directions_settings import DirectionsConfig
from latentseg.labelers.fit_directions import fit_directions
from latentseg.students.segmenter import Segmenter, ensemble
from latentseg.students.training import PRESETS, train
from latentseg.synthesis.writers import synthesize

RADII = (2.0, 4.0, 5.0, 6.0, 8.0)
WEIGHTS = (0.5, 1.0, 5.0)  # the official weight of 2 is the row "light and dark"
SEARCH = DirectionsConfig(contrast_weight=2.0, is_opposite=False, generation_radius=5.0)


@dataclass(frozen=True)
class Ablation:
    """Fits, labels, trains and measures with one thing changed; finished parts stay."""

    generator: str
    dataset: RealDataset
    out: Path
    count: int
    steps: int

    def labeler(self, weight: float = SEARCH.contrast_weight) -> DirectionsLabeler:
        """The directions found with a weight of the contrast loss."""
        config = replace(SEARCH, contrast_weight=weight)
        opened = load_generator(self.generator)
        return fit_directions(opened, config=config, out=self.out / f"labeler-{weight:g}")

    def student(self, name: str, labeler: DirectionsLabeler) -> Segmenter:
        """A student of the pairs that a labeler makes."""
        folder = self.out / name
        data = synthesize(labeler.generator, labeler, count=self.count, out=folder / "dataset")
        config = PRESETS["quick"]
        decay_at = self.steps * config.decay_at // config.steps
        config = replace(config, steps=self.steps, decay_at=decay_at)
        return train(FolderPairs(data), out=folder / "student", config=config)

    def rows(self) -> Iterator[tuple[str, Result]]:
        """Name and result of every setting."""
        labeler = self.labeler()
        single = {
            mode: self.student(mode, labeler.with_config(replace(labeler.config, mode=mode)))
            for mode in ("light", "dark")
        }
        for mode, student in single.items():
            yield f"{mode} direction", self.measured(student)
        yield "light and dark", self.measured(self.student("both", labeler))
        yield "ensemble of light and dark", self.measured(ensemble(list(single.values())))
        opposite = labeler.with_config(replace(labeler.config, is_opposite=True))
        yield "opposite steps", self.measured(self.student("opposite", opposite))
        for radius in RADII:
            moved = labeler.with_config(replace(labeler.config, generation_radius=radius))
            name = "both" if radius == SEARCH.generation_radius else f"radius-{radius:g}"
            yield f"radius {radius:g}", self.measured(self.student(name, moved))
        for weight in WEIGHTS:
            student = self.student(f"weight-{weight:g}", self.labeler(weight))
            yield f"contrast weight {weight:g}", self.measured(student)

    def measured(self, student: Segmenter) -> Result:
        """What a student reaches on the real photos."""
        return measure(student, self.dataset, quiet=True)


def main(
    data: Path,
    *,
    generator: str = "pets64",
    out: Path = Path("runs/ablations"),
    count: int = 2_000,
    steps: int = 300,
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None,
) -> None:
    """Prints a table of results on real photos, a row for each setting.

    Args:
        data: Real photos with masks.
        generator: What is labelled.
        out: Folder of all parts; the same command continues.
        count: Synthetic pairs of each setting.
        steps: Training steps of each student, the small one of the preset `quick`.
        json: Write the rows to this file.
    """
    ablation = Ablation(generator, open_dataset(data), out, count, steps)
    print("| setting | acc | IoU | pooled IoU | max F |\n|---|---|---|---|---|", flush=True)
    rows = []
    for name, result in ablation.rows():
        numbers = (result.acc, result.iou, result.iou_pooled, result.max_f)
        print(f"| {name} | {' | '.join(f'{number:.3f}' for number in numbers)} |", flush=True)
        rows.append({"setting": name, **result.to_json()})
    if json:
        write_json(json, rows)


if __name__ == "__main__":
    tyro.cli(main)
