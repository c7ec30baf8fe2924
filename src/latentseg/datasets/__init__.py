"""Labelled images, ours and others': read, checked, measured and written."""
