"""Constrained mass transport: as far towards the target as two bounds allow."""

import copy
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from energies.base import Evaluation, Target
from flows.errors import FlowInputError
from flows.flow import Flow
from flows.metrics.weights import known, log_z
from flows.paths.root import falling_root
from flows.paths.rungs import Rungs
from flows.state import State
from flows.types import Samples


class Multipliers(NamedTuple):
    """λ of the trust region and η of the entropy bound."""

    trust: float
    entropy: float


class Bounds(NamedTuple):
    """KL(q' || q) and H(q) - H(q') of a next density q'."""

    divergence: float
    entropy_loss: float


class Constrained(Rungs):
    """The density nearest to p among those near the flow that lose little entropy.

        q' = argmin KL(q' || p)   with   KL(q' || q) <= ε_tr,   H(q) - H(q') <= ε_ent
           ∝ q^{λ/(1+λ+η)} p̃^{1/(1+λ+η)}

    q is the flow at the last rung, kept as a frozen copy. λ, η >= 0 maximise the concave dual

        g(λ, η) = -(1+λ+η) log Z(λ, η) - λ ε_tr + η (H(q) - ε_ent),
        Z(λ, η) = E_q[(p̃ / q^{1+η})^{1/(1+λ+η)}]

    on the flow's samples: no energy is evaluated. The last rung aims at p itself.

    Args:
        end: Temperature of p, kelvin.
        rungs: How many times the aim is taken anew, in equal shares of the stage.
        trust_region: ε_tr, nats.
        entropy_bound: ε_ent, nats; infinite for a trust region alone.
        n_samples: Samples wanted at a rung, where the proposal keeps no buffer.

    References:
        Constrained mass transport, arXiv 2510.18460.
    """

    def __init__(
        self,
        end: float,
        *,
        rungs: int = 20,
        trust_region: float = 0.3,
        entropy_bound: float = 0.3,
        n_samples: int = 4096,
    ) -> None:
        super().__init__(end, rungs=rungs, n_samples=n_samples)
        for name, value in (("trust_region", trust_region), ("entropy_bound", entropy_bound)):
            if not value > 0:
                raise FlowInputError(f"Expected {name} > 0 nats, got {value}.")
        self.trust_region, self.entropy_bound = trust_region, entropy_bound
        self.multipliers = Multipliers(0.0, 0.0)
        self._anchor: Flow | None = None

    @property
    def temperature(self) -> float:
        """Temperature of p, kelvin: it enters every density of the path."""
        return self.end

    @property
    def aim(self) -> float:
        """The rung."""
        return float(self.rung)

    def log_prob(self, target: Target, e: Evaluation, x: Tensor) -> Tensor:
        """Return log q' up to a constant; it costs a pass through the frozen flow."""
        log_p = target.log_prob(e, self.end)
        if self._anchor is None or self.multipliers.trust == self.multipliers.entropy == 0:
            return log_p
        return mixed(log_p, self._anchor.log_prob(x), self.multipliers)

    def next_aim(self, flow: Flow, target: Target, samples: Samples) -> Tensor:
        """Solve for the multipliers, and keep the flow."""
        log_p = target.log_prob(Evaluation(samples.potential, samples.log_jac), self.end)
        self.multipliers = Multipliers(0.0, 0.0)
        if not self.at_last_rung:
            self.multipliers = solve_dual(
                log_p, samples.log_q, self.trust_region, self.entropy_bound
            )
        self._anchor = copy.deepcopy(flow).requires_grad_(False)
        self._figures["trust_multiplier"] = self.multipliers.trust
        self._figures["entropy_multiplier"] = self.multipliers.entropy
        self._figures["target_log_z"] = log_z(known(log_p - samples.log_q)).value
        return mixed(log_p, samples.log_q, self.multipliers)

    def state_dict(self) -> State:
        """Return the rung, the multipliers and the frozen flow."""
        anchor = None if self._anchor is None else self._anchor.state_dict()
        return {**super().state_dict(), "multipliers": tuple(self.multipliers), "anchor": anchor}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        super().load_state_dict(state, flow)
        self.multipliers = Multipliers(*state["multipliers"])
        self._anchor = None
        if state["anchor"] is not None:
            self._anchor = copy.deepcopy(flow).requires_grad_(False)
            self._anchor.load_state_dict(state["anchor"])


def mixed(log_p: Tensor, log_q: Tensor, multipliers: Multipliers) -> Tensor:
    """Return (log p̃ + λ log q) / (1 + λ + η), [n]."""
    trust, entropy = multipliers
    return (log_p + trust * log_q) / (1 + trust + entropy)


def bounds(log_p: Tensor, log_q: Tensor, multipliers: Multipliers) -> Bounds:
    """Return what the density of the multipliers costs, by weights of samples of q.

    With g the dual, ∂g/∂λ = KL(q' || q) - ε_tr and ∂g/∂η = H(q) - H(q') - ε_ent.

    Args:
        log_p: log p̃ at the samples, finite, [n].
        log_q: log q there, [n].
        multipliers: λ and η.
    """
    log_w = mixed(log_p, log_q, multipliers) - log_q
    log_w = log_w - torch.logsumexp(log_w, 0)  # of weights that sum to 1
    w = log_w.exp()
    divergence = (w * log_w).sum() + torch.tensor(float(len(log_w))).log()
    # H(q') = -E_{q'}[log q + log q'/q]
    entropy_loss = (w * log_q).sum() - log_q.mean() + divergence
    return Bounds(float(divergence), float(entropy_loss))


def solve_dual(
    log_p: Tensor, log_q: Tensor, trust_region: float, entropy_bound: float
) -> Multipliers:
    """Return λ, η >= 0 that maximise the dual.

    Each partial derivative falls in its own multiplier, and so does the one in η when λ follows
    it: two nested searches for where they cross zero.

    Args:
        log_p: log p̃ at samples of q, [n]; rows without a number are left out.
        log_q: log q there, [n].
        trust_region: ε_tr, nats.
        entropy_bound: ε_ent, nats.
    """
    rows = torch.isfinite(log_p) & torch.isfinite(log_q)
    log_p, log_q = log_p[rows].double(), log_q[rows].double()

    def trust_of(entropy: float) -> float:
        return _multiplier(
            lambda trust: (
                bounds(log_p, log_q, Multipliers(trust, entropy)).divergence - trust_region
            )
        )

    def excess(entropy: float) -> float:
        multipliers = Multipliers(trust_of(entropy), entropy)
        return bounds(log_p, log_q, multipliers).entropy_loss - entropy_bound

    entropy = _multiplier(excess)
    return Multipliers(trust_of(entropy), entropy)


def _multiplier(excess: Callable[[float], float]) -> float:
    """Return the multiplier m >= 0 of a bound whose excess falls with m: 0 if it holds there."""
    if excess(0.0) <= 0:
        return 0.0
    high = 1.0
    while excess(high) > 0 and high < _LARGEST:
        high *= 8.0
    top = math.log(high)  # multipliers span orders of magnitude: search in their logarithm
    return math.exp(falling_root(lambda u: excess(math.exp(u)), top - 20, top))


_LARGEST = 1e12
"""A bound that no multiplier below it meets is left unmet: the aim is then the flow itself."""
