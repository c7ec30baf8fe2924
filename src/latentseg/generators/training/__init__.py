"""Trains a generator on a folder of photos."""

from latentseg.generators.training.loop import GeneratorTrainingConfig, train_generator

__all__ = ["GeneratorTrainingConfig", "train_generator"]
