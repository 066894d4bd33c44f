"""Ladders of temperatures: fixed, or as steep as the flow can follow."""

from torch import Tensor

from energies.base import Evaluation, Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import ess, known
from flows.paths.root import falling_root
from flows.paths.rungs import Rungs
from flows.state import State
from flows.types import Samples


class Ladder(Rungs):
    """Go down in `rungs` steps of equal ratio.

        T_k = T_start (T_end / T_start)^{k / rungs},   k = 1, ..., rungs

    The first aim is one step below `start`, where the flow is supposed to be. At each rung a
    buffer is filled with samples of the flow of the rung above: with resampling and the forward
    KL this is TA-BG.

    Args:
        end: Last temperature, kelvin.
        start: Temperature that the flow was trained for, kelvin.
        rungs: Number of steps, of equal shares of the stage.
        n_samples: Samples wanted at a rung, where the proposal keeps no buffer.

    References:
        Schopmans, Friederich, Temperature-annealed Boltzmann generators, arXiv 2501.19077.
    """

    def __init__(self, end: float, start: float, *, rungs: int = 9, n_samples: int = 4096) -> None:
        super().__init__(end, rungs=rungs, n_samples=n_samples)
        if not start >= end:
            raise FlowInputError(f"Expected start >= end = {end} kelvin, got {start}.")
        self.start = self._temperature = start

    @property
    def temperature(self) -> float:
        """Temperature of the current rung, kelvin."""
        return self._temperature

    def next_aim(self, flow: Flow, target: Target, samples: Samples) -> Tensor:
        """Go down one rung."""
        e = Evaluation(samples.potential, samples.log_jac)
        self._temperature = self.end if self.at_last_rung else self._next(target, samples)
        return self.log_prob(target, e, samples.x)

    def _next(self, target: Target, samples: Samples) -> float:
        """Return the next temperature; the last is `end` in any case."""
        share = self.rung / self.rungs
        return float(self.start * (self.end / self.start) ** share)

    def state_dict(self) -> State:
        """Return the rung and its temperature."""
        return {**super().state_dict(), "temperature": self._temperature}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        super().load_state_dict(state, flow)
        self._temperature = state["temperature"]


class AdaptiveLadder(Ladder):
    """Go down as far at each rung as the flow's samples allow.

        T_{k+1} = the coldest T <= T_k at which the ESS of the flow's samples is at least `ess`

    found by bisection in 1/T on the potentials that the samples carry: no energy is evaluated. A
    flow whose ESS is below the bound where it stands gets another rung at the same temperature.
    The last rung is at `end` in any case; a jump that is too far for the samples stops the run.

    Args:
        end: Last temperature, kelvin.
        start: Temperature that the flow was trained for, kelvin.
        rungs: Number of rungs; those left over when `end` is reached are spent there.
        ess: Smallest ESS as a share of the samples, in (0, 1).
        n_samples: Samples wanted at a rung, where the proposal keeps no buffer.

    References:
        Jasra et al., Inference for Lévy-driven models by adaptive SMC, Scand. J. Stat. 38 (2011).
    """

    def __init__(
        self,
        end: float,
        start: float,
        *,
        rungs: int = 20,
        ess: float = 0.3,
        n_samples: int = 4096,
    ) -> None:
        super().__init__(end, start, rungs=rungs, n_samples=n_samples)
        if not 0 < ess < 1:
            raise FlowInputError(f"Expected ess in (0, 1), got {ess}.")
        self.ess = ess

    def _next(self, target: Target, samples: Samples) -> float:
        e = Evaluation(samples.potential, samples.log_jac)

        def surplus(cold: float) -> float:
            return ess(known(target.log_prob(e, 1 / cold) - samples.log_q)) - self.ess

        return 1 / falling_root(surplus, 1 / self._temperature, 1 / self.end)
