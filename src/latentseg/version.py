"""The version of the package, for whatever is written to disk."""

__version__ = "0.1.0"
