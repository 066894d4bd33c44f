"""What a path is: which density training aims at now."""

from abc import ABC, abstractmethod

from torch import Tensor

from energies.base import Evaluation, Target
from flows.types import Samples


class Path(ABC):
    """A sequence of target densities, from one that is easy to cover to the one wanted.

    Attributes:
        progress: How far along the path training is, in [0, 1].
    """

    def __init__(self) -> None:
        self.progress = 0.0

    def update(self, progress: float) -> None:
        """Move to `progress`, in [0, 1]."""
        self.progress = min(max(progress, 0.0), 1.0)

    @property
    @abstractmethod
    def temperature(self) -> float:
        """Temperature of the current density, kelvin."""

    def log_prob(self, target: Target, e: Evaluation) -> Tensor:
        """Return the unnormalised log density of the current aim, float64, [n]."""
        return target.log_prob(e, self.temperature)

    def evaluate(self, target: Target, x: Tensor, log_q: Tensor) -> Samples:
        """Spend one energy evaluation a row and weigh the points towards the current aim.

        Args:
            target: The density whose family the path runs through.
            x: Points, [n, D].
            log_q: Log density of what drew them, [n].
        """
        e = target.evaluate(x)
        log_p, log_q = self.log_prob(target, e), log_q.to(e.potential.dtype)
        return Samples(x, log_q, log_p, (log_p - log_q).detach(), e.potential, e.log_jac)
