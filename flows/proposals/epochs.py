"""Rows of a stored set, batch by batch, each once before any twice."""

from typing import Any

import torch
from torch import Tensor


class Epochs:
    """Shuffles the rows of a set and hands them out; a rest smaller than a batch is left out.

    Args:
        n_rows: Rows of the set.
    """

    def __init__(self, n_rows: int) -> None:
        self.n_rows = self._next = n_rows
        self._order = torch.arange(n_rows)

    def rows(self, n: int, device: torch.device, generator: torch.Generator) -> Tensor:
        """Return n row numbers, int64 [n], n at most the number of rows."""
        if self._next + n > self.n_rows:
            order = torch.randperm(self.n_rows, generator=generator, device=generator.device)
            self._order, self._next = order.to(device), 0
        rows = self._order[self._next : self._next + n]
        self._next += n
        return rows

    def state_dict(self) -> dict[str, Any]:
        """Return order and position."""
        return {"order": self._order, "next": self._next}

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> "Epochs":
        """Go on from `state`."""
        epochs = cls(len(state["order"]))
        epochs._order, epochs._next = state["order"].to(device), state["next"]
        return epochs
