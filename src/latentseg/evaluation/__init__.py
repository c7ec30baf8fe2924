"""Measuring on real photos: data sets, protocols, floors, and the report of a run."""
