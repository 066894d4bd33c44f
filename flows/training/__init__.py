"""Training: the loop, its stages, checkpoints and loggers."""

from flows.training.muon import Muon
from flows.training.schedule import Schedule, WarmupCosine
from flows.training.signals import InterruptedRunError
from flows.training.stage import Stage
from flows.training.trainer import Trainer

__all__ = ["InterruptedRunError", "Muon", "Schedule", "Stage", "Trainer", "WarmupCosine"]
