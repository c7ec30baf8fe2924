"""Trains heads on the hypercolumns of a few painted images; exactly resumable."""

import math
from collections.abc import Callable
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

from latentseg.errors import DivergedError
from latentseg.generators.protocols import Latents
from latentseg.images import IGNORE
from latentseg.interrupts import HeldInterrupt
from latentseg.labelers.features import Hypercolumns, Scale
from latentseg.labelers.few_shot_settings import OURS, HeadTrainConfig
from latentseg.labelers.heads import Head, build_heads
from latentseg.progress import Progress
from latentseg.seeds import random_generator
from latentseg.training_states import Checkpoints

ORDER, CROP, SCALE = 1, 2, 3  # keys that keep random numbers of one seed apart
FIRST_EPOCHS = 3  # DatasetGAN: before that many, no member stops early
SCALE_PIXELS = 4096  # of each painted image, that give the normalisation
HEAVIEST = 10.0  # most that a rare class may weigh
TRAINED_COPIES = 3  # of every activation: itself, what is stored for its gradient, and that


def segmentation_loss(logits: Tensor, masks: Tensor, weights: Tensor | None) -> Tensor:
    """Cross-entropy over the painted pixels.

    Args:
        logits: (B, K + 1, H, W).
        masks: Class ids (B, H, W) uint8, 255 ignored.
        weights: Of the classes, (K + 1,), or None.
    """
    return functional.cross_entropy(logits, masks.long(), weight=weights, ignore_index=IGNORE)


def balance(masks: Tensor, n_classes: int) -> Tensor:
    """Weights of the classes, (n_classes,), by the inverse of their share of the painted pixels.

    A class of mean size weighs 1, none more than 10, one that is not painted 1.
    """
    counts = torch.bincount(masks[masks != IGNORE].long(), minlength=n_classes).double()
    weights = counts.sum() / (n_classes * counts.clamp(min=1))
    return torch.where(counts > 0, weights.clamp(max=HEAVIEST), 1.0).float()


class PaintedFeatures:
    """Painted images as a head learns from them: their features, with the class of each pixel.

    Args:
        columns: The features.
        latents: Of the N images.
        masks: (N, *columns.size) uint8; 255 is not painted.
    """

    def __init__(self, columns: Hypercolumns, latents: Latents, masks: Tensor) -> None:
        self.columns, self.latents, self.masks = columns, latents, masks
        self.kept: dict[int, list[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.masks)

    def maps(self, i: int) -> list[Tensor]:
        """The maps of image i, drawn once if those of all images fit into half of the memory."""
        if i in self.kept:
            return self.kept[i]
        maps = self.columns.maps(self.latents[i : i + 1])
        taken = sum(each.numel() * each.element_size() for each in maps)
        if taken * len(self) <= self.columns.memory // 2:
            self.kept[i] = maps
        return maps

    def sample(self, i: int, n: int, rng: torch.Generator, *, is_painted: bool) -> Tensor:
        """Row and column of up to `n` pixels of image i, (P, 2), all of them painted if asked."""
        mask = self.masks[i]
        places = (mask != IGNORE).nonzero() if is_painted else torch.ones_like(mask).nonzero()
        if len(places) > n:
            places = places[torch.randperm(len(places), generator=rng)[:n]]
        return places

    def scale(self, seed: int) -> Scale:
        """Mean and deviation of every channel over some pixels of all images."""
        found = []
        for i in range(len(self)):
            rng = random_generator(seed, SCALE, i)
            points = self.sample(i, SCALE_PIXELS, rng, is_painted=False)
            found.append(self.columns.pixels_of(self.maps(i), points[None])[0])
        return Scale.of(torch.cat(found))

    def pixels(self, seed: int) -> tuple[Tensor, Tensor]:
        """Painted pixels, as many as fit into half of the memory: (P, C, 1, 1), and (P, 1, 1)."""
        n = max(1, self.columns.memory // 2 // (4 * self.columns.n_channels * len(self)))
        features, classes = [], []
        for i in range(len(self)):
            points = self.sample(i, n, random_generator(seed, ORDER, i), is_painted=True)
            if len(points):
                features.append(self.columns.pixels_of(self.maps(i), points[None])[0])
                classes.append(self.masks[i][points[:, 0], points[:, 1]])
        return torch.cat(features)[..., None, None], torch.cat(classes)[..., None, None]


class HeadTraining:
    """Heads on their way: an ensemble, the optimizer, and how many steps were done.

    Step s of member m depends only on (seed, m, s).

    Args:
        painted: What is learned.
        head: Of `HEADS`.
        n_classes: With the background.
        config: Settings of the training.
        seed: Seed of all random numbers.
        checkpoints: Where states are kept; None: nowhere.
    """

    def __init__(
        self,
        painted: PaintedFeatures,
        head: str,
        n_classes: int,
        *,
        config: HeadTrainConfig = OURS,
        seed: int = 0,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        self.painted, self.config, self.seed = painted, config, seed
        self.checkpoints = checkpoints
        columns = painted.columns
        device = columns.generator.device
        self.heads = build_heads(head, columns.n_channels, n_classes, seed=seed).to(device)
        self.weights = None
        if config.class_weights == "balanced":
            self.weights = balance(painted.masks, n_classes).to(device)
        if config.normalize:
            scale = painted.scale(seed)
            for member in self.heads.heads:
                member.normalize_by(scale)
        self.pixels = painted.pixels(seed) if self.heads.heads[0].is_pixelwise else None
        self.n_examples = len(painted) if self.pixels is None else len(self.pixels[0])
        self.batch = 1 if self.pixels is None else min(config.pixels, self.n_examples)
        self.order = lru_cache(maxsize=1)(self._order)
        self._start(0)
        self._restore()

    @property
    def epoch_steps(self) -> int:
        """Steps in which every painted image, or pixel, is seen once."""
        return self.n_examples // self.batch

    @property
    def steps(self) -> int:
        """Most steps of a member."""
        return self.config.steps or self.config.epochs * self.epoch_steps

    def run(self, *, quiet: bool, is_wanted: Callable[[], bool] = lambda: True) -> bool:
        """Takes all steps that are left; False if `is_wanted` said no before they were done.

        Raises:
            DivergedError: the loss became NaN or infinite.
            KeyboardInterrupt: after the state was saved.
        """
        n_members, every = len(self.heads.heads), self.config.checkpoint_every
        done = self.member * self.steps + self.step
        self.heads.train()
        with (
            Progress(
                "train head", total=n_members * self.steps, start=done, unit="step", quiet=quiet
            ) as progress,
            HeldInterrupt() as interrupt,
            torch.enable_grad(),
        ):
            while self.member < n_members:
                if not is_wanted():
                    return False
                loss = self._take_step()
                progress.update(self.member * self.steps + self.step, loss=loss)
                if self.step >= self.steps or self._has_settled(loss):
                    self._start(self.member + 1)
                if interrupt.is_held or self.step % every == 0:
                    self._save()
                interrupt.release()
        self.heads.eval().requires_grad_(False)
        return True

    def _start(self, member: int) -> None:
        self.member, self.step = member, 0
        self.least, self.stale = math.inf, 0
        # Behind the last member there is nothing left to train.
        left = self.heads.heads[member : member + 1]
        self.parameters = {name: p for head in left for name, p in head.named_parameters()}
        if self.parameters:
            self.optimizer = torch.optim.Adam(
                self.parameters.values(), lr=self.config.lr, weight_decay=self.config.weight_decay
            )

    def _take_step(self) -> float:
        """One step of Adam; its loss."""
        head = self.heads.heads[self.member]
        for group in self.optimizer.param_groups:
            group["lr"] = self._lr()
        logits, masks = self._answer(head)
        loss = segmentation_loss(logits, masks.to(logits.device), self.weights)
        if not loss.isfinite():
            raise DivergedError(
                f"step {self.step} of the training of a head: the loss became {loss.item()}. "
                "Lower the learning rate, or let the features be normalized."
            )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.step += 1
        return float(loss.detach())

    def _lr(self) -> float:
        config = self.config
        if config.schedule == "cosine":
            return config.lr * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
        return config.lr * config.decay ** (self.step // self.epoch_steps // config.decay_every)

    def _answer(self, head: Head) -> tuple[Tensor, Tensor]:
        """Logits and masks of the step's batch."""
        epoch, position = divmod(self.step, self.epoch_steps)
        chosen = self.order(self.member, epoch)[position * self.batch :][: self.batch]
        if self.pixels is not None:
            features, classes = self.pixels
            return head(features[chosen]), classes[chosen]
        return self._image_answer(head, int(chosen[0]))

    def _image_answer(self, head: Head, i: int) -> tuple[Tensor, Tensor]:
        """Logits of painted rows of image i: of all rows, if memory suffices for that."""
        rng = random_generator(self.seed, CROP, self.member, self.step)
        columns, maps = self.painted.columns, self.painted.maps(i)
        first, end = self._crop(head, self.painted.masks[i], rng)
        top, bottom = max(first - head.halo, 0), min(end + head.halo, columns.size[0])
        mask = self.painted.masks[i : i + 1, first:end]
        if self.config.flip and torch.rand((), generator=rng) < 0.5:
            maps, mask = [each.flip(3) for each in maps], mask.flip(2)
        if head.is_projecting:
            logits = head.rest(columns.projected(maps, *head.projection(), top, bottom))
        else:
            logits = head(columns.rows_of(maps, top, bottom))
        return logits[:, :, first - top : end - top], mask

    def _crop(self, head: Head, mask: Tensor, rng: torch.Generator) -> tuple[int, int]:
        """First row and end of what a step learns from: around a painted row, drawn at random."""
        height, width = self.painted.columns.size
        channels = TRAINED_COPIES * sum(layer.out_channels for layer in head.layers)
        if not head.is_projecting:
            channels += TRAINED_COPIES * head.first.in_channels
        n = self.painted.columns.memory // (4 * channels * width)
        if n >= height:
            return 0, height
        n = max(1, n - 2 * head.halo)
        rows = (mask != IGNORE).any(dim=1).nonzero()[:, 0]
        middle = int(rows[torch.randint(len(rows), (), generator=rng)])
        first = min(max(middle - n // 2, 0), height - n)
        return first, first + n

    def _order(self, member: int, epoch: int) -> Tensor:
        rng = random_generator(self.seed, ORDER, member, epoch)
        return torch.randperm(self.n_examples, generator=rng)

    def _has_settled(self, loss: float) -> bool:
        """Whether the member's loss has not fallen for as long as `patience` allows."""
        if self.config.patience == 0:
            return False
        self.stale = 0 if loss < self.least else self.stale + 1
        self.least = min(self.least, loss)
        is_early = self.step < FIRST_EPOCHS * self.epoch_steps
        return not is_early and self.stale >= self.config.patience

    def _save(self) -> None:
        if self.checkpoints is None:
            return
        numbers = torch.tensor([self.member, self.step, self.stale], dtype=torch.int64)
        tensors = {"numbers": numbers, "least": torch.tensor(self.least, dtype=torch.float64)}
        tensors |= {f"heads.{name}": t for name, t in self.heads.state_dict().items()}
        for name, parameter in self.parameters.items():
            for kind, moment in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{name}.{kind}"] = moment
        self.checkpoints.save(self.member * self.steps + self.step, tensors)

    def _restore(self) -> None:
        tensors = self.checkpoints.load()[1] if self.checkpoints else {}
        if not tensors:
            return
        weights = {name: tensors[f"heads.{name}"] for name in self.heads.state_dict()}
        self.heads.load_state_dict(weights)
        member, step, stale = tensors["numbers"].tolist()
        self._start(member)
        self.step, self.stale, self.least = step, stale, float(tensors["least"])
        for name, parameter in self.parameters.items():
            prefix = f"optimizer.{name}."
            moments = {
                n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)
            }
            # A member that has not begun has none. Adam counts its steps on the CPU.
            self.optimizer.state[parameter] = {
                kind: saved if kind == "step" else saved.to(parameter.device)
                for kind, saved in moments.items()
            }
