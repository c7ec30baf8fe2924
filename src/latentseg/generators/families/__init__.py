"""The families of checkpoints, one module for each paper or code base."""
