"""Points of the target itself, by chains that choose between samples of the flow."""

from dataclasses import replace

import torch
from torch import Tensor

from energies.base import Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import known, resample
from flows.parallel import joint
from flows.paths.base import Path
from flows.proposals.base import Proposal, uniform
from flows.state import State
from flows.types import Samples, Weights


class Metropolis(Proposal):
    r"""Independence Metropolis chains whose proposals are fresh samples of the flow.

    A chain at x goes on to x' ~ q with probability min(1, w(x') / w(x)), w = p̃/q, and stays
    otherwise: its states follow p, whatever the flow, and all weigh the same. As many chains as
    rows in a batch; they start from flow samples drawn by their weights. A chain that sits on a
    large weight repeats itself for long: that is the price of an uneven flow.

    Args:
        burn_in: Steps of every chain that are thrown away first.

    References:
        Albergo, Kanwar, Shanahan, Flow-based generative models for MCMC in lattice field theory,
        arXiv 1904.12072.
    """

    gives = Weights.RELATIVE

    def __init__(self, burn_in: int = 10) -> None:
        if burn_in < 0:
            raise FlowInputError(f"Expected burn_in >= 0, got {burn_in}.")
        self.burn_in = burn_in
        self._chains: Samples | None = None
        self._accepted: Tensor | None = None

    @torch.no_grad()
    def draw(
        self,
        flow: Flow,
        target: Target,
        path: Path,
        n: int,
        *,
        reparametrised: bool,
        generator: torch.Generator,
    ) -> Samples:
        """Return the states of n chains after a step, each of weight one."""
        n_steps = 1
        if self._chains is None or len(self._chains) != n:
            first = path.evaluate(target, *flow.sample_and_log_prob(n, generator=generator))
            log_w = known(first.log_w).to(generator.device)
            rows = resample(log_w, n, generator, "systematic").to(first.x.device)
            self._chains = first[rows]
            n_steps += self.burn_in
        # Flow and aim may have changed since the chains came here.
        state = replace(self._chains, log_q=flow.log_prob(self._chains.x))
        state = path.weigh(target, state)
        for _ in range(n_steps):
            new = path.evaluate(target, *flow.sample_and_log_prob(n, generator=generator))
            gain = known(new.log_w) - state.log_w
            accepted = uniform(n, gain.device, generator).log() < gain
            self._accepted = accepted.double()
            state = new.where(accepted, state)
        self._chains = state
        return path.weigh(target, replace(state, log_q=state.log_p))

    def figures(self) -> dict[str, float]:
        """Return the share of chains that moved in the last step."""
        if self._accepted is None:
            return {}
        return {"acceptance": float(joint(self._accepted).mean())}

    def state_dict(self) -> State:
        """Return where the chains are."""
        return {"chains": None if self._chains is None else self._chains.tensors()}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        if state["chains"] is not None:
            self._chains = Samples(**state["chains"]).to(flow.base.scale.device)
