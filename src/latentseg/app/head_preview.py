"""The head behind the painter's previews: a few-shot head on the generator's features."""

import threading
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from latentseg.errors import InputError
from latentseg.generators.protocols import Generator
from latentseg.images import IGNORE, Pixels
from latentseg.labelers.few_shot import answer, hypercolumns, painted_features
from latentseg.labelers.few_shot_settings import SETTINGS, FewShotConfig
from latentseg.labelers.head_training import HeadTraining
from latentseg.labelers.heads import Ensemble
from latentseg.labelers.painted import PaintedImages


class HeadPreview:
    """A head that learns afresh from what is painted, as often as the painter asks.

    `fit` may be called while another call is still at work: that one gives up within a step.

    Args:
        generator: Must have features.
        config: Head and training; a few seconds are enough for the default.
        seed: Seeds the training.

    Raises:
        InputError: the generator has no features.
    """

    def __init__(
        self, generator: Generator, *, config: FewShotConfig = SETTINGS["ours"], seed: int = 0
    ) -> None:
        self.config, self.seed = config, seed
        self.columns = hypercolumns(generator, config)
        self.newest = 0
        self.heads: Ensemble | None = None
        self.maps: dict[int, list[Tensor]] = {}
        self.lock = threading.Lock()

    def fit(self, painted: Sequence[tuple[str, int, Pixels]], classes: Sequence[str]) -> bool:
        """Trains a head. False if a later call came before it was ready, or nothing is painted.

        Args:
            painted: Name, seed and mask (H, W) uint8 of each image; 255 is not painted.
            classes: Names of the classes 1..K. A class that is painted nowhere is never predicted.

        Raises:
            InputError: a mask has another size, or an id without a class.
            DivergedError: the loss became NaN or infinite.
        """
        with self.lock:
            self.newest += 1
            mine = self.newest
        some = [entry for entry in painted if (entry[2] != IGNORE).any()]
        if not some:
            return False
        names, seeds, masks = zip(*some, strict=True)
        painting = PaintedImages(tuple(classes), names, seeds, np.stack(masks))
        painting.check_ids(self.columns.generator.info.size)
        features = painted_features(self.columns, painting)
        features.kept = {i: self.maps[s] for i, s in enumerate(seeds) if s in self.maps}
        training = HeadTraining(
            features,
            self.config.head,
            len(classes) + 1,
            config=self.config.training,
            seed=self.seed,
        )
        is_done = training.run(quiet=True, is_wanted=lambda: self.newest == mine)
        with self.lock:
            # Of images that are no longer painted nothing is kept.
            self.maps = {seeds[i]: maps for i, maps in features.kept.items()}
            if is_done and self.newest == mine:
                self.heads = training.heads
        return is_done

    def predict(self, seeds: Sequence[int]) -> Pixels:
        """(N, H, W) uint8: masks of the images of `seeds` by the newest finished head.

        Raises:
            InputError: no head is finished yet.
        """
        heads = self.heads
        if heads is None:
            raise InputError("There is no head yet. Paint an image, and let the head learn.")
        generator = self.columns.generator
        latents = generator.sample(torch.tensor(list(seeds), device=generator.device))
        probabilities = answer(heads, self.columns, latents).probabilities
        return probabilities.argmax(dim=1).to(torch.uint8).cpu().numpy()
