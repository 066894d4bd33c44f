"""What a run samples: one class for each kind of system, named by `_target_` in its config."""

from runs.systems.base import System

__all__ = ["System"]
