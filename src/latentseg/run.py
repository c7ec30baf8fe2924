"""The whole job: from a generator to a segmenter of real photos, with a page that shows it all."""

import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from latentseg.configs import check_range
from latentseg.datasets.pairs import FolderPairs, Pairs
from latentseg.datasets.real import RealDataset, open_dataset
from latentseg.distributed import join
from latentseg.errors import InputError
from latentseg.evaluation.baselines import floors
from latentseg.evaluation.measuring import measure
from latentseg.evaluation.pictures import write_examples, write_pairs, write_story
from latentseg.evaluation.report import render_report
from latentseg.evaluation.results import Result
from latentseg.files import (
    MANIFEST,
    claim,
    locked,
    read_json,
    verify_manifest,
    write_json,
    write_manifest,
)
from latentseg.generators import Generator, load_generator
from latentseg.labelers import find_kind
from latentseg.labelers.agreement import AgreementLabeler, VotingLabeler
from latentseg.labelers.agreement_settings import AgreementConfig
from latentseg.labelers.fitting import fit_labeler, read_inputs
from latentseg.labelers.kinds import LabelerKind
from latentseg.labelers.naming import NAMES
from latentseg.labelers.needs import check_ability
from latentseg.labelers.overview import write_overview
from latentseg.labelers.painted import PaintedImages
from latentseg.labelers.presets import LABELERS
from latentseg.labelers.protocols import HasMembers, Labeler, SoftLabeler
from latentseg.progress import say
from latentseg.students.networks import find_encoder_weights, initialized_on
from latentseg.students.segmenter import Segmenter, ensemble
from latentseg.students.self_training import self_train
from latentseg.students.self_training_settings import SelfTrainingConfig
from latentseg.students.training import PARTS_PRESETS as PARTS_STUDENTS
from latentseg.students.training import PRESETS as STUDENTS
from latentseg.students.training import TrainConfig, train, working_size
from latentseg.synthesis.stream import Stream
from latentseg.synthesis.writers import synthesize
from latentseg.version import __version__

SHOWN = 20  # synthetic pairs in the report
COLUMNS = (
    *("dataset", "protocol", "setting", "n_images", "acc"),
    *("iou", "iou_pooled", "max_f", "mean_iou", "weighted_iou"),
)


# May change on continuing: what is of this machine, or does not change the result.
_FREE = ("versions", "keep_dataset", "student.encoder_weights", "rounds.train.encoder_weights")


@dataclass(frozen=True)
class RunConfig:
    """How the whole job is done.

    Attributes:
        method: The labeler: "directions", "style-mixing", "few-shot", "feature-clusters", or
            `module:callable` for one of the user's own.
        agree: Another method, whose masks have to agree with those of `method`, or the sample is
            dropped.
        vote: Another method, which votes on each pixel beside `method`.
        combination: Thresholds where two methods take part.
        labelers: The configuration of each method; default settings for those left out.
        ensemble: Average the students of the members of a labeler (the light and the dark
            direction), in place of one student.
        count: Synthetic pairs the student learns from; None: drawn while it trains, never twice.
        student: The student and its training.
        rounds: Self-training on unlabelled photos, if there are any.
        protocol: How results on real photos are measured.
        seed: Seeds all random numbers.
    """

    method: str = "directions"
    agree: str | None = None
    vote: str | None = None
    combination: AgreementConfig = field(default_factory=AgreementConfig)
    labelers: Mapping[str, Any] = field(default_factory=dict)
    ensemble: bool = False
    count: int | None = 4_000
    student: TrainConfig = field(default_factory=lambda: STUDENTS["quick"])
    rounds: SelfTrainingConfig = field(default_factory=SelfTrainingConfig)
    protocol: str = "melas2021"
    seed: int = 0

    def __post_init__(self) -> None:
        check_range(self, ("count",), 1)
        first, *others = kinds = self.kinds
        if self.agree is not None and self.vote is not None:
            raise InputError("`agree`, `vote`: a second method either agrees or votes, not both.")
        if first in others:
            raise InputError(f"`agree`, `vote`: expected another method than {self.method}.")
        silent = [kind.name for kind in kinds if not kind.can_vote]
        if self.vote is not None and silent:
            raise InputError(f"`vote`: {silent[0]} cannot say how sure it is of each pixel.")
        if self.ensemble and (others or not first.members):
            raise InputError(
                "`ensemble`: averages the students of the members of one labeler, such as the "
                f"light and the dark direction; {' with '.join(kind.name for kind in kinds)} has "
                "none."
            )

    @property
    def kinds(self) -> tuple[LabelerKind[Any], ...]:
        """The labelers that take part, `method` first."""
        names = (self.method, self.agree or self.vote)
        return tuple(find_kind(name) for name in names if name is not None)

    def settings_of(self, kind: LabelerKind[Any]) -> Any:
        """The configuration of a labeler that takes part."""
        return self.labelers.get(kind.name, kind.default)


PRESETS = {
    # a first look: a few minutes on two CPU cores
    "quick": RunConfig(
        labelers=LABELERS["quick"],
        count=3_000,
        rounds=SelfTrainingConfig(rounds=1, train=STUDENTS["quick"]),
    ),
    # the quality that the bundled segmenter has
    "standard": RunConfig(
        count=8_000,
        student=STUDENTS["standard"],
        rounds=SelfTrainingConfig(rounds=2, train=STUDENTS["standard"]),
    ),
    # the settings of Melas-Kyriazi et al. 2021; wants a GPU
    "paper": RunConfig(
        labelers=LABELERS["paper"],
        count=None,
        student=STUDENTS["paper"],
        rounds=SelfTrainingConfig(rounds=3, train=STUDENTS["paper"]),
    ),
}


def run(
    generator: str | Path,
    out: Path | str,
    *,
    config: RunConfig = PRESETS["standard"],
    painted: Path | str | PaintedImages | None = None,
    eval_data: Sequence[Path | str] = (),
    groupings: Sequence[str | Path] = (),
    photos: Path | str | Sequence[Path] | None = None,
    ceiling: Path | str | None = None,
    keep_dataset: bool = False,
    classes: tuple[int, ...] = (),
    options: Mapping[str, Any] | None = None,
    latents: Path | str | None = None,
    latent_noise: float = 0.0,
    trust_code: bool = False,
    device: str = "auto",
    devices: int = 1,
    nodes: int = 1,
    quiet: bool = False,
) -> Segmenter:
    """Labels, synthesises, trains, measures, and writes report.html; the same call continues.

    Args:
        generator: What `load_generator` takes.
        out: The run folder; docs/formats.md says what it holds.
        config: What is done; `PRESETS` has "quick", "standard" and "paper", and `preset` makes one
            for any method.
        painted: The painted images that "few-shot" learns from, a folder of `latentseg paint`.
        eval_data: Real photos with masks to measure on; never learned from.
        groupings: What makes classes of the labels of `eval_data` and `ceiling`; see
            `evaluation.groupings`.
        photos: Unlabelled photos of the generator's domain, for self-training; never measured on. A
            folder; or paths of photos and folders.
        ceiling: Real photos with masks, from which the same student learns for comparison.
        keep_dataset: Keep the synthetic pairs in `out`/dataset.
        classes: Class labels to draw, of a conditional generator; () for all.
        options: Of the generator's family, if it is a checkpoint; see `load_generator`.
        latents, latent_noise: Latents to draw in place of the generator's own, and noise on
            them; see `load_generator`.
        trust_code: Open a generator that is a program, which then runs.
        device: "auto", "cpu", "cuda", ...
        devices, nodes: Processes on each machine, and machines, as `distributed.join` has them. The
            students are trained by all of them together, the rest is done by the first one.
        quiet: Print nothing.

    Returns:
        The segmenter in `out`/model: with the help of the photos if there were any.

    Raises:
        InputError: an input cannot be read (every problem is listed before any work is done), or
            `out` holds other work.
        DivergedError: a loss became NaN or infinite.
    """
    out, team = Path(out), join(device, devices=devices, nodes=nodes)
    places = [Path(photos)] if isinstance(photos, Path | str) else list(photos or ())
    if team.world > 1 and places:
        raise InputError(
            "`photos`: self-training is done by one process. Leave them out, and go on from this "
            "run with `latentseg train DATASET OUT --photos PHOTOS`."
        )
    device, quiet = str(team.device), quiet or not team.is_rank_zero
    source = load_generator(
        generator,
        device=device,
        classes=classes,
        options=options,
        latents=latents,
        latent_noise=latent_noise,
        trust_code=trust_code,
    )
    images = _painted(config, painted, source)
    find_encoder_weights(config.student.network, config.student.encoder_weights)
    measured = [open_dataset(path, grouping=groupings) for path in eval_data]
    true_masks = None if ceiling is None else open_dataset(ceiling, grouping=groupings)
    for each in measured if true_masks is None else [*measured, true_masks]:
        for note in each.notes:
            say(f"{each.name}: {note}", quiet=quiet)
    asked = {
        "command": "run",
        "generator": source.info.to_json(),
        "options": dict(options or {}),
        **asdict(replace(config, labelers={})),
        "labelers": {kind.name: asdict(config.settings_of(kind)) for kind in config.kinds},
        "painted": None if images is None else images.digest,
        "eval": [str(path) for path in eval_data],
        "groupings": [str(each) for each in groupings],
        "photos": ", ".join(map(str, places)) or None,
        "ceiling": None if ceiling is None else str(ceiling),
        "keep_dataset": keep_dataset,
        "versions": {
            "latentseg": __version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    with team.rank_zero_context(locked(out)):
        team.on_rank_zero(lambda: claim(out, asked, free=_FREE))
        if team.on_rank_zero(lambda: (out / MANIFEST).is_file()):
            team.on_rank_zero(lambda: verify_manifest(out))
            say(f"{out}: finished before; see {out / 'report.html'}", quiet=quiet)
            return Segmenter.from_pretrained(out / "model", device=device)
        job = _Job(source, out, config, images, device=device, quiet=quiet)
        labelers = team.rank_zero_first(job.fit)
        synthetic = team.rank_zero_first(
            lambda: {name: job.pairs(name, labeler) for name, labeler in labelers.items()}
        )
        student = job.student(synthetic)
        setting = "label-free" if images is None else images.summary
        if initialized_on(config.student.network):
            setting += ", initialized encoder (**)"
        settings = {setting: student}
        if places:
            pairs = next(iter(synthetic.values()))
            settings[f"{setting}, with unlabelled photos"] = job.improve(student, pairs, places)
        supervised = None if true_masks is None else job.ceiling(true_masks)

        def conclude() -> None:
            job.measure(settings, supervised, measured)
            segmenter = job.finish(list(settings.values())[-1])
            job.show(next(iter(labelers.values())), segmenter, measured)
            render_report(out)
            write_manifest(out, keep=lambda path: _is_recorded(path, keep_dataset))
            if not keep_dataset:
                shutil.rmtree(out / "dataset", ignore_errors=True)

        team.on_rank_zero(conclude)
    return Segmenter.from_pretrained(out / "model", device=device)


def preset(name: str, method: str = "directions") -> RunConfig:
    """The preset `name` for a method.

    Where painted images say what the parts are, the student is one for parts (more steps, soft
    labels), and all classes are measured.
    """
    config = replace(PRESETS[name], method=method)
    if find_kind(method).takes_painted:
        config = replace(config, student=PARTS_STUDENTS[name], protocol="tritrong2021")
    return config


def _painted(
    config: RunConfig, painted: Path | str | PaintedImages | None, generator: Generator
) -> PaintedImages | None:
    """What is learned from, read before any work is done; the generator can serve all methods."""
    for kind in config.kinds:
        check_ability(generator, kind.needs, kind.name)
    kinds = sorted(config.kinds, key=lambda kind: kind.takes_painted)
    return next(iter(read_inputs(kinds[-1], painted, generator)), None)


def _is_recorded(path: Path, keep_dataset: bool) -> bool:
    """Whether a file of a run is in its manifest; the names of classes may be changed later."""
    return path.name != NAMES and (keep_dataset or path.parts[0] != "dataset")


def _folder(method: str) -> str:
    """The name of a method as that of a folder, also on Windows."""
    return method.replace(":", ".")


class _Job:
    """The stages of a run in one folder; each is skipped if an earlier call has finished it."""

    def __init__(
        self,
        generator: Generator,
        out: Path,
        config: RunConfig,
        painted: PaintedImages | None,
        *,
        device: str,
        quiet: bool,
    ) -> None:
        self.generator, self.out, self.config, self.painted = generator, out, config, painted
        self.device, self.quiet = device, quiet
        self.last_result: Result | None = None
        self.card: dict[str, Any] = {
            "name": out.absolute().name,
            "generator": generator.info.to_json(),
            "licence": f"That of the generator's weights: {generator.info.licence}",
        }

    def fit(self) -> dict[str, Labeler]:
        """The labelers, by the name of their folders; more than one for an ensemble."""
        config, (first, *others) = self.config, self.config.kinds
        self._say("1/5 label", " with ".join(kind.name for kind in config.kinds))
        labeler = self._combined() if others else self._fitted(first, self.out / "labeler")
        self.card["labeler"] = labeler.info
        if config.ensemble and isinstance(labeler, HasMembers):
            return dict(labeler.members())
        return {_folder(config.method): labeler}

    def _combined(self) -> Labeler:
        """Two labelers that agree or vote, with a report on what they make together."""
        parts = self.out / "labelers"
        pair = [self._fitted(kind, parts / _folder(kind.name)) for kind in self.config.kinds]
        combine = VotingLabeler if self.config.vote else AgreementLabeler
        labeler = combine(pair[0], pair[1], config=self.config.combination)
        if not (self.out / "labeler" / MANIFEST).is_file():
            write_overview(labeler, self.out / "labeler", seed=self.config.seed)
            labeler.save(self.out / "labeler")
        return labeler

    def _fitted(self, kind: LabelerKind[Any], out: Path) -> Labeler:
        return fit_labeler(
            kind,
            self.generator,
            painted=self.painted if kind.takes_painted else None,
            config=self.config.settings_of(kind),
            seed=self.config.seed,
            out=out,
            quiet=self.quiet,
        )

    def pairs(self, name: str, labeler: Labeler) -> Pairs:
        """The synthetic pairs of a labeler: a dataset folder, or an endless stream."""
        self._say("2/5 synthesise", f"{self.config.count or 'endless'} pairs")
        is_soft = isinstance(labeler, SoftLabeler)
        stream = Stream(self.generator, labeler, seed=self.config.seed, soft=is_soft)
        first = stream.block(0)
        write_pairs(first.images[:SHOWN], first.masks[:SHOWN], self.out / "samples" / "pairs.png")
        if self.config.count is None:
            return stream
        folder = synthesize(
            self.generator,
            labeler,
            count=self.config.count,
            out=self.out / "dataset" / name,
            seed=self.config.seed,
            soft=is_soft,
            quiet=self.quiet,
        )
        return FolderPairs(folder, size=self.generator.info.size, seed=self.config.seed)

    def student(self, synthetic: dict[str, Pairs]) -> Segmenter:
        """The student of the synthetic pairs, or the mean of several."""
        self._say(
            "3/5 distil", f"a {self.config.student.network} in {self.config.student.steps} steps"
        )
        members = [
            train(
                pairs,
                out=self.out / "student" / name,
                config=replace(self.config.student, seed=self.config.seed),
                card=self.card,
                device=self.device,
                quiet=self.quiet,
            )
            for name, pairs in synthetic.items()
        ]
        return members[0] if len(members) == 1 else ensemble(members, card=self.card)

    def improve(self, student: Segmenter, pairs: Pairs, photos: Sequence[Path]) -> Segmenter:
        """The student that unlabelled photos have helped."""
        self._say("4/5 self-train", f"{self.config.rounds.rounds} rounds on unlabelled photos")
        rounds = replace(
            self.config.rounds, train=replace(self.config.rounds.train, seed=self.config.seed)
        )
        return self_train(
            student,
            photos,
            pairs,
            out=self.out / "photos",
            config=rounds,
            device=self.device,
            quiet=self.quiet,
        )

    def ceiling(self, dataset: RealDataset) -> Segmenter:
        """The same student, trained on true masks: what labels would have brought."""
        self._say("ceiling", f"the same student on {len(dataset)} true masks")
        size = working_size(self.config.student, self.generator.info.size)
        return train(
            FolderPairs(dataset, size=size, seed=self.config.seed),
            out=self.out / "ceiling",
            config=replace(self.config.student, seed=self.config.seed),
            card={"description": "Trained on true masks, to compare with."},
            device=self.device,
            quiet=self.quiet,
        )

    def measure(
        self,
        settings: dict[str, Segmenter],
        supervised: Segmenter | None,
        datasets: Sequence[RealDataset],
    ) -> None:
        """Writes results.json: each setting on each data set, beside the floors and the ceiling."""
        self._say("5/5 evaluate", f"on {sum(len(dataset) for dataset in datasets)} real photos")
        results = []
        for dataset in datasets:
            at_least = floors(dataset, protocol=self.config.protocol)
            beside = {
                "floors": {name: result.to_json() for name, result in at_least.items()},
                "ceiling": supervised and self._evaluate(supervised, dataset).to_json(),
            }
            for setting, segmenter in settings.items():
                self.last_result = self._evaluate(segmenter, dataset)
                results.append({**self.last_result.to_json(), "setting": setting, **beside})
        write_json(self.out / "results.json", results)

    def finish(self, segmenter: Segmenter) -> Segmenter:
        """Saves the segmenter with its card, and opens it as a user would."""
        results = read_json(self.out / "results.json")
        brief = [{column: result[column] for column in COLUMNS} for result in results]
        segmenter.save(self.out / "model", card={**segmenter.card, **self.card, "results": brief})
        return Segmenter.from_pretrained(self.out / "model", device=self.device)

    def show(self, labeler: Labeler, segmenter: Segmenter, datasets: Sequence[RealDataset]) -> None:
        """The pictures of the report; the photos are those of the last data set."""
        dataset = datasets[-1] if datasets else None
        result, seed = self.last_result, self.config.seed
        write_story(labeler, segmenter, dataset, result, self.out / "samples", seed=seed)
        if dataset is not None and result is not None:
            write_examples(segmenter, dataset, result, self.out / "examples")

    def _evaluate(self, segmenter: Segmenter, dataset: RealDataset) -> Result:
        return measure(segmenter, dataset, protocol=self.config.protocol, quiet=self.quiet)

    def _say(self, stage: str, what: str) -> None:
        say(f"{stage}: {what}", quiet=self.quiet)
