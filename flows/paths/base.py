"""What a path is: which density training aims at now."""

from abc import ABC, abstractmethod
from dataclasses import replace

from torch import Tensor

from energies.base import Evaluation, Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.state import Stateful
from flows.types import Samples


class Path(Stateful, ABC):
    """A sequence of target densities, from one that is easy to cover to the one wanted.

    A path moves by progress alone, or by the samples of the flow as it is now, which the proposal
    gives it whenever they are `due` (see `flows.paths.rungs`).

    Args:
        end: Temperature of the last density, kelvin.

    Attributes:
        progress: How far along the stage training is, in [0, 1].
        rung: How many times samples moved it.
        rungs: How many times they do over a stage.
        n_samples: How many it wants where the proposal keeps no buffer.
    """

    rungs, n_samples = 0, 0

    def __init__(self, end: float) -> None:
        if not end > 0:
            raise FlowInputError(f"Expected temperature end > 0 kelvin, got {end}.")
        self.end = end
        self.progress, self.rung = 0.0, 0

    def update(self, progress: float) -> None:
        """Move to `progress`, in [0, 1]."""
        self.progress = min(max(progress, 0.0), 1.0)

    @property
    @abstractmethod
    def temperature(self) -> float:
        """Temperature of the current density, kelvin."""

    @property
    def aim(self) -> float:
        """A number that changes whenever the current density does."""
        return self.temperature

    @property
    def due(self) -> bool:
        """Whether samples of the flow are to move the path before another step."""
        return False

    def log_prob(self, target: Target, e: Evaluation, x: Tensor) -> Tensor:
        """Return the unnormalised log density of the current aim, float64, [n].

        Args:
            target: The density whose family the path runs through.
            e: Its evaluation at x.
            x: Points, [n, D].
        """
        return target.log_prob(e, self.temperature)

    def evaluate(self, target: Target, x: Tensor, log_q: Tensor) -> Samples:
        """Spend one energy evaluation a row and weigh the points towards the current aim.

        Args:
            target: The density whose family the path runs through.
            x: Points, [n, D].
            log_q: Log density of what drew them, [n].
        """
        e = target.evaluate(x)
        log_p, log_q = self.log_prob(target, e, x), log_q.to(e.potential.dtype)
        return Samples(x, log_q, log_p, (log_p - log_q).detach(), e.potential, e.log_jac)

    def weigh(self, target: Target, samples: Samples) -> Samples:
        """Weigh points that were evaluated before towards the current aim: no energy is spent."""
        e = Evaluation(samples.potential, samples.log_jac)
        return weighed(samples, self.log_prob(target, e, samples.x))

    def advance(self, flow: Flow, target: Target, samples: Samples) -> Samples:
        """Take the next aim.

        Args:
            flow: The flow as it is now.
            target: The density whose family the path runs through.
            samples: Its samples, weighed towards any aim; `log_q` is its log density.

        Returns:
            The same samples, weighed towards the new aim.
        """
        return self.weigh(target, samples)

    def figures(self) -> dict[str, float]:
        """Return what to log, once a row."""
        return {}


def weighed(samples: Samples, log_p: Tensor) -> Samples:
    """Return the samples with weights towards log_p, [n]."""
    return replace(samples, log_p=log_p, log_w=(log_p - samples.log_q).detach())
