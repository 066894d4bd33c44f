"""The one currency of training, evaluation and reweighting: weighted points."""

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from typing import Self

import torch
from torch import Tensor


class Weights(IntEnum):
    """What is known of the density μ that drew some points, and so of their weights p/μ."""

    NONE = 0
    """Nothing: log_q and log_w are 0."""
    RELATIVE = 1
    """μ up to a factor: weights compare the points of one source with each other."""
    ABSOLUTE = 2
    """μ itself: the mean weight estimates Z."""


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

    def where(self, rows: Tensor, other: Self) -> Self:
        """Return these points in `rows`, bool [n], and those of `other` elsewhere."""
        values = {}
        for f in fields(self):
            mine, theirs = getattr(self, f.name), getattr(other, f.name)
            values[f.name] = torch.where(rows if mine.ndim == 1 else rows[:, None], mine, theirs)
        return replace(self, **values)

    @property
    def finite(self) -> Tensor:
        """Rows whose densities are numbers, bool [n]."""
        return torch.isfinite(self.log_w) & torch.isfinite(self.log_q)

    def detach(self) -> Self:
        """Return the same points without gradient."""
        return replace(self, **{f.name: getattr(self, f.name).detach() for f in fields(self)})

    def to(self, device: torch.device | str) -> Self:
        """Return the same points in the memory of a device."""
        return replace(self, **{f.name: getattr(self, f.name).to(device) for f in fields(self)})

    def cpu(self) -> Self:
        """Return the same points in the memory of the CPU."""
        return self.to("cpu")

    def tensors(self) -> dict[str, Tensor]:
        """Return the columns by name, as checkpoints and the constructor take them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    @classmethod
    def cat(cls, parts: list[Self]) -> Self:
        """Join several sets of points into one."""
        return cls(**{f.name: torch.cat([getattr(p, f.name) for p in parts]) for f in fields(cls)})
