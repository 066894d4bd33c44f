"""What L2 and L2+ compare log p̃ - log q with: estimates of log Z without gradient."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.flow import Flow
from flows.losses.base import masked_mean
from flows.state import State, Stateful
from flows.types import Samples, Weights


class Centre(Stateful, ABC):
    """The constant K of L2 and L2+.

    Attributes:
        needs: What must be known of the density that drew the points.
    """

    needs: Weights = Weights.NONE

    @abstractmethod
    def __call__(self, r: Tensor, weight: Tensor, samples: Samples) -> Tensor:
        """Return K, scalar without gradient, for r = log p̃ - log q [n] of rows of weight 1."""


class BatchMean(Centre):
    """K = mean of r over the batch: E_μ[r], on-policy log Z - KL(q || p)."""

    def __call__(self, r: Tensor, weight: Tensor, samples: Samples) -> Tensor:
        """Return the mean of the rows kept."""
        return masked_mean(r, weight)


class _Remembered(Centre):
    """A K that moves a little with every batch."""

    def __init__(self) -> None:
        self._k: Tensor | None = None

    def state_dict(self) -> State:
        """Return K."""
        return {"k": self._k}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        k: Tensor | None = state["k"]
        self._k = None if k is None else k.to(flow.base.scale.device)


class RunningMean(_Remembered):
    """K = exponential mean of E_μ[r] over about 1/(1 - decay) batches: less noise, some lag.

    It is also the log Z that stochastic gradient descent on E_μ[(r - K)²]/2 learns, at the
    learning rate 1 - decay.

    Args:
        decay: In [0, 1).
    """

    def __init__(self, decay: float = 0.98) -> None:
        super().__init__()
        if not 0 <= decay < 1:
            raise FlowInputError(f"Expected decay in [0, 1), got {decay}.")
        self.decay = decay

    def __call__(self, r: Tensor, weight: Tensor, samples: Samples) -> Tensor:
        """Move K towards the batch and return it."""
        mean = masked_mean(r, weight)
        self._k = mean if self._k is None else torch.lerp(mean, self._k, self.decay)
        return self._k


class LearnedLogZ(_Remembered):
    """K learned until E_μ[e^{-K} p̃/μ] = 1, that is K = log Z whatever the flow.

        K <- K + rate · min(e^{-K} mean(w) - 1, 1),   w = p̃/μ

    Stochastic approximation: unlike the logarithm of a batch's mean weight it has no bias, but
    for the cut of its steps. The lower K of `BatchMean` lets more points pull in L2+.

    Args:
        rate: Step size, in (0, 1].
    """

    needs = Weights.ABSOLUTE

    def __init__(self, rate: float = 0.02) -> None:
        super().__init__()
        if not 0 < rate <= 1:
            raise FlowInputError(f"Expected rate in (0, 1], got {rate}.")
        self.rate = rate

    def __call__(self, r: Tensor, weight: Tensor, samples: Samples) -> Tensor:
        """Move K by the weights of the batch and return it."""
        log_w = torch.where(samples.finite, samples.log_w, -torch.inf)
        log_mean = torch.logsumexp(log_w, 0) - math.log(len(samples))
        if self._k is None:
            self._k = torch.nan_to_num(log_mean, neginf=0.0)
        else:
            self._k = self._k + self.rate * ((log_mean - self._k).exp() - 1).clamp_max(1.0)
        return self._k
