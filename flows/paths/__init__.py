"""Paths: which target is aimed at now. See `flows.paths.base`."""

from flows.paths.base import Path
from flows.paths.temperature import Temperature

__all__ = ["Path", "Temperature"]
