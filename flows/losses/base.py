"""What a loss is, and what most losses share."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from flows.errors import FlowInputError
from flows.flow import Flow
from flows.state import Stateful
from flows.types import Samples, Weights

Stats = dict[str, Tensor]


class Loss(Stateful, ABC):
    """A scalar of a flow and a batch of points, whose minimiser over q is the target p.

    A loss never calls the energy: all it knows of the target is in `samples`.

    Attributes:
        reparametrised: Whether the points must be x = f_θ(z) with gradient (True), or may come
            from anywhere, without gradient (False).
        needs: What must be known of the density that drew the points.
    """

    reparametrised: bool = False
    needs: Weights = Weights.NONE

    @abstractmethod
    def __call__(self, flow: Flow, samples: Samples) -> tuple[Tensor, Stats]:
        """Return the loss, float64 scalar, and figures to log (without gradient)."""


def check_fraction(name: str, value: float) -> float:
    """Return `value` if it is a fraction in [0, 1)."""
    if not 0 <= value < 1:
        raise FlowInputError(f"Expected {name} in [0, 1), got {value}.")
    return value


def check_max_weight(value: float) -> float:
    """Return `value` if it is a possible bound on weights of mean 1."""
    if not value > 1:
        raise FlowInputError(f"Expected max_weight > 1, got {value}.")
    return value


def kept(log_w: Tensor, drop: float) -> Tensor:
    """Weights 1/0, [n]: finite rows without the `drop` share of lowest log weights.

    The lowest weights are points where the flow puts mass on enormous energies; a handful of them
    would rule every mean. Shapes stay static: a dropped row counts with weight 0.
    """
    finite = torch.isfinite(log_w)
    order = torch.where(finite, log_w, -torch.inf)
    n_drop = int(drop * log_w.shape[0])
    if n_drop == 0:
        return finite.to(torch.float64)
    bound = torch.topk(order, n_drop, largest=False).values[-1]
    return (finite & (order > bound)).to(torch.float64)


def masked_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of `values` under `weight`; rows of weight 0 pass neither value nor gradient."""
    return (weight * zeroed(values, weight)).sum() / weight.sum().clamp_min(1.0)


def zeroed(values: Tensor, weight: Tensor) -> Tensor:
    """`values` with 0 in rows of weight 0: an infinity there must not meet any arithmetic."""
    return torch.where(weight > 0, values, 0.0)


def scaled_weights(log_w: Tensor, rows: Tensor, max_weight: float) -> Tensor:
    """Return exp(log_w) scaled to mean 1, then cut at `max_weight`, without gradient, [n].

    Args:
        log_w: Log weights up to a constant, [n].
        rows: bool [n], the rows that count; the others have weight 0.
        max_weight: Largest weight.
    """
    log_w = torch.where(rows, log_w.detach(), -torch.inf)
    w = torch.nan_to_num(torch.softmax(log_w, 0))  # NaN where no row counts
    return (w * len(w)).clamp_max(max_weight)
