"""Trains a generator on a folder of photos."""

from latentseg.generators.training.config import GeneratorTrainingConfig
from latentseg.generators.training.loop import train_generator

__all__ = ["GeneratorTrainingConfig", "train_generator"]
