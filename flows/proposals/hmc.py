"""Hamiltonian Monte Carlo in flow coordinates, on densities between a flow and its aim."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from energies.base import Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.frozen import frozen
from flows.parallel import joint
from flows.paths.base import Path
from flows.proposals.base import normal, uniform
from flows.state import State, Stateful
from flows.transforms.shift import wrap
from flows.types import Samples


@dataclass(frozen=True)
class Walkers:
    """Points with the gradients of both densities, from which those of any mixture follow.

    Attributes:
        samples: x, log q of the flow, log p̃ of the aim, [n].
        score_q: ∇ log q, [n, D]; 0 where it has no value.
        score_p: ∇ log p̃, [n, D].
    """

    samples: Samples
    score_q: Tensor
    score_p: Tensor

    @classmethod
    def at(cls, flow: Flow, target: Target, path: Path, x: Tensor) -> "Walkers":
        """Evaluate both densities, and one energy with its force a row, at x [n, D]."""
        with torch.enable_grad(), frozen(flow):
            x = x.detach().requires_grad_()
            log_q = flow.log_prob(x)
            samples = path.evaluate(target, x, log_q)
            (score_q,) = torch.autograd.grad(log_q.sum(), x)
            (score_p,) = torch.autograd.grad(samples.log_p.sum(), x)
        score_q, score_p = (torch.nan_to_num(s, 0.0, 0.0, 0.0) for s in (score_q, score_p))
        return cls(samples.detach(), score_q, score_p)

    def log_density(self, share: float) -> Tensor:
        """Return log q^{1-share} p̃^{share}, [n]."""
        return (1 - share) * self.samples.log_q + share * self.samples.log_p

    def score(self, share: float) -> Tensor:
        """Return its gradient, [n, D]."""
        return (1 - share) * self.score_q + share * self.score_p

    def where(self, rows: Tensor, other: "Walkers") -> "Walkers":
        """Return these points in `rows`, bool [n], and those of `other` elsewhere."""
        mask = rows[:, None]
        return Walkers(
            self.samples.where(rows, other.samples),
            torch.where(mask, self.score_q, other.score_q),
            torch.where(mask, self.score_p, other.score_p),
        )

    def __getitem__(self, rows: Tensor) -> "Walkers":
        """Return some of the points."""
        return Walkers(self.samples[rows], self.score_q[rows], self.score_p[rows])


class HMC(Stateful):
    """Metropolis moves by leapfrog trajectories with unit masses; angles wrap.

        v <- v + ε ∇ log f(x) / 2,   x <- x + ε v,   v <- v + ε ∇ log f(x) / 2,   n_leapfrog times,
        accepted with probability min(1, f(x') exp(-v'²/2) / f(x) exp(-v²/2)),   v ~ N(0, 1)

    Each place along a sequence of densities has its own step size ε, which follows the share of
    moves accepted between batches, never within one: a move leaves its density invariant. With
    one leapfrog step this is MALA. A trajectory that meets no number is rejected.

    Args:
        n_leapfrog: Leapfrog steps of a move, each an energy with its force.
        step_size: First ε, in units of x.
        acceptance: Share of moves to accept, in (0, 1); about 0.57 suits MALA.
        adaptation: Change of log ε a move for each unit of excess acceptance; 0 keeps ε.

    References:
        Neal, MCMC using Hamiltonian dynamics, arXiv 1206.1901.
    """

    def __init__(
        self,
        n_leapfrog: int = 4,
        *,
        step_size: float = 0.1,
        acceptance: float = 0.65,
        adaptation: float = 0.1,
    ) -> None:
        if n_leapfrog < 1:
            raise FlowInputError(f"Expected n_leapfrog >= 1, got {n_leapfrog}.")
        if not step_size > 0:
            raise FlowInputError(f"Expected step_size > 0, got {step_size}.")
        if not 0 < acceptance < 1:
            raise FlowInputError(f"Expected acceptance in (0, 1), got {acceptance}.")
        if not adaptation >= 0:
            raise FlowInputError(f"Expected adaptation >= 0, got {adaptation}.")
        self.n_leapfrog, self.step_size = n_leapfrog, step_size
        self.acceptance, self.adaptation = acceptance, adaptation
        self._log_steps: dict[int, Tensor] = {}
        self._accepted: dict[int, Tensor] = {}

    def move(
        self,
        walkers: Walkers,
        evaluate: Callable[[Tensor], Walkers],
        periodic: Tensor,
        *,
        share: float,
        place: int,
        generator: torch.Generator,
    ) -> Walkers:
        """Move every point once under f = q^{1-share} p̃^{share}.

        Args:
            walkers: Points.
            evaluate: Gives the walkers at x [n, D].
            periodic: The coordinates that are angles, bool [D].
            share: Of the aim in f.
            place: Which step size to use.
            generator: Source of randomness.
        """
        x = walkers.samples.x
        log_step = self._log_steps.setdefault(place, x.new_tensor(self.step_size).log())
        step = log_step.exp()
        v = normal(x, generator)
        kinetic, new = 0.5 * v.square().sum(-1), walkers
        v = v + 0.5 * step * new.score(share)
        for k in range(self.n_leapfrog):
            # What overflowed is put at zero here, and rejected below for its velocity.
            x = wrap(torch.nan_to_num(x + step * v, 0.0, 0.0, 0.0), periodic)
            new = evaluate(x)
            v = v + (0.5 if k == self.n_leapfrog - 1 else 1.0) * step * new.score(share)
        gain = new.log_density(share) - walkers.log_density(share)
        gain = gain + kinetic - 0.5 * v.square().sum(-1)
        gain = torch.nan_to_num(gain, nan=-torch.inf, posinf=0.0)
        accepted = uniform(len(x), x.device, generator).log() < gain
        rate = joint(gain.clamp_max(0.0).exp()).mean()
        self._accepted[place] = rate
        excess = (rate - self.acceptance).to(log_step.dtype)
        self._log_steps[place] = log_step + self.adaptation * excess
        return new.where(accepted, walkers)

    def figures(self) -> dict[str, float]:
        """Return the mean acceptance and step size over places."""
        if not self._accepted:
            return {}
        steps, rates = list(self._log_steps.values()), list(self._accepted.values())
        return {
            "acceptance": float(torch.stack(rates).mean()),
            "step_size": float(torch.stack(steps).exp().mean()),
        }

    def state_dict(self) -> State:
        """Return step sizes and last acceptances."""
        return {"log_steps": dict(self._log_steps), "accepted": dict(self._accepted)}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        device = flow.base.scale.device
        self._log_steps = {k: v.to(device) for k, v in state["log_steps"].items()}
        self._accepted = {k: v.to(device) for k, v in state["accepted"].items()}
