"""Losses: what is minimised on a batch of points. One class each; see `flows.losses.base`."""

from flows.losses.alpha_divergence import AlphaDivergence
from flows.losses.base import Loss
from flows.losses.centres import BatchMean, Centre, LearnedLogZ, RunningMean
from flows.losses.forward_kl import ForwardKL
from flows.losses.l2 import L2, L2Plus, LogVariance
from flows.losses.reverse_kl import ReverseKL
from flows.losses.reverse_kl_path import ReverseKLPath
from flows.losses.sum import Jeffreys, Sum

__all__ = [
    "L2",
    "AlphaDivergence",
    "BatchMean",
    "Centre",
    "ForwardKL",
    "Jeffreys",
    "L2Plus",
    "LearnedLogZ",
    "LogVariance",
    "Loss",
    "ReverseKL",
    "ReverseKLPath",
    "RunningMean",
    "Sum",
]
