"""Exponential moving average of a flow's parameters: the weights that are evaluated."""

import copy
from typing import Generic, TypeVar

import torch
from torch import Tensor, nn

from flows.errors import FlowInputError

M = TypeVar("M", bound=nn.Module)


class EMA(Generic[M]):
    """Average of the parameters over about 1/(1 - decay) steps; it filters gradient noise.

        θ̄ ← β θ̄ + (1 - β) θ,   β = min(decay, (1 + t)/(10 + t)) at update t

    Args:
        module: Whose parameters to follow.
        decay: β in [0, 1).
    """

    def __init__(self, module: M, decay: float) -> None:
        if not 0 <= decay < 1:
            raise FlowInputError(f"Expected ema_decay in [0, 1), got {decay}.")
        self.decay, self.n_updates = decay, 0
        self._source: list[Tensor] = list(module.parameters())
        self.module: M = copy.deepcopy(module)
        self._average: list[Tensor] = list(self.module.parameters())

    @torch.no_grad()
    def update(self) -> None:
        """Take one step towards the current parameters."""
        decay = min(self.decay, (1 + self.n_updates) / (10 + self.n_updates))
        torch._foreach_lerp_(self._average, self._source, 1.0 - decay)
        self.n_updates += 1
