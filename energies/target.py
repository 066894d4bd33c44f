"""From an energy and coordinates to the density that a flow is trained on."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from energies.affine import AffineCoordinates
from energies.analytic import AnalyticEnergy
from energies.base import Energy, Evaluation, Target
from energies.compiled import Compiled, rows_in_cache
from energies.errors import EnergyInputError
from energies.internal import InternalCoordinates


class Coordinates(Protocol):
    """A bijection x -> xyz with its log-determinant.

    Attributes:
        dim: D.
        periodic: bool [D].
        n_atoms: N.
    """

    dim: int
    periodic: Tensor
    n_atoms: int

    def to_xyz(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return xyz [..., N, n_dims] and log|det d xyz / d x|, float64 [...]."""

    def from_xyz(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        """Return x [..., D] and log|det d x / d xyz|, float64 [...]."""


class EnergyTarget(Target):
    """p(x) ∝ exp(-U(xyz(x))/RT) |det d xyz / d x|.

    Args:
        energy: U, kJ/mol.
        coordinates: x -> xyz.

    Raises:
        EnergyInputError: The two speak of systems of different size.
    """

    def __init__(self, energy: Energy, coordinates: Coordinates) -> None:
        if energy.n_atoms != coordinates.n_atoms:
            raise EnergyInputError(
                f"Expected an energy of {coordinates.n_atoms} atoms as in coordinates, "
                f"got one of {energy.n_atoms}."
            )
        self.energy, self.coordinates = energy, coordinates
        self.dim, self.periodic = coordinates.dim, coordinates.periodic
        self._compiled: Compiled | None = None
        self._function: Callable[[Tensor], tuple[Tensor, Tensor]] = self._evaluate

    def compile(self) -> None:
        """Turn coordinates, energy and both gradients into code for every core, if possible."""
        if self.energy.compilable:
            piece = rows_in_cache(self.energy.n_atoms)
            self._compiled = Compiled(self._evaluate, piece=piece)
            # Without a gradient as one graph: between the steps of a flow, whose products use all
            # cores, the threads of `Compiled` made a training step twice as long.
            self._function = torch.compile(self._evaluate, dynamic=False, fullgraph=True)

    @property
    def n_evals(self) -> int:
        """Energy evaluations spent so far."""
        return self.energy.n_evals

    def evaluate(self, x: Tensor) -> Evaluation:
        """Return potential and log-determinant, -inf where a row is outside the domain."""
        if x.shape[-1] != self.dim:
            raise EnergyInputError(f"Expected x of shape [..., {self.dim}], got {list(x.shape)}.")
        self.energy.n_evals += x.shape[:-1].numel()
        if self._compiled is None or not x.requires_grad:
            return Evaluation(*self._function(x))
        found = self._compiled(x.reshape(-1, self.dim))
        return Evaluation(*(column.reshape(x.shape[:-1]) for column in found))

    def from_xyz(self, xyz: Tensor) -> Tensor:
        """Return the coordinates x, [..., D], of positions [..., N, n_dims]."""
        return self.coordinates.from_xyz(xyz)[0]

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        xyz, log_jac = self.coordinates.to_xyz(x)
        return self.energy.uncounted(xyz), log_jac


class MolecularTarget(EnergyTarget):
    """The density of a molecule over its internal coordinates.

    Args:
        energy: U, kJ/mol.
        coordinates: x -> xyz.
    """

    coordinates: InternalCoordinates

    def __init__(self, energy: Energy, coordinates: InternalCoordinates) -> None:
        super().__init__(energy, coordinates)


class AnalyticTarget(EnergyTarget):
    """A density in closed form over x = (y - centre) / scale.

    Its log Z is that of the energy: the log-determinant is part of the density.

    Args:
        energy: U, whose exact results are known.
        centre: y where x = 0.
        scale: How far the density spreads, in the units of y: a flow starts at unit spread.
        device: Where x lives.
    """

    energy: AnalyticEnergy
    coordinates: AffineCoordinates

    def __init__(
        self,
        energy: AnalyticEnergy,
        *,
        centre: float = 0.0,
        scale: float = 1.0,
        device: torch.device | None = None,
    ) -> None:
        affine = AffineCoordinates(energy.n_atoms, energy.n_dims, centre=centre, scale=scale)
        super().__init__(energy, affine.to(device))
