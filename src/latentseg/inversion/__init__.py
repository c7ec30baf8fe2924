"""Finds the latents of photos."""
