"""Annealed importance sampling from the flow towards its aim, and the same with resampling."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from energies.base import Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import known
from flows.paths.base import Path
from flows.proposals.base import Proposal, systematic
from flows.proposals.hmc import HMC, Walkers
from flows.state import State
from flows.types import Samples


class AIS(Proposal):
    """Points carried from the flow q to π ∝ q^{1-α} p̃^α through densities in between.

        f_k = q^{1 - α β_k} p̃^{α β_k},  β_k = k/(K+1);   log w_π = Σ_k log f_{k+1}(x_k)/f_k(x_k)

    x_0 ~ q, and x_k is x_{k-1} after a move that leaves f_k invariant, k = 1..K. α = 1 goes to p
    itself, α = 2 to p²/q, the best measure for the α-divergence of order 2. The weights are exact
    whatever the moves: in expectation over them E[w h(x_K)] = Z E_p[h], with log_w towards the aim
    and log_q = log_p - log_w. A batch costs 1 + (K + L) n_leapfrog energies a row, with forces.

    Args:
        n_bridges: K, densities at which points move; 0 for plain importance sampling.
        alpha: α > 0.
        moves: How points move; `HMC()` if not given.
        n_final: L, moves at the end of the way, which leave π invariant and the weights as they
            are: they bring out what the flow blurs.

    References:
        Neal, Annealed importance sampling, physics/9803008; Midgley et al., arXiv 2208.01893.
    """

    independent = True

    def __init__(
        self,
        n_bridges: int = 8,
        *,
        alpha: float = 1.0,
        moves: HMC | None = None,
        n_final: int = 0,
    ) -> None:
        if n_bridges < 0:
            raise FlowInputError(f"Expected n_bridges >= 0, got {n_bridges}.")
        if n_final < 0:
            raise FlowInputError(f"Expected n_final >= 0, got {n_final}.")
        if not 0 < alpha < math.inf:
            raise FlowInputError(f"Expected alpha > 0, got {alpha}.")
        self.n_bridges, self.alpha, self.n_final = n_bridges, alpha, n_final
        self.moves = HMC() if moves is None else moves

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
        """Return n points at the end of their way."""

        def evaluate(x: Tensor) -> Walkers:
            return Walkers.at(flow, target, path, x)

        walkers = evaluate(flow.sample_and_log_prob(n, generator=generator)[0])
        rise = self.alpha / (self.n_bridges + 1)
        log_w = rise * walkers.samples.log_w
        last = self.n_bridges + 1
        for k in range(1, last + 1 if self.n_final else last):
            walkers, log_w = self.select(walkers, log_w, generator)
            for _ in range(self.n_final if k == last else 1):
                walkers = self.moves.move(
                    walkers, evaluate, flow.periodic, share=k * rise, place=k, generator=generator
                )
            if k < last:
                log_w = log_w + rise * walkers.samples.log_w
        samples = walkers.samples
        # From π to the aim: p/π = (p/q)^{1-α}.
        log_w = log_w + (1 - self.alpha) * samples.log_w
        log_w = torch.where(torch.isfinite(samples.log_w), log_w, -torch.inf)
        return replace(samples, log_q=samples.log_p - log_w, log_w=log_w)

    def select(
        self, walkers: Walkers, log_w: Tensor, generator: torch.Generator
    ) -> tuple[Walkers, Tensor]:
        """Return the walkers that go on, and their log weights, [n]: all of them."""
        return walkers, log_w

    def figures(self) -> dict[str, float]:
        """Return those of the moves."""
        return self.moves.figures()

    def state_dict(self) -> State:
        """Return the state of the moves."""
        return self.moves.state_dict()

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        self.moves.load_state_dict(state, flow)


class SMC(AIS):
    """AIS whose points are drawn anew by their weights before a move, where those are uneven.

    Systematic resampling wherever the ESS of a batch is below `ess`; the weights then start again
    from their mean, which keeps that of the last ones an unbiased estimate of Z. Points with a
    common ancestor are not independent: errors come from several batches, not from within one.

    Args:
        n_bridges: K, densities at which points move.
        alpha: α > 0.
        moves: How points move; `HMC()` if not given.
        n_final: L, moves at the end of the way.
        ess: Share of the batch below which the ESS causes resampling, in (0, 1].

    References:
        Del Moral, Doucet, Jasra, Sequential Monte Carlo samplers, JRSS B 68 (2006).
    """

    independent = False

    def __init__(
        self,
        n_bridges: int = 8,
        *,
        alpha: float = 1.0,
        moves: HMC | None = None,
        n_final: int = 0,
        ess: float = 0.5,
    ) -> None:
        super().__init__(n_bridges, alpha=alpha, moves=moves, n_final=n_final)
        if not 0 < ess <= 1:
            raise FlowInputError(f"Expected ess in (0, 1], got {ess}.")
        self.ess = ess

    def select(
        self, walkers: Walkers, log_w: Tensor, generator: torch.Generator
    ) -> tuple[Walkers, Tensor]:
        """Return the walkers drawn, or all of them where the weights are even enough."""
        n = len(log_w)
        counts = known(log_w)
        w = torch.nan_to_num(torch.softmax(counts, 0))
        uneven = w.square().sum() * self.ess * n > 1  # on the device: nothing waits for it
        mean = counts.logsumexp(0) - math.log(n)
        rows = torch.where(uneven, systematic(w, n, generator), torch.arange(n, device=w.device))
        return walkers[rows], torch.where(uneven, mean, counts)
