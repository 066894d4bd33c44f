"""Losses: what is minimised on a batch of points. One class each; see `flows.losses.base`."""

from flows.losses.base import Loss
from flows.losses.forward_kl import ForwardKL
from flows.losses.l2 import L2, L2Plus, LogVariance
from flows.losses.reverse_kl import ReverseKL

__all__ = ["L2", "ForwardKL", "L2Plus", "LogVariance", "Loss", "ReverseKL"]
