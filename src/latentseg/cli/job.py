"""The whole job: `latentseg run`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from latentseg.cli.flags import (
    CHECKPOINT,
    COMMON,
    PROCESSES,
    CommonFlags,
    GeneratorName,
    Maybe,
    OfCheckpoint,
    OfPreset,
    OfProcesses,
    Several,
    changed,
    read_options,
    tell,
    write_result,
)
from latentseg.cli.messages import usage_error
from latentseg.cli.methods import (
    MethodFlags,
    Painted,
    flags_of,
    given,
    refuse_flags_of_others,
    settings_flag,
    specialized,
    with_settings,
)
from latentseg.cli.results import print_results
from latentseg.cli.self_training import SELF_TRAINING, OfSelfTraining
from latentseg.cli.students import student_config
from latentseg.errors import InputError
from latentseg.files import read_json
from latentseg.labelers.agreement_settings import AgreementConfig
from latentseg.labelers.kinds import LabelerKind
from latentseg.labelers.presets import LABELERS
from latentseg.labelers.registry import find_kind

COMBINATION = "combination"
VOTING = ("directions", "style-mixing")  # what the method "voting" stands for
RESERVED = (
    *("method", "agree", "vote", "ensemble", "preset", "settings", "painted", "eval", "group"),
    *("photos", "rounds", "ceiling", "count", "network", "width", "steps", "protocol", "seed"),
    *("keep-dataset", "classes", "option", "latents", "device", "devices", "nodes"),
    *("encoder-weights", "encoder-lr", "ema", "student-size", "max-photos", "photo-share"),
    *("adapt", "area", "area-from", "hold-last", "agreement-smoothing", "mixing"),
    *("label-edges",),
)


def run_command(arguments: Sequence[str]) -> Callable[..., None]:
    """The command `run`, with the flags of the methods that its arguments name.

    Args:
        arguments: What follows `latentseg run`.
    """
    taking_part = _taking_part(arguments)
    preset = given(arguments, "--preset") or "standard"
    chosen, bases = with_settings(taking_part), dict(LABELERS.get(preset, {}))
    settings = given(arguments, "--settings")
    if settings is not None and settings in chosen.settings:
        bases[chosen.name] = chosen.settings[settings]
    configs = {kind.name: (bases.get(kind.name, kind.default), kind.flags) for kind in taking_part}
    if len(taking_part) > 1:
        configs[COMBINATION] = (AgreementConfig(), {})
    flags = flags_of(configs, plain=COMBINATION, reserved=RESERVED)
    refuse_flags_of_others(arguments, flags, reserved=RESERVED)

    has_painted = any(kind.takes_painted for kind in taking_part)
    return specialized(
        run,
        {
            "labeler": (OmitArgPrefixes[flags], flags()),
            "settings": (settings_flag(taking_part), next(iter(chosen.settings))),
            "painted": (Painted, Parameter.empty),
        },
        removed=() if has_painted else ("painted",),
    )


def _taking_part(arguments: Sequence[str]) -> list[LabelerKind[Any]]:
    """The methods that the arguments name."""
    named = {flag: given(arguments, flag) for flag in ("--method", "--agree", "--vote")}
    if named["--method"] == "voting":
        named["--method"], named["--vote"] = VOTING
    named["--method"] = named["--method"] or VOTING[0]
    return [_kind_of(flag, name) for flag, name in named.items() if name][:2]


def _kind_of(flag: str, name: str) -> LabelerKind[Any]:
    try:
        return find_kind(name)
    except InputError as error:
        usage_error(f"{flag}: {error}")


def run(
    generator: GeneratorName,
    out: Annotated[Positional[Path], arg(metavar="RUN")],
    *,
    method: str = "directions",
    agree: Maybe[str] = None,
    vote: Maybe[str] = None,
    ensemble: bool = False,
    preset: Literal["quick", "standard", "paper"] = "standard",
    settings: str,
    painted: Path | None,
    eval: Several[Path] = (),
    group: Several[str] = (),
    photos: Several[Path] = (),
    rounds: OfPreset[int] = None,
    ceiling: Maybe[Path] = None,
    count: OfPreset[int] = None,
    network: OfPreset[str] = None,
    width: OfPreset[float] = None,
    steps: OfPreset[int] = None,
    student_size: Maybe[tuple[int, int]] = None,
    encoder_weights: Maybe[Path] = None,
    encoder_lr: Maybe[float] = None,
    ema: Maybe[float] = None,
    protocol: OfPreset[str] = None,
    keep_dataset: bool = False,
    seed: int = 0,
    labeler: MethodFlags,
    self_training: OfSelfTraining = SELF_TRAINING,
    checkpoint: OfCheckpoint = CHECKPOINT,
    processes: OfProcesses = PROCESSES,
    common: CommonFlags = COMMON,
) -> None:
    """The whole job: label, synthesize, train, evaluate, report. The same command continues it.

    Args:
        generator: What to learn from.
        out: The run folder.
        method: How masks are made: directions, style-mixing, few-shot from painted images,
            feature-clusters, module:callable, or voting for directions with the vote of
            style-mixing. `--method NAME --help` shows the flags of that method.
        agree: Another method, whose masks have to agree, or a sample is dropped.
        vote: Another method, which votes on each pixel as well.
        ensemble: Average the students of the light and of the dark direction.
        preset: quick for a first look, standard for quality, paper for the published settings.
        eval: Real photos with masks to measure on; may be given several.
        group: Classes made of their labels: named groupings or JSON files, applied in turn.
        photos: Unlabelled photos of the same domain, for self-training: photos, or folders.
        rounds: Rounds of self-training.
        ceiling: Real photos with masks: the same student learns from them, for comparison.
        count: Synthetic pairs; 0 draws new ones for as long as the student trains.
        network: "unet", the papers' own; "unet:efficientnet-lite0", whose encoder has seen the
            photos of ImageNet (extra `features`); or "smp:ARCHITECTURE:ENCODER[:WEIGHTS]" with the
            extra `networks`.
        width: Width of the U-Net, 1 in the paper.
        steps: Training steps of the student; half of them for an initialized encoder.
        student_size: Height and width at which it works; by default those of the generator, and at
            least 128 px for an encoder that has seen photos.
        encoder_weights: File of the weights of a pretrained encoder; by default those of the
            installed package, or of the user's cache.
        encoder_lr: Learning rate of a pretrained encoder; by default a tenth of the other.
        ema: The student is a moving average of its weights, of which this share is kept at each
            step, for example 0.99.
        protocol: How results are measured: melas2021, pooled or tritrong2021.
        keep_dataset: Keep the synthetic pairs in RUN/dataset.
        seed: Seeds all random numbers.
    """
    from latentseg.distributed import rank_and_world
    from latentseg.run import preset as preset_for
    from latentseg.run import run as run_all

    del settings  # they are the defaults of the labeler's flags
    if method == "voting":
        method, vote = VOTING
    base = preset_for(preset, method)
    student = changed(
        student_config(base.student, network=network, width=width, steps=steps),
        size=student_size,
        encoder_weights=None if encoder_weights is None else str(encoder_weights),
        encoder_lr=encoder_lr,
        ema=ema,
    )
    configs = labeler.configs
    config = replace(
        base,
        agree=agree,
        vote=vote,
        combination=configs.pop(COMBINATION, base.combination),
        labelers=configs,
        ensemble=ensemble,
        count=base.count if count is None else count or None,
        student=student,
        rounds=self_training.changed(changed(base.rounds, rounds=rounds, train=student)),
        protocol=protocol or base.protocol,
        seed=seed,
    )
    run_all(
        generator,
        out,
        config=config,
        painted=painted,
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
