"""The settings of labelers in the presets of a run; those left out have their defaults."""

from collections.abc import Mapping
from typing import Any

from latentseg.labelers.directions_settings import SETTINGS, DirectionsConfig

LABELERS: Mapping[str, Mapping[str, Any]] = {
    "quick": {"directions": DirectionsConfig(steps=100, restarts=2, restart_steps=25)},
    "standard": {},
    "paper": {"directions": SETTINGS["official"]},
}
