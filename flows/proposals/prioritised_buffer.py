"""A buffer of AIS points, drawn by their weights under the flow as it is now."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from energies.base import Target
from flows import parallel
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import known
from flows.paths.base import Path
from flows.paths.rungs import check_effective_size
from flows.proposals.ais import AIS
from flows.proposals.base import Proposal
from flows.state import State
from flows.types import Samples


class PrioritisedBuffer(Proposal):
    """μ ∝ π = q^{1-α} p̃^α over points that annealed importance sampling found before.

    Every `steps` draws the source adds a batch and the oldest points beyond `size` go. Points are
    drawn without replacement in proportion to π/μ_AIS; after each step those just drawn take the
    weight they have under the flow as it is then. Drawn points count as points of π, taken at the
    flow whose weights drew them: what the flow has moved since is left to the loss, which knows
    both (`AlphaDivergence`). Several processes find, keep and draw their shares of the points
    apart; weights are absolute, so that a share counts for as much as its points do.

    Args:
        source: Where points come from; its alpha is that of π.
        size: Most points kept.
        min_size: Points found before the first step.
        steps: Draws for each batch of the source.

    References:
        Midgley et al., Flow annealed importance sampling bootstrap, arXiv 2208.01893.
    """

    def __init__(
        self, source: AIS, *, size: int = 65_536, min_size: int = 8192, steps: int = 8
    ) -> None:
        if not 2 <= min_size <= size:
            raise FlowInputError(f"Expected 2 <= min_size <= size = {size}, got {min_size}.")
        if steps < 1:
            raise FlowInputError(f"Expected steps >= 1, got {steps}.")
        self.source, self.size, self.min_size, self.steps = source, size, min_size, steps
        self._stored: Samples | None = None
        self._log_pi = torch.zeros(0, dtype=torch.float64)
        self._rows = torch.zeros(0, dtype=torch.int64)
        self._draws = 0

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
        """Return n points of the buffer."""
        if (batch := n * parallel.n_ranks()) > self.min_size:
            raise FlowInputError(
                f"Expected a batch of at most min_size = {self.min_size} of the buffer, got "
                f"{batch}."
            )
        if self._draws % self.steps == 0:
            wanted = parallel.share(self.min_size) if self._stored is None else 1
            for _ in range(-(-wanted // n)):
                self._add(
                    self.source.draw(
                        flow, target, path, n, reparametrised=False, generator=generator
                    ),
                    flow,
                )
        stored = self._stored
        assert stored is not None
        self._draws += 1
        log_w = known(self._log_pi - stored.log_q)
        # Gumbel's trick: the largest n of log w + noise are a draw without replacement.
        noise = torch.rand(
            len(log_w), generator=generator, device=generator.device, dtype=torch.float64
        )
        self._rows = (log_w - (-noise.to(log_w.device).log()).log()).topk(n).indices
        log_norm = log_w.logsumexp(0) - math.log(len(log_w))
        log_q = self._log_pi[self._rows] - log_norm
        return path.weigh(target, replace(stored[self._rows], log_q=log_q))

    def update(self, flow: Flow, samples: Samples) -> None:
        """Weigh the points last drawn by the flow as it is now."""
        assert self._stored is not None
        self._log_pi[self._rows] = self._log_pi_at(flow, self._stored[self._rows])

    @torch.no_grad()
    def _log_pi_at(self, flow: Flow, samples: Samples) -> Tensor:
        alpha = self.source.alpha
        return alpha * samples.log_p + (1 - alpha) * flow.log_prob(samples.x)

    def _add(self, samples: Samples, flow: Flow) -> None:
        parts, log_pi = [samples], [self._log_pi_at(flow, samples)]
        if self._stored is not None:
            parts, log_pi = [self._stored, *parts], [self._log_pi, *log_pi]
        most = parallel.share(self.size)
        self._stored = Samples.cat(parts)[-most:]
        self._log_pi = torch.cat(log_pi)[-most:]

    def figures(self) -> dict[str, float]:
        """Return those of the source, and the ESS of the weights that draw points.

        Raises:
            TrainingError: One point holds nearly all the weight.
        """
        if self._stored is None:
            return self.source.figures()
        log_w = parallel.joint(known(self._log_pi - self._stored.log_q))
        size = check_effective_size(log_w, "points in the buffer")
        return {**self.source.figures(), "buffer_ess": size / len(log_w)}

    def state_dict(self) -> State:
        """Return the points, their weights and the state of the source."""
        return {
            "stored": None if self._stored is None else self._stored.tensors(),
            "log_pi": self._log_pi,
            "rows": self._rows,
            "draws": self._draws,
            "source": self.source.state_dict(),
        }

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        device = flow.base.scale.device
        if state["stored"] is not None:
            self._stored = Samples(**state["stored"]).to(device)
        self._log_pi, self._rows = state["log_pi"].to(device), state["rows"].to(device)
        self._draws = state["draws"]
        self.source.load_state_dict(state["source"], flow)
