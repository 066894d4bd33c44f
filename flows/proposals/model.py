"""The flow's own samples."""

import torch

from energies.base import Target
from flows.flow import Flow
from flows.paths.base import Path
from flows.proposals.base import Proposal
from flows.types import Samples


class Model(Proposal):
    """μ = q: points of the flow in training, fresh at every step.

    Reparametrised points carry gradient through x and the energy (forces); detached ones cost an
    energy without force.
    """

    can_reparametrise = True
    independent = True

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
        """Return n points of the flow."""
        if reparametrised:
            return path.evaluate(target, *flow.rsample_and_log_prob(n, generator=generator))
        with torch.no_grad():
            return path.evaluate(target, *flow.sample_and_log_prob(n, generator=generator))
