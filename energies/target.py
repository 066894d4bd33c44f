"""The density of a molecule over its internal coordinates."""

from collections.abc import Callable

import torch
from torch import Tensor

from energies.base import Energy, Evaluation, Target
from energies.errors import EnergyInputError
from energies.internal import InternalCoordinates


class MolecularTarget(Target):
    """p(x) ∝ exp(-U(xyz(x))/RT) |det d xyz / d x|.

    Args:
        energy: U, kJ/mol.
        coordinates: x -> xyz.

    Raises:
        EnergyInputError: The two speak of molecules of different size.
    """

    def __init__(self, energy: Energy, coordinates: InternalCoordinates) -> None:
        if energy.n_atoms != coordinates.n_atoms:
            raise EnergyInputError(
                f"Expected an energy of {coordinates.n_atoms} atoms as in coordinates, "
                f"got one of {energy.n_atoms}."
            )
        self.energy, self.coordinates = energy, coordinates
        self.dim, self.periodic = coordinates.dim, coordinates.periodic
        self._function: Callable[[Tensor], tuple[Tensor, Tensor]] = self._evaluate

    def compile(self) -> None:
        """Turn coordinates and energy into one graph, for each batch size on first use."""
        if self.energy.compilable:
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
        function = self._evaluate if x.requires_grad else self._function
        return Evaluation(*function(x))

    def _evaluate(self, x: Tensor) -> tuple[Tensor, Tensor]:
        xyz, log_jac = self.coordinates.to_xyz(x)
        return self.energy.uncounted(xyz), log_jac
