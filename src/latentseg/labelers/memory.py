"""How much memory labelers use if nothing else is said."""

GIB = 2**30
