"""The two things a flow is trained against: an energy of atoms and a target density over x."""

from abc import ABC, abstractmethod
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from energies.compiled import Compiled, rows_in_cache
from energies.errors import EnergyInputError

R = 8.31446261815324e-3
"""Molar gas constant, kJ/mol/K. The only place where it is written."""


class Evaluation(NamedTuple):
    """What one energy call tells about a batch of points, free of any temperature.

    Attributes:
        potential: Potential energy U, kJ/mol, float64, shape [...]; +inf where it has no value.
        log_jac: log|det d xyz / d x|, float64, shape [...]; -inf outside the domain of x.
    """

    potential: Tensor
    log_jac: Tensor


class Energy(nn.Module, ABC):
    """A potential energy U(xyz) of `n_atoms` particles.

    Subclasses implement `_potential`; this class checks shapes and counts evaluations once for
    all of them.

    Attributes:
        n_atoms: Number of particles N.
        n_evals: Number of conformations whose energy was computed so far.
        compilable: Whether torch.compile can turn it into one graph.
    """

    compilable: ClassVar[bool] = True

    def __init__(self, n_atoms: int, n_dims: int = 3) -> None:
        super().__init__()
        self.n_atoms = n_atoms
        self.n_dims = n_dims
        self.n_evals = 0
        self._compiled: Compiled | None = None

    def compile(self) -> None:
        """Turn `potential` and its gradient into code for every core, if that can be done."""
        if self.compilable:
            self._compiled = Compiled(
                lambda xyz: (self.uncounted(xyz),), piece=rows_in_cache(self.n_atoms)
            )

    @abstractmethod
    def _potential(self, xyz: Tensor) -> Tensor:
        """U for positions [..., N, n_dims]; may be NaN or inf, never a wrong number."""

    def potential(self, xyz: Tensor) -> Tensor:
        """Return the potential energy of each conformation.

        Args:
            xyz: Positions, nm, shape [..., N, n_dims].

        Returns:
            U in kJ/mol, float64, shape [...], differentiable (once, if compiled); +inf for a frame
            that cannot be evaluated (it has zero force and leaves the other frames untouched).

        Raises:
            EnergyInputError: The last two dimensions of `xyz` are not (N, n_dims).
        """
        if xyz.shape[-2:] != (self.n_atoms, self.n_dims):
            raise EnergyInputError(
                f"Expected xyz of shape [..., {self.n_atoms}, {self.n_dims}], "
                f"got {list(xyz.shape)}."
            )
        self.n_evals += xyz.shape[:-2].numel()
        if self._compiled is None:
            return self.uncounted(xyz)
        (u,) = self._compiled(xyz.reshape(-1, *xyz.shape[-2:]))
        return u.reshape(xyz.shape[:-2])

    def uncounted(self, xyz: Tensor) -> Tensor:
        """Return `potential` without looking at shapes or counting: what may be compiled."""
        u = self._potential(xyz).to(torch.float64)
        return torch.where(torch.isfinite(u), u, torch.inf)


class Target(ABC):
    """An unnormalised density over x in R^D, some of whose dimensions are angles.

    Attributes:
        dim: Number of coordinates D.
        periodic: bool [D]; a periodic coordinate lives on [-π, π) with its ends joined.
    """

    dim: int
    periodic: Tensor

    @property
    @abstractmethod
    def n_evals(self) -> int:
        """Energy evaluations spent so far, shared by all views of the same energy."""

    @abstractmethod
    def evaluate(self, x: Tensor) -> Evaluation:
        """Evaluate the energy once for each row of `x`, shape [..., D]; differentiable in x."""

    def from_xyz(self, xyz: Tensor) -> Tensor:
        """Return x, [..., D], of positions xyz, [..., N, 3] in nm.

        Raises:
            EnergyInputError: The density is not one of positions.
        """
        raise EnergyInputError(f"Expected points in the coordinates of {type(self).__name__}.")

    def log_prob(self, e: Evaluation, temperature: float) -> Tensor:
        """Return the unnormalised log density -U/(RT) + log_jac, float64, shape [...].

        Args:
            e: An evaluation; one serves every temperature.
            temperature: T in kelvin.
        """
        if not temperature > 0:
            raise EnergyInputError(f"Expected temperature > 0 kelvin, got {temperature}.")
        return e.log_jac - e.potential / (R * temperature)
