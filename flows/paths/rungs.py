"""Paths that take their next aim from samples of the flow."""

from abc import abstractmethod

from torch import Tensor

from energies.base import Target
from flows.errors import FlowInputError, TrainingError
from flows.flow import Flow
from flows.metrics.weights import effective_size, known, log_z
from flows.paths.base import Path, weighed
from flows.state import State
from flows.types import Samples

FEWEST = 1.5
"""Effective samples below which weights say nothing: one point holds nearly all of it."""


class Rungs(Path):
    """A path in `rungs` steps, each of an equal share of the stage; the last one aims at `end`.

    Args:
        end: Temperature of the last density, kelvin.
        rungs: How many times the path advances over a stage.
        n_samples: Samples of the flow wanted at a rung, where the proposal keeps no buffer.
    """

    def __init__(self, end: float, *, rungs: int, n_samples: int) -> None:
        super().__init__(end)
        if rungs < 1:
            raise FlowInputError(f"Expected rungs >= 1, got {rungs}.")
        if n_samples < 2:
            raise FlowInputError(f"Expected n_samples >= 2, got {n_samples}.")
        self.rungs, self.n_samples = rungs, n_samples
        self._figures: dict[str, float] = {}

    @property
    def due(self) -> bool:
        """Whether the share of the current rung is used up, or none was taken yet."""
        return self.rung < self._rung_now

    @property
    def at_last_rung(self) -> bool:
        """Whether the path has advanced for the last time."""
        return self.rung == self.rungs

    def advance(self, flow: Flow, target: Target, samples: Samples) -> Samples:
        """Take the next aim; arguments and result as in `Path.advance`.

        Raises:
            TrainingError: One of the samples holds all the weight towards it.
        """
        self.rung = self._rung_now
        samples = weighed(samples, self.next_aim(flow, target, samples))
        log_w = known(samples.log_w)
        size = check_effective_size(log_w, f"the flow's samples at rung {self.rung} of the path")
        self._figures["path_ess"] = size / len(samples)
        self._figures["path_log_z"] = log_z(log_w).value
        return samples

    @abstractmethod
    def next_aim(self, flow: Flow, target: Target, samples: Samples) -> Tensor:
        """Take the next aim and return its log density at the samples, float64 [n]."""

    def figures(self) -> dict[str, float]:
        """Return ESS and log Z of the flow's samples towards the aim, when it was taken."""
        return {"rung": float(self.rung), **self._figures}

    def state_dict(self) -> State:
        """Return the rung and its figures."""
        return {"rung": self.rung, "figures": dict(self._figures)}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        self.rung, self._figures = state["rung"], dict(state["figures"])

    @property
    def _rung_now(self) -> int:
        return min(int(self.progress * self.rungs) + 1, self.rungs)


def check_effective_size(log_w: Tensor, what: str) -> float:
    """Return (Σw)²/Σw² if it is more than one sample.

    Raises:
        TrainingError: One sample holds nearly all the weight.
    """
    size = effective_size(log_w)
    if not size >= FEWEST:
        raise TrainingError(
            f"Expected an effective number of samples of at least {FEWEST} among {len(log_w)} of "
            f"{what}, got {size:.2f}: their weights rest on one of them. Smaller steps along the "
            "path or a hotter start may help."
        )
    return size
