"""Synthesis collects labelled samples: live as a stream, or on disk as a dataset folder."""
