import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from latentseg.datasets.pairs import Batch, FolderPairs
from latentseg.distributed import Team
from latentseg.errors import DivergedError, InputError
from latentseg.files import read_json, read_safetensors, verify_manifest, write_json
from latentseg.images import to_pixels
from latentseg.students.networks import build_network
from latentseg.students.training import (
    PARTS_PRESETS,
    PRESETS,
    TrainConfig,
    foreground_iou,
    mean_iou,
    segmentation_loss,
    train,
)
from latentseg.synthesis.writers import synthesize
from tests.parts_world import matched_iou
from tests.students.toy import QUICK, Discs, iou_of
from tests.synthesis.test_stream import Knowing

TINY = TrainConfig(steps=12, decay_at=8, augment="photo", **QUICK)
SMALL = Discs(size=(16, 16))


def weights_of(out):
    return (out / "model" / "model.safetensors").read_bytes()


def metrics_of(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_paper_preset_is_the_papers():
    paper = PRESETS["paper"]
    assert (paper.network, paper.width, paper.augment) == ("unet", 1.0, "none")
    assert (paper.steps, paper.batch, paper.lr) == (12_000, 95, 1e-3)
    assert (paper.decay_at, paper.decay) == (8_000, 0.2)


def test_parts_paper_preset_is_the_papers():
    paper = PARTS_PRESETS["paper"]
    assert (paper.network, paper.width, paper.augment) == ("unet", 1.0, "parts")
    assert (paper.batch, paper.lr, paper.weight_decay, paper.clip) == (32, 1e-3, 1e-3, 0.1)
    assert paper.steps * paper.batch == pytest.approx(1000 * 5000, rel=0.01)


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(tmp_path):
    pairs = Discs(n_steps=1)
    config = TrainConfig(steps=100, decay_at=60, lr=3e-3, **QUICK)
    segmenter = train(pairs, out=tmp_path, config=config, quiet=True)
    batch = pairs.batch(0, 8)
    assert foreground_iou(segmenter.logits(batch.images), batch.masks) >= 0.98
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(5, 101, 5))
    assert lines[-1]["loss"] < 0.3 * lines[0]["loss"]
    assert [line["lr"] for line in lines if line["step"] in (60, 65)] == pytest.approx([3e-3, 6e-4])


@pytest.mark.slow
def test_shuffled_labels_teach_no_more_than_chance(tmp_path):
    config = TrainConfig(steps=40, decay_at=30, lr=3e-3, **QUICK)
    images, masks = Discs(size=(16, 16)).photos(64)
    learned = {
        shuffled: iou_of(
            train(
                Discs((16, 16), shuffled=shuffled),
                out=tmp_path / str(shuffled),
                config=config,
                quiet=True,
            ),
            images,
            masks,
        )
        for shuffled in (False, True)
    }
    likely = masks.mean(0)
    chance = max(
        float(((masks & fixed).sum((1, 2)) / (masks | fixed).sum((1, 2))).mean())
        for fixed in (likely > level for level in (0.05, 0.1, 0.2, 0.3, 0.4, 0.5))
    )
    assert learned[True] <= chance + 0.05
    assert learned[False] > chance + 0.3


def test_learning_rate_0_changes_no_weight(tmp_path):
    config = replace(TINY, lr=0.0)
    segmenter = train(SMALL, out=tmp_path / "a", config=config, quiet=True)
    longer = train(SMALL, out=tmp_path / "b", config=replace(config, steps=3), quiet=True)
    for mine, its in zip(segmenter.members.parameters(), longer.members.parameters(), strict=True):
        assert torch.equal(mine, its)


def test_finished_training_is_complete_and_read_again_at_once(tmp_path):
    first = train(SMALL, out=tmp_path, config=TINY, card={"licence": "CC0"}, quiet=True)
    verify_manifest(tmp_path)
    assert not (tmp_path / "checkpoints").exists()
    assert first.card["licence"] == "CC0"
    assert first.card["training"]["steps"] == 12
    again = train(
        Discs((16, 16), stop_at=0), out=tmp_path, config=TINY, card={"licence": "CC0"}, quiet=True
    )
    assert again.digest == first.digest


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("stops", [(4,), (7, 11)])
def test_killed_training_continues_bit_for_bit(tmp_path, precision, stops):
    config = replace(TINY, precision=precision)
    train(SMALL, out=tmp_path / "whole", config=config, quiet=True)
    for stop in stops:
        with pytest.raises(RuntimeError, match="killed"):
            train(Discs((16, 16), stop_at=stop), out=tmp_path / "cut", config=config, quiet=True)
    train(SMALL, out=tmp_path / "cut", config=config, quiet=True)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    assert [line["step"] for line in metrics_of(tmp_path / "cut")] == [5, 10, 12]


def test_damaged_newest_checkpoint_costs_only_time(tmp_path, capsys):
    train(SMALL, out=tmp_path / "whole", config=TINY, quiet=True)
    with pytest.raises(RuntimeError, match="killed"):
        train(Discs((16, 16), stop_at=11), out=tmp_path / "cut", config=TINY, quiet=True)
    state = tmp_path / "cut" / "checkpoints" / "step-0000010" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-1])
    train(SMALL, out=tmp_path / "cut", config=TINY, quiet=True)
    assert "step-0000010 is not used" in capsys.readouterr().err
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


def test_interrupt_saves_the_step_that_was_finished(tmp_path):
    class Interrupting(Discs):
        def batch(self, step, size):
            if step == 7:
                os.kill(os.getpid(), signal.SIGINT)
            return super().batch(step, size)

    handler = signal.getsignal(signal.SIGINT)
    train(SMALL, out=tmp_path / "whole", config=TINY, quiet=True)
    with pytest.raises(KeyboardInterrupt):
        train(Interrupting((16, 16)), out=tmp_path / "cut", config=TINY, quiet=True)
    assert (tmp_path / "cut" / "checkpoints" / "step-0000008" / "MANIFEST.json").exists()
    assert signal.getsignal(signal.SIGINT) is handler
    train(SMALL, out=tmp_path / "cut", config=TINY, quiet=True)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")


@pytest.mark.slow
def test_sigkill_at_any_time_leaves_work_that_continues(tmp_path):
    program = (
        "import sys; from dataclasses import replace; "
        "from latentseg.students.training import train; "
        "from tests.students.test_training import TINY, SMALL; "
        "config = replace(TINY, checkpoint_every=1, steps=400); "
        "train(SMALL, out=sys.argv[1], config=config, quiet=True)"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "cut")], cwd=root)
    while not (tmp_path / "cut/checkpoints/step-0000005").exists():
        time.sleep(0.01)
        assert process.poll() is None
    process.kill()
    process.wait()
    config = replace(TINY, steps=400)
    with pytest.raises(RuntimeError, match="killed"):
        train(Discs((16, 16), stop_at=20), out=tmp_path / "cut", config=config, quiet=True)
    with pytest.raises(RuntimeError, match="killed"):
        train(Discs((16, 16), stop_at=20), out=tmp_path / "whole", config=config, quiet=True)
    # Both saved step 15 or 20; the states agree wherever both have one.
    for state in (tmp_path / "whole" / "checkpoints").glob("*/state.safetensors"):
        other = tmp_path / "cut" / state.relative_to(tmp_path / "whole")
        assert other.read_bytes() == state.read_bytes()


FORTY_KILLS = """
import os, random, signal, sys, time
from dataclasses import replace
from latentseg.students.training import train
from tests.students.test_training import TINY, SMALL

config, chance = replace(TINY, steps=300, decay_at=200, checkpoint_every=2), random.Random(0)

def start(out):
    child = os.fork()
    if child == 0:
        train(SMALL, out=out, config=config, quiet=True)
        os._exit(0)
    return child

def status(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

for kill in range(40):
    child = start(sys.argv[1])
    time.sleep(chance.uniform(0.01, 0.3))
    os.kill(child, signal.SIGKILL)
    print(status(child))
print(status(start(sys.argv[1])), status(start(sys.argv[2])))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forty_kills_at_random_times_end_with_the_weights_of_none(tmp_path):
    cut, whole = tmp_path / "cut", tmp_path / "whole"
    done = subprocess.run(
        [sys.executable, "-c", FORTY_KILLS, str(cut), str(whole)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    *kills, end = done.stdout.splitlines()
    assert end == "0 0"
    assert kills.count("-9") >= 20
    for folder in (cut, whole):
        verify_manifest(folder)
        assert not list(folder.rglob("*.tmp"))
    weights = "model/model.safetensors"
    assert (cut / weights).read_bytes() == (whole / weights).read_bytes()


def test_other_work_in_the_folder_is_refused_with_the_fields(tmp_path):
    train(SMALL, out=tmp_path, config=replace(TINY, steps=2), quiet=True)
    with pytest.raises(InputError, match=r"lr: 0\.001 there, 0\.1 now; steps: 2 there, 3 now"):
        train(SMALL, out=tmp_path, config=replace(TINY, steps=3, lr=0.1), quiet=True)
    with pytest.raises(InputError, match="size"):
        train(Discs((16, 24)), out=tmp_path, config=replace(TINY, steps=2), quiet=True)


class Poisoned(Discs):
    """From step 6 on, one pixel is NaN."""

    def batch(self, step, size):
        batch = super().batch(step, size)
        if step == 6:
            batch.images[0, 0, 3, 3] = torch.nan
        return batch


def test_nan_in_an_image_stops_with_place_step_and_checkpoint(tmp_path):
    config = replace(TINY, augment="none")
    with pytest.raises(DivergedError, match=r"step 6: .*images.*step-0000005"):
        train(Poisoned((16, 16)), out=tmp_path, config=config, quiet=True)
    state = read_safetensors(tmp_path / "checkpoints" / "step-0000005" / "state.safetensors")
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_exploding_weights_stop_and_are_never_saved(tmp_path):
    config = replace(TINY, lr=1e30)
    with pytest.raises(DivergedError, match="the beginning"):
        train(SMALL, out=tmp_path, config=config, quiet=True)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_class_ids_out_of_range_are_named(tmp_path):
    class Wrong(Discs):
        def batch(self, step, size):
            batch = super().batch(step, size)
            return Batch(batch.images, batch.masks * 7)

    with pytest.raises(InputError, match="class id 7, but the ids are 0 to 1"):
        train(Wrong((16, 16)), out=tmp_path, config=TINY, quiet=True)


def test_masks_may_ignore_pixels(tmp_path):
    class Bordered(Discs):
        def batch(self, step, size):
            batch = super().batch(step, size)
            batch.masks[:, :4] = 255
            return batch

    train(Bordered((16, 16)), out=tmp_path, config=TINY, quiet=True)
    assert metrics_of(tmp_path)[-1]["loss"] < 1


def test_loss_is_cross_entropy_over_the_pixels_that_count():
    logits = torch.randn(2, 3, 4, 4)
    masks = torch.randint(0, 3, (2, 4, 4), dtype=torch.uint8)
    loss = torch.nn.functional.cross_entropy
    torch.testing.assert_close(segmentation_loss(logits, masks), loss(logits, masks.long()))
    masks[:, :2] = 255
    expected = loss(logits[:, :, 2:], masks[:, 2:].long())
    torch.testing.assert_close(segmentation_loss(logits, masks), expected)
    soft = torch.nn.functional.one_hot(masks[:, 2:].long(), 3).movedim(-1, 1).float()
    torch.testing.assert_close(segmentation_loss(logits[:, :, 2:], soft), expected)
    weights = torch.zeros(2, 4, 4)
    assert segmentation_loss(logits, masks, weights) == 0
    weights[1, 3] = 0.5
    expected = loss(logits[1:, :, 3], masks[1:, 3].long())
    torch.testing.assert_close(segmentation_loss(logits, masks, weights), expected)


def test_iou_of_a_batch_leaves_ignored_pixels_out():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0, :2] = 5  # predicted: foreground in the first two pixels
    masks = torch.tensor([[[1, 0, 1, 255]]], dtype=torch.uint8)
    assert foreground_iou(logits, masks) == pytest.approx(1 / 3)
    assert foreground_iou(logits[..., 2:], masks[..., 3:].expand(1, 1, 2)) == 1


def test_training_may_start_from_another_student(tmp_path):
    first = train(SMALL, out=tmp_path / "a", config=TINY, quiet=True)
    config = replace(TINY, lr=0.0, steps=1)
    second = train(SMALL, out=tmp_path / "b", config=config, start=first, quiet=True)
    for mine, its in zip(first.members.parameters(), second.members.parameters(), strict=True):
        assert torch.equal(mine, its)
    with pytest.raises(InputError, match="start"):
        train(SMALL, out=tmp_path / "b", config=config, quiet=True)
    with pytest.raises(InputError, match="to start from"):
        train(
            SMALL, out=tmp_path / "c", config=replace(config, width=0.25), start=first, quiet=True
        )


def test_seed_decides_the_weights(tmp_path):
    digests = {
        train(
            SMALL, out=tmp_path / str(seed), config=replace(TINY, steps=1, seed=seed), quiet=True
        ).digest
        for seed in (0, 1)
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("augment", "wild"),
        ("precision", "fp16"),
        ("steps", 0),
        ("batch", 1),
        ("checkpoint_every", 0),
    ],
)
def test_wrong_options_are_refused(field, value):
    with pytest.raises(InputError, match=f"`{field}`: expected"):
        replace(TINY, **{field: value})


def test_unknown_network_is_refused_before_any_work(tmp_path):
    with pytest.raises(InputError, match=r"`network`: .vnet. is unknown"):
        train(SMALL, out=tmp_path / "a", config=replace(TINY, network="vnet"), quiet=True)


def test_progress_says_plan_loss_and_rate(tmp_path, capsys):
    train(SMALL, out=tmp_path, config=TINY)
    printed = capsys.readouterr().err
    assert "0.21 M parameters, steps 0 to 12 of 8 x 16 x 16 px" in printed
    assert "train 12/12" in printed
    assert "loss" in printed


def test_dropout_is_reproducible(tmp_path, monkeypatch):
    from latentseg.students import training

    def with_dropout(*arguments, **options):
        return torch.nn.Sequential(build_network("unet", 2, width=0.125), torch.nn.Dropout(0.5))

    monkeypatch.setattr(training, "build_network", with_dropout)
    for name in "ab":
        torch.manual_seed(ord(name))
        team = Team(torch.device("cpu"))
        record = training._Training(SMALL, TINY, tmp_path / name, start=None, team=team)
        record.run(quiet=True)
    states = [(tmp_path / name / "checkpoints/step-0000012/state.safetensors") for name in "ab"]
    assert states[0].read_bytes() == states[1].read_bytes()


class SoftDiscs(Discs):
    """Discs with blurred masks, as probabilities."""

    def batch(self, step, size):
        batch = super().batch(step, size)
        likely = functional.avg_pool2d(batch.masks[:, None].float(), 5, 1, 2)
        return Batch(batch.images, torch.cat([1 - likely, likely], dim=1))


@pytest.mark.parametrize("augmentation", ["parts", "parts-photo"])
def test_killed_training_on_probabilities_continues_bit_for_bit(tmp_path, augmentation):
    config = replace(TINY, augment=augmentation, weight_decay=1e-3, clip=0.1)
    size = (24, 16)
    train(SoftDiscs(size), out=tmp_path / "whole", config=config, quiet=True)
    with pytest.raises(RuntimeError, match="killed"):
        train(SoftDiscs(size, stop_at=7), out=tmp_path / "cut", config=config, quiet=True)
    train(SoftDiscs(size), out=tmp_path / "cut", config=config, quiet=True)
    assert weights_of(tmp_path / "cut") == weights_of(tmp_path / "whole")
    without_rate = [
        [{**line, "images_per_s": 0} for line in metrics_of(tmp_path / name)]
        for name in ("cut", "whole")
    ]
    assert without_rate[0] == without_rate[1]


def test_loss_of_probabilities_is_their_cross_entropy():
    logits = torch.randn(2, 4, 3, 5)
    soft = torch.randn(2, 4, 3, 5).softmax(1)
    weights = torch.rand(2, 3, 5)
    losses = -(soft * (logits.exp() / logits.exp().sum(1, keepdim=True)).log()).sum(1)
    torch.testing.assert_close(segmentation_loss(logits, soft), losses.mean())
    expected = (losses * weights).sum() / weights.sum()
    torch.testing.assert_close(segmentation_loss(logits, soft, weights), expected)


def test_mean_iou_of_a_batch_is_that_of_the_classes_that_occur():
    rng = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 5, 8, 8, generator=rng)
    logits[:, 4] = -9  # never predicted, and below never there
    masks = torch.randint(0, 4, (3, 8, 8), dtype=torch.uint8, generator=rng)
    masks[:, 0] = 255
    weights = torch.rand(3, 8, 8, generator=rng).round()
    valid = (masks != 255) & (weights > 0)
    pairs = [((logits.argmax(1) == i) & valid, (masks == i) & valid) for i in range(4)]
    expected = sum(float((a & b).sum() / (a | b).sum()) for a, b in pairs) / 4
    assert mean_iou(logits, masks, weights) == pytest.approx(expected)
    soft = functional.one_hot((masks * valid).long(), 5).movedim(-1, 1).float()
    assert mean_iou(logits, soft, weights * valid) == pytest.approx(expected)
    assert mean_iou(logits, masks, torch.zeros_like(weights)) == 1


def test_pixels_without_weight_do_not_count_in_the_iou():
    logits = torch.zeros(1, 2, 1, 4)
    logits[0, 1, 0, :2] = 5
    masks = torch.tensor([[[1, 0, 1, 0]]], dtype=torch.uint8)
    weights = torch.tensor([[[1.0, 0.5, 0.0, 0.0]]])
    assert foreground_iou(logits, masks, weights) == pytest.approx(1 / 2)


@pytest.mark.parametrize("clip", [None, 1e-4])
def test_clip_limits_every_value_of_the_gradient(tmp_path, monkeypatch, clip):
    largest, take = [], torch.optim.Adam.step

    def spy(self, *arguments):
        values = [p.grad.abs().max() for group in self.param_groups for p in group["params"]]
        largest.append(float(torch.stack(values).max()))
        return take(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", spy)
    train(SMALL, out=tmp_path, config=replace(TINY, steps=2, clip=clip), quiet=True)
    assert len(largest) == 2
    assert all((value == pytest.approx(1e-4)) == (clip is not None) for value in largest)


def test_weight_decay_pulls_weights_to_zero(tmp_path):
    def size_of(decay):
        config = replace(TINY, weight_decay=decay)
        trained = train(SMALL, out=tmp_path / str(decay), config=config, quiet=True)
        return sum(float(p.square().sum()) for p in trained.members.parameters())

    assert size_of(10.0) < size_of(None)


def test_work_begun_before_weight_decay_and_clip_were_known_continues(tmp_path):
    with pytest.raises(RuntimeError, match="killed"):
        train(Discs((16, 16), stop_at=7), out=tmp_path, config=TINY, quiet=True)
    record = read_json(tmp_path / "config.json")
    write_json(
        tmp_path / "config.json",
        {name: record[name] for name in record if name not in ("weight_decay", "clip")},
    )
    train(SMALL, out=tmp_path, config=TINY, quiet=True)
    assert metrics_of(tmp_path)[-1]["step"] == 12


@pytest.mark.slow
def test_student_of_a_soft_folder_finds_parts_in_photos_of_another_size(tmp_path):
    labeler = Knowing((24, 16))
    folder = synthesize(
        labeler.generator, labeler, count=128, out=tmp_path / "data", soft=True, quiet=True
    )
    config = TrainConfig(steps=100, decay_at=75, lr=5e-3, **{**QUICK, "batch": 16})
    pairs = FolderPairs(folder)
    assert pairs.batch(0, 2).masks.shape == (2, 4, 24, 16)
    segmenter = train(folder, out=tmp_path / "run", config=config, quiet=True)
    larger = Knowing((48, 32)).generator
    latents = larger.sample(torch.arange(1000, 1024))
    found = [one.mask for one in segmenter.predict(list(to_pixels(larger(latents))))]
    assert found[0].shape == (48, 32)
    assert matched_iou(np.stack(found), larger.masks(latents).numpy(), 4) > 0.6
    last = metrics_of(tmp_path / "run")[-1]
    assert 0 < last["mean_iou"] < last["iou"] < 1


def test_student_of_96_x_64_sees_a_photo_of_192_x_128_at_its_own_size(tmp_path):
    config = replace(TINY, steps=1, batch=2, augment="parts")
    segmenter = train(SoftDiscs((96, 64)), out=tmp_path, config=config, quiet=True)
    seen = []
    segmenter.members[0].register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].shape))
    prediction = segmenter.predict(np.zeros((192, 128, 3), np.uint8))
    assert segmenter.input_size == (96, 64)
    assert seen == [(1, 3, 96, 64)]
    assert prediction.mask.shape == (192, 128)
    assert prediction.scores.shape == (2, 192, 128)
