"""The whole job: `latentseg run`."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    PROCESSES,
    CommonFlags,
    GeneratorName,
    OfCheckpoint,
    OfProcesses,
    changed,
    read_options,
    tell,
    write_result,
)
from latentseg.cli.methods import (
    DIRECTIONS,
    FEW_SHOT,
    STYLE_MIXING,
    OfDirections,
    OfFewShot,
    OfStyleMixing,
    directions_config,
    few_shot_config,
    refuse_flags_of_others,
    style_mixing_config,
)
from latentseg.cli.results import print_results
from latentseg.cli.students import student_config
from latentseg.files import read_json


def run(
    generator: GeneratorName,
    out: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    method: Literal["directions", "style-mixing", "few-shot", "voting"] = "directions",
    agree: Literal["directions", "style-mixing"] | None = None,
    min_agreement: float = 0.5,
    preset: Literal["quick", "standard", "paper"] = "standard",
    eval: tuple[Path, ...] = (),
    group: tuple[str, ...] = (),
    photos: Path | None = None,
    rounds: int | None = None,
    ceiling: Path | None = None,
    count: int | None = None,
    network: str | None = None,
    width: float | None = None,
    steps: int | None = None,
    protocol: str | None = None,
    keep_dataset: bool = False,
    seed: int = 0,
    directions: OfDirections = DIRECTIONS,
    style_mixing: OfStyleMixing = STYLE_MIXING,
    few_shot: OfFewShot = FEW_SHOT,
    checkpoint: OfCheckpoint = CHECKPOINT,
    processes: OfProcesses = PROCESSES,
    common: CommonFlags = COMMON,
) -> None:
    """The whole job: label, synthesise, train, evaluate, report. The same command continues it.

    Args:
        generator: What to learn from.
        out: The run folder.
        method: How masks are made; voting takes directions and style-mixing together, few-shot
            learns from painted images.
        agree: Another method, whose masks have to agree, or a sample is dropped.
        min_agreement: Least IoU of the masks of two methods that vote or have to agree.
        preset: quick for a first look, standard for quality, paper for the published settings.
        eval: Real photos with masks to measure on; may be given several.
        group: Classes made of their labels: named groupings or JSON files, applied in turn.
        photos: Unlabelled photos of the same domain, for self-training.
        rounds: Rounds of self-training; by default those of the preset.
        ceiling: Real photos with masks: the same student learns from them, for comparison.
        count: Synthetic pairs; 0 draws new ones for as long as the student trains.
        network: "unet", or "smp:ARCHITECTURE:ENCODER" with the extra `networks`.
        width: Width of the U-Net, 1 in the paper.
        steps: Training steps of the student.
        protocol: How results are measured: melas2021, pooled or tritrong2021.
        keep_dataset: Keep the synthetic pairs in RUN/dataset.
        seed: Of everything random.
    """
    from latentseg.distributed import rank_and_world
    from latentseg.run import PRESETS, VOTERS, few_shot_preset
    from latentseg.run import run as run_all

    used = VOTERS if method == "voting" else (method, agree)
    refuse_flags_of_others(used, directions, style_mixing, few_shot)
    base = few_shot_preset(preset) if method == "few-shot" else PRESETS[preset]
    student = student_config(base.student, network=network, width=width, steps=steps)
    config = replace(
        base,
        method=method,
        agree=agree,
        min_agreement=min_agreement,
        directions=directions_config(base.directions, directions),
        style_mixing=style_mixing_config(base.style_mixing, style_mixing),
        few_shot=few_shot_config(few_shot),
        ensemble=directions.mode == "ensemble",
        count=base.count if count is None else count or None,
        student=student,
        rounds=changed(base.rounds, rounds=rounds, train=student),
        protocol=protocol or base.protocol,
        seed=seed,
    )
    run_all(
        generator,
        out,
        config=config,
        labels=few_shot.labels,
        eval_data=eval,
        groupings=group,
        photos=photos,
        ceiling=ceiling,
        keep_dataset=keep_dataset,
        classes=checkpoint.classes,
        options=read_options(checkpoint.option),
        latents=checkpoint.latents,
        latent_noise=checkpoint.latent_noise,
        trust_code=checkpoint.trust_code,
        device=common.device,
        devices=processes.devices,
        nodes=processes.nodes,
        quiet=common.quiet,
    )
    results = read_json(out / "results.json")
    if rank_and_world()[0] == 0:
        print_results(common, results)
    tell(common, f"report: {out / 'report.html'}\nmodel: {out / 'model'}")
    write_result(common, results)
