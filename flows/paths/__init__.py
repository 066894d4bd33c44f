"""Paths: which target is aimed at now. See `flows.paths.base`."""

from flows.paths.base import Path
from flows.paths.constrained import Constrained
from flows.paths.ladder import AdaptiveLadder, Ladder
from flows.paths.temperature import Temperature

__all__ = ["AdaptiveLadder", "Constrained", "Ladder", "Path", "Temperature"]
