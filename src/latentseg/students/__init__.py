"""Students: segmentation networks that learn from pairs of image and mask, and segment photos."""

from latentseg.students.segmenter import Prediction, Segmenter, ensemble, list_segmenters
from latentseg.students.self_training import SelfTrainingConfig, self_train
from latentseg.students.training import PRESETS, TrainConfig, train

__all__ = [
    "PRESETS",
    "Prediction",
    "Segmenter",
    "SelfTrainingConfig",
    "TrainConfig",
    "ensemble",
    "list_segmenters",
    "self_train",
    "train",
]
