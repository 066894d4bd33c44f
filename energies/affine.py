"""Coordinates of a density that lives on plain space: one shift and one length scale."""

import math

import torch
from torch import Tensor, nn

from energies.errors import EnergyInputError


class AffineCoordinates(nn.Module):
    """y = centre + scale x, with log|det dy/dx| = D log scale.

    A flow starts from unit spread; what a density spreads over is stated here.

    Args:
        n_atoms: N, particles of y.
        n_dims: Dimensions of each; D = N n_dims.
        centre: Where x = 0 lies.
        scale: How far x = 1 reaches, in the units of y.

    Attributes:
        dim: D.
        periodic: bool [D], all False.

    Raises:
        EnergyInputError: `scale` is not positive.
    """

    periodic: Tensor

    def __init__(
        self, n_atoms: int, n_dims: int, *, centre: float = 0.0, scale: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise EnergyInputError(f"Expected scale > 0, got {scale}.")
        self.n_atoms, self.n_dims, self.dim = n_atoms, n_dims, n_atoms * n_dims
        self.centre, self.scale = centre, scale
        self.register_buffer("periodic", torch.zeros(self.dim, dtype=torch.bool))

    def to_xyz(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return y, [..., N, n_dims], and the log-determinant, float64 [...], of x [..., D]."""
        y = self.centre + self.scale * x
        log_det = torch.full(
            x.shape[:-1], self.dim * math.log(self.scale), dtype=torch.float64, device=x.device
        )
        return y.reshape(*x.shape[:-1], self.n_atoms, self.n_dims), log_det

    def from_xyz(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Return x, [..., D], and log|det dx/dy|, float64 [...], of y [..., N, n_dims]."""
        if xyz.shape[-2:] != (self.n_atoms, self.n_dims):
            raise EnergyInputError(
                f"Expected xyz of shape [..., {self.n_atoms}, {self.n_dims}], "
                f"got {list(xyz.shape)}."
            )
        x = (xyz.flatten(-2) - self.centre) / self.scale
        return x, -self.to_xyz(x)[1]
