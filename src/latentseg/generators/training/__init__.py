"""Trains a generator on a folder of photos."""

from latentseg.generators.training.config import DEFAULTS, GeneratorTrainingConfig
from latentseg.generators.training.loop import train_generator

__all__ = ["DEFAULTS", "GeneratorTrainingConfig", "train_generator"]
