"""The one currency of training, evaluation and reweighting: weighted points."""

from dataclasses import dataclass, fields, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """n points with their densities; all weights are kept as logarithms in float64.

    Attributes:
        x: Points in flow coordinates, [n, D].
        log_q: Log density of the points under what drew them, [n].
        log_p: Unnormalised log density under the current target, [n]; -inf where it has no value.
        log_w: Log importance weight towards the current target, [n].
        potential: U, kJ/mol, [n]; with `log_jac` it gives log_p at any temperature.
        log_jac: log|det d xyz / d x|, [n].
    """

    x: Tensor
    log_q: Tensor
    log_p: Tensor
    log_w: Tensor
    potential: Tensor
    log_jac: Tensor

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: slice | Tensor) -> Self:
        """Return some of the points."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    @property
    def finite(self) -> Tensor:
        """Rows whose densities are numbers, bool [n]."""
        return torch.isfinite(self.log_w) & torch.isfinite(self.log_q)

    def detach(self) -> Self:
        """Return the same points without gradient."""
        return replace(self, **{f.name: getattr(self, f.name).detach() for f in fields(self)})

    def cpu(self) -> Self:
        """Return the same points in the memory of the CPU."""
        return replace(self, **{f.name: getattr(self, f.name).cpu() for f in fields(self)})

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Join several sets of points into one."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})
