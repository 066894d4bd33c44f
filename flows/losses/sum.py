"""Weighted sums of losses, and the one that has a name."""

from collections.abc import Mapping

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.flow import Flow
from flows.losses.base import Loss, Stats
from flows.losses.forward_kl import ForwardKL
from flows.losses.reverse_kl import ReverseKL
from flows.state import State
from flows.types import Samples


class Sum(Loss):
    """Several losses on the same points.

        L = Σ_k c_k L_k

    Minimised by q = p if each L_k is. Of points that carry gradient, for the terms that need it,
    the others get copies without.

    Args:
        losses: L_k by name.
        coefficients: c_k > 0 by the same names; 1 where not given.

    References:
        Felardos, Hénin, Charpiat, arXiv 2301.05475, combine divergences in this way.
    """

    def __init__(
        self, losses: Mapping[str, Loss], coefficients: Mapping[str, float] | None = None
    ) -> None:
        if not losses:
            raise FlowInputError("Expected losses to hold at least one loss, got none.")
        given = dict(coefficients or {})
        if not given.keys() <= losses.keys():
            raise FlowInputError(
                f"Expected coefficients of {list(losses)}, got some of {sorted(given)}."
            )
        for name, value in given.items():
            if not value > 0:
                raise FlowInputError(f"Expected coefficient of {name!r} > 0, got {value}.")
        self.losses = dict(losses)
        self.coefficients = {name: given.get(name, 1.0) for name in losses}
        self.reparametrised = any(loss.reparametrised for loss in losses.values())
        self.needs = max(loss.needs for loss in losses.values())

    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return L, and each L_k by name."""
        values, stats = [], {}
        for name, loss in self.losses.items():
            value, _ = loss(flow, samples if loss.reparametrised else samples.detach())
            values.append(self.coefficients[name] * value)
            stats[name] = value.detach()
        return torch.stack(values).sum(), stats

    def state_dict(self) -> State:
        """Return the states of the terms."""
        return {name: loss.state_dict() for name, loss in self.losses.items()}

    def load_state_dict(self, state: State, flow: Flow) -> None:
        """Go on from `state`."""
        for name, loss in self.losses.items():
            loss.load_state_dict(state[name], flow)


class Jeffreys(Sum):
    """The symmetric divergence KL(q || p) + KL(p || q).

        L = E_z[ log q(x) - log p̃(x) ] - E_z[ (w - v) log q(x) ],   x = f_θ(z)

    Minimised by q = p. On-policy by its first term, which passes its gradient through the points
    (forces); the second weighs the same points without gradient and brings back what q has lost.

    Args:
        drop: Share of the lowest weights that the reverse term leaves out.
        max_weight: Largest weight of the forward term.

    References:
        Jeffreys, Proc. R. Soc. A 186 (1946).
    """

    def __init__(self, *, drop: float = 0.01, max_weight: float = 50.0) -> None:
        super().__init__({"reverse": ReverseKL(drop), "forward": ForwardKL(max_weight)})
