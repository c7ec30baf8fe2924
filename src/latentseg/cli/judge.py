"""The command that judges a labeler: `latentseg judge`."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    CommonFlags,
    GeneratorName,
    OfCheckpoint,
    open_generator,
    open_segmenter,
    tell,
    write_result,
)
from latentseg.cli.results import print_results


def judge(
    generator: GeneratorName,
    labeler: Annotated[Positional[Path], arg(metavar="LABELER")],
    *,
    model: str,
    count: int = 500,
    protocol: str = "feng2023",
    seed: int = 0,
    checkpoint: OfCheckpoint = CHECKPOINT,
    common: CommonFlags = COMMON,
) -> None:
    """Scores a labeler on generated images against a segmenter of real photos, as pseudo truth.

    Args:
        generator: The generator that the labeler was fitted to.
        labeler: Folder of `latentseg fit`.
        model: The judge: a segmenter (bundled name, model folder or run folder), or a .tflite file
            that takes an RGB image and gives one map (needs the extra `judge`).
        count: Number of generated images.
        protocol: feng2023, boundary, melas2021, voynov2020, selfmask or mae.
        seed: Seeds the images.
    """
    from latentseg.evaluation.judging import judge as judge_labeler
    from latentseg.evaluation.tflite_segmenter import SUFFIX, TfliteSegmenter
    from latentseg.labelers import load_labeler

    is_file = Path(model).suffix == SUFFIX
    judgment = judge_labeler(
        load_labeler(labeler, open_generator(generator, checkpoint, common)),
        TfliteSegmenter(model) if is_file else open_segmenter(model, common),
        name=Path(model).name,
        count=count,
        protocol=protocol,
        seed=seed,
        quiet=common.quiet,
    )
    values = [{**judgment.everything.to_json(), "setting": "all images"}]
    if judgment.kept is not None:
        values.append({**judgment.kept.to_json(), "setting": "images that its filters keep"})
    print_results(common, values)
    tell(common, f"Its filters keep {judgment.n_kept} of {count} images.")
    tell(common, judgment.everything.note)
    write_result(common, values)
