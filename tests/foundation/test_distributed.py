"""Several processes train as one would. Run as a module, this file is one of the processes."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from latentseg.datasets.pairs import Batch
from latentseg.distributed import OwnDraws, Team, join, rank_and_world
from latentseg.errors import InputError
from latentseg.files import read_safetensors, verify_manifest
from latentseg.generators.training import GeneratorTrainingConfig, loop, steps, train_generator
from latentseg.generators.training.discriminator import minibatch_std
from latentseg.generators.training.steps import own_rows
from latentseg.images import write_image
from latentseg.interrupts import Terminated
from latentseg.students import training
from latentseg.students.training import TrainConfig, train
from latentseg.training_states import Checkpoints
from tests.generators.random_features import random_features
from tests.students.toy import QUICK, Discs

CPU = torch.device("cpu")
# A batch of 7 has parts of 3 and 4.
STUDENT = TrainConfig(
    steps=6, decay_at=4, augment="photo", precision="fp32", clip=0.5,
    **{**QUICK, "batch": 7, "checkpoint_every": 2},
)  # fmt: skip
GENERATOR = GeneratorTrainingConfig(
    size=(16, 16), channels=(8, 8, 8), latent_dim=8, images=6 * 16, batch=16, r1_interval=2,
    report_images=3 * 16, distance_images=8, precision="fp32", adaptive=True,
    augmentation=("color", "translation", "cutout"),
)  # fmt: skip

# Gradients through the features are larger: smaller plain steps keep the weights in their range.
PROJECTED = replace(
    GENERATOR, features="efficientnet-lite0", feature_px=32, blur_images=4 * 16, images=3 * 16,
    lr=GENERATOR.lr / 5,
)  # fmt: skip


class WeightedDiscs(Discs):
    """Discs whose pixels count differently, the first ones of a batch little."""

    def batch(self, step: int, size: int) -> Batch:
        batch = super().batch(step, size)
        weights = torch.rand(batch.masks.shape, generator=torch.Generator().manual_seed(step))
        weights[: size // 2] *= 0.1
        return Batch(batch.images.double(), batch.masks, weights)


class StoppedDiscs(WeightedDiscs):
    """One process gets a signal during its third step."""

    def __init__(self, number: int, rank: int) -> None:
        super().__init__((16, 16))
        self.number, self.rank = number, rank

    def batch(self, step: int, size: int) -> Batch:
        if step == 2 and rank_and_world()[0] == self.rank:
            os.kill(os.getpid(), self.number)
        return super().batch(step, size)


def exactly(patch: pytest.MonkeyPatch) -> None:
    """Adam makes whole steps of gradients that are nothing but rounding, so that two trainings
    drift apart: the student has float64, the generator, which has not, takes plain steps.
    """
    new_student = training._new_network
    patch.setattr(training, "_new_network", lambda *given: new_student(*given).double())
    patch.setattr(steps, "ADA_TARGET", -2.0)  # so that the augmentation soon changes images
    patch.setattr(steps, "ADA_IMAGES", 64)
    patch.setattr(steps, "_adam", lambda parameters, lr, _: torch.optim.SGD(parameters, lr=lr))


def learn_student(out: Path, *, pairs: Discs | None = None) -> None:
    train(pairs or WeightedDiscs((16, 16)), out=out, config=STUDENT, device="cpu", quiet=True)


def learn_generator(folder: Path, out: Path) -> None:
    train_generator(folder, out, config=GENERATOR, device="cpu", quiet=True)


def learn_projected(folder: Path, out: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "load_efficientnet_lite0", lambda path: random_features())
        train_generator(folder, out, config=PROJECTED, device="cpu", quiet=True)


def learn_everything(folder: Path) -> None:
    """What both processes do."""
    with pytest.MonkeyPatch.context() as patch:
        exactly(patch)
        learn_student(folder / "student")
        learn_student(folder / "resumed")
        with pytest.raises(Terminated):
            learn_student(folder / "stopped", pairs=StoppedDiscs(signal.SIGTERM, rank=1))
        learn_generator(folder / "photos", folder / "generator")
        learn_projected(folder / "photos", folder / "projected")
    with pytest.raises(InputError, match="holds other work"):  # the same in both
        train(Discs(), out=folder / "student", config=replace(STUDENT, lr=1.0), quiet=True)


def lose_one(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        exactly(patch)
        learn_student(folder / "killed", pairs=StoppedDiscs(signal.SIGKILL, rank=1))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def start(environments: list[dict[str, str]], *arguments: str) -> list[subprocess.Popen[str]]:
    """One process for each environment, each with `arguments` for Python."""
    base = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "PYTEST"))}
    return [
        subprocess.Popen(
            [sys.executable, *arguments],
            env={**base, "OMP_NUM_THREADS": "1", **environment},
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for environment in environments
    ]


def as_torchrun() -> list[dict[str, str]]:
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(2)]


def as_slurm() -> list[dict[str, str]]:
    """What srun sets for two tasks on one node."""
    shared = {
        "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1",
        "SLURM_JOB_ID": "1", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NODEID": "0", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [{**shared, "SLURM_PROCID": str(r), "SLURM_LOCALID": str(r)} for r in range(2)]


def ended(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status and stderr of each."""
    said = [process.communicate(timeout=300)[1] for process in processes]
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


def differences(
    mine: Mapping[str, torch.Tensor], others: Mapping[str, torch.Tensor], least: float = 1e-3
) -> dict[str, float]:
    """Of each tensor, the largest difference, as a share of its largest value, or of `least`."""
    assert mine.keys() == others.keys()
    return {
        name: float((mine[name].double() - other.double()).abs().max())
        / max(float(other.double().abs().max()), least)
        for name, other in others.items()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes learned; before them, one process began "resumed"."""
    folder = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(0)
    for index in range(20):
        picture = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        write_image(folder / "photos" / f"{index:02d}.png", picture)
    with pytest.MonkeyPatch.context() as patch:
        exactly(patch)
        with pytest.raises(RuntimeError, match="killed"):
            learn_student(folder / "resumed", pairs=WeightedDiscs((16, 16), stop_at=3))
    processes = start(as_torchrun(), "-m", __name__, "learn_everything", str(folder))
    for status, said in ended(processes):
        assert status == 0, said
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> Path:
    """What one process learns."""
    with pytest.MonkeyPatch.context() as patch:
        exactly(patch)
        learn_student(folder / "alone-student")
        learn_generator(folder / "photos", folder / "alone-generator")
        learn_projected(folder / "photos", folder / "alone-projected")
    return folder


@pytest.mark.parametrize("name", ["student", "resumed"])
def test_two_processes_learn_the_student_of_one(folder: Path, alone: Path, name: str) -> None:
    verify_manifest(folder / name)
    path = Path("model") / "model.safetensors"
    mine, others = (
        read_safetensors(each / path) for each in (folder / name, alone / "alone-student")
    )
    assert max(differences(mine, others).values()) < 1e-5


def test_two_processes_learn_the_generator_of_one(folder: Path, alone: Path) -> None:
    """Minibatch std, R1, average, mean style, adaptive augmentation and noise included."""
    mine, others = (
        Checkpoints(each / "checkpoints").load()[1]
        for each in (folder / "generator", alone / "alone-generator")
    )
    assert max(differences(mine, others).values()) < 1e-5
    assert float(others["augment_probability"]) > 0


def test_two_processes_learn_the_projected_generator_of_one(folder: Path, alone: Path) -> None:
    """The std among samples of the heads included.

    Biases and strengths of noise began at 0 and have hardly moved: sums of terms that cancel, whose
    rounding is that of the terms.
    """
    mine, others = (
        Checkpoints(each / "checkpoints").load()[1]
        for each in (folder / "projected", alone / "alone-projected")
    )
    assert max(differences(mine, others, least=0.1).values()) < 1e-4


def test_a_signal_to_one_process_stops_all_after_the_same_step(folder: Path) -> None:
    steps = {path.name for path in (folder / "stopped" / "checkpoints").iterdir()}
    assert steps == {"step-0000002", "step-0000003"}


@pytest.mark.slow
def test_when_a_process_dies_the_others_say_so_and_one_continues(tmp_path: Path) -> None:
    first, second = ended(start(as_torchrun(), "-m", __name__, "lose_one", str(tmp_path)))
    assert second[0] == -signal.SIGKILL
    assert first[0] == 1
    assert "process 0 of 2 lost the others" in first[1]
    assert "same command again continues" in first[1]
    with pytest.MonkeyPatch.context() as patch:
        exactly(patch)
        learn_student(tmp_path / "killed")
    verify_manifest(tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [as_torchrun, as_slurm])
def test_the_command_trains_in_the_processes_of_a_launcher(tmp_path: Path, launcher) -> None:
    data = tmp_path / "data"
    for index, (image, mask) in enumerate(zip(*Discs((16, 16)).photos(20), strict=True)):
        write_image(data / "images" / f"{index:02d}.png", image)
        write_image(data / "masks" / f"{index:02d}.png", mask * 255)
    options = ("--steps", "4", "--batch", "8", "--width", "0.125", "--device", "cpu")
    command = ("-m", "latentseg", "train", str(data), str(tmp_path / "out"), *options)
    for status, said in ended(start(launcher(), *command)):
        assert status == 0, said
    verify_manifest(tmp_path / "out")


@pytest.mark.slow
def test_the_whole_job_in_two_processes_has_the_dataset_of_one(tmp_path: Path) -> None:
    options = (
        *("--preset", "quick", "--search-steps", "10", "--search-restarts", "1", "--radius", "2"),
        *("--count", "64", "--steps", "4", "--width", "0.125", "--keep-dataset"),
    )
    manifests = []
    for out, environments in ((tmp_path / "two", as_torchrun()), (tmp_path / "one", [{}])):
        command = ("-m", "latentseg", "run", "tests.world:World", str(out), *options)
        for status, said in ended(start(environments, *command)):
            assert status == 0, said
        verify_manifest(out)
        manifests.append((out / "dataset" / "directions" / "MANIFEST.json").read_text())
    assert manifests[0] == manifests[1]


@pytest.mark.slow
def test_a_program_starts_its_own_processes(tmp_path: Path) -> None:
    write_image(tmp_path / "photos" / "a.png", np.zeros((16, 16, 3), np.uint8))
    write_image(tmp_path / "photos" / "b.png", np.ones((16, 16, 3), np.uint8))
    program = tmp_path / "program.py"
    program.write_text(
        "from latentseg.generators.training import train_generator\n"
        "from tests.foundation.test_distributed import GENERATOR\n"
        "train_generator('photos', 'out', config=GENERATOR, device='cpu', devices=2)\n"
    )
    root = str(Path(__file__).parents[2])
    process = subprocess.run(
        [sys.executable, program],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr.count("2 photos at 16 x 16") == 1  # said by the first process only
    assert (tmp_path / "out" / "generator" / "generator.safetensors").is_file()


@pytest.mark.parametrize("world", [1, 2, 3, 7])
def test_parts_are_the_whole(world: int) -> None:
    parts = [range(7)[Team(CPU, rank, world).part(7)] for rank in range(world)]
    assert [index for part in parts for index in part] == list(range(7))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_more_processes_than_pairs_are_refused() -> None:
    with pytest.raises(InputError, match="8 processes for a batch of 7"):
        Team(CPU, 0, 8).part(7)


@pytest.mark.parametrize(("batch", "world"), [(32, 2), (32, 3), (12, 3), (6, 1), (7, 1)])
def test_rows_of_a_process_have_the_minibatch_std_of_the_batch(batch, world) -> None:
    x = torch.randn(batch, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    expected, seen = minibatch_std(x), []
    for rank in range(world):
        rows = own_rows(batch, Team(CPU, rank, world))
        assert torch.allclose(minibatch_std(x[rows]), expected[rows], rtol=1e-6)
        seen += rows.tolist()
    assert sorted(seen) == list(range(batch))


@pytest.mark.parametrize(("batch", "world"), [(8, 3), (6, 2), (7, 7)])
def test_a_batch_whose_groups_cannot_be_shared_is_refused(batch: int, world: int) -> None:
    with pytest.raises(InputError, match=f"`batch`: {batch}: {world} processes need"):
        own_rows(batch, Team(CPU, 0, world))


def test_own_draws_are_rows_of_those_of_one_process() -> None:
    rows = torch.tensor([1, 4])

    def draw(n: int) -> list[torch.Tensor]:
        torch.manual_seed(0)
        return [torch.rand(n, 1), torch.randn((n, 2)), torch.randint(0, 9, (n, 1)), torch.rand(n)]

    with OwnDraws(rows, 5):
        own = draw(2)
    for mine, others in zip(own, draw(5), strict=True):
        assert torch.equal(mine, others[rows])


def test_one_process_needs_no_engine() -> None:
    program = (
        "import sys; from latentseg.distributed import join; from latentseg import students;"
        "assert join('cpu').world == 1; print('lightning_fabric' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({"RANK": "0", "WORLD_SIZE": "2"}, {"devices": 4}, "2 processes were started"),
        ({}, {"devices": 0}, "`devices` 0, `nodes` 1: expected at least 1"),
        ({}, {"device": "tpu", "devices": 2}, "`device`: expected"),
    ],
)
def test_wrong_numbers_of_processes_are_refused(monkeypatch, environment, options, message) -> None:
    for name in ("RANK", "WORLD_SIZE", "SLURM_PROCID", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=re.escape(message)):
        join(**options)


if __name__ == "__main__":
    {"learn_everything": learn_everything, "lose_one": lose_one}[sys.argv[1]](Path(sys.argv[2]))
