"""A whole OpenMM System as one batched torch module."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from energies.base import Energy
from energies.compiled import sound
from energies.errors import EnergyInputError, UnsupportedForceError
from energies.forcefield.bonded import HarmonicAngle, HarmonicBond, periodic_torsion, rb_torsion
from energies.forcefield.cmap import CMAP
from energies.forcefield.custom import (
    custom_angle,
    custom_bond,
    custom_compound,
    custom_external,
    custom_torsion,
)
from energies.forcefield.geometry import Frames, Term
from energies.forcefield.nonbonded import Nonbonded
from energies.forcefield.pairs import pair_distances, stored
from energies.forcefield.pairwise import CustomNonbonded, custom_gb, gbsa_obc
from energies.forcefield.reader import unsupported

TRANSLATORS: dict[str, Callable[[Any, int], Term]] = {
    "HarmonicBondForce": HarmonicBond,
    "HarmonicAngleForce": HarmonicAngle,
    "PeriodicTorsionForce": periodic_torsion,
    "RBTorsionForce": rb_torsion,
    "CMAPTorsionForce": CMAP,
    "NonbondedForce": Nonbonded,
    "GBSAOBCForce": gbsa_obc,
    "CustomBondForce": custom_bond,
    "CustomAngleForce": custom_angle,
    "CustomTorsionForce": custom_torsion,
    "CustomCompoundBondForce": custom_compound,
    "CustomExternalForce": custom_external,
    "CustomNonbondedForce": CustomNonbonded,
    "CustomGBForce": custom_gb,
}
"""OpenMM class name -> translator (force, n_atoms) -> Term. A new force is one entry."""

SKIPPED = frozenset({
    "CMMotionRemover", "AndersenThermostat", "MonteCarloBarostat",
    "MonteCarloAnisotropicBarostat", "MonteCarloMembraneBarostat", "MonteCarloFlexibleBarostat",
    "RPMDMonteCarloBarostat",
})  # fmt: skip
"""Forces that change the dynamics and not the energy."""


class _Quarantine(torch.autograd.Function):
    """Identity whose backward returns a sound gradient."""

    @staticmethod
    def forward(xyz: Tensor) -> Tensor:
        return xyz.view_as(xyz)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return sound(grad)


def _planes(xyz: Tensor, like: Tensor) -> Tensor:
    """Return the coordinates with the batch innermost, [3, N, B], for xyz [B, N, 3]."""
    planes = xyz.to(like).permute(2, 1, 0)
    # A compiler would drop the copy and loop over atoms innermost.
    return stored(planes) if torch.compiler.is_compiling() else planes.contiguous()


class ForceField(Energy):
    """The energy of an OpenMM System, batched over conformations, differentiable twice.

    In float64 it agrees with OpenMM's Reference platform to rounding: 1e-11 of the energy, 1e-12
    of the largest force, near clashes too. In float32 a dipeptide has these errors, over fifteen
    force fields and 200 frames of each:

    | frames | energy | forces |
    |---|---|---|
    | thermal, 400 K | up to 4e-4 kJ/mol | up to 1.4e-5 of the largest |
    | stretched, near clashes | up to 3e-6 of the summed magnitudes of the terms | the same |

    `forcefield.compile()` makes one graph of everything, with the gradient, which every core runs
    on pieces of a batch (`energies.compiled`); it can be differentiated once.

    Example:
        >>> forcefield = ForceField.from_openmm(molecule.system)  # doctest: +SKIP
        >>> forcefield.potential(xyz).shape  # xyz [8, 22, 3]  # doctest: +SKIP
        torch.Size([8])

    Args:
        terms: Named forces.
        n_atoms: Number of particles N.
    """

    unit: Tensor

    def __init__(self, terms: dict[str, Term], n_atoms: int) -> None:
        super().__init__(n_atoms=n_atoms)
        self._terms = nn.ModuleList(terms.values())
        self.term_names = list(terms)
        self._needs_pairs = any(term.needs_pairs for term in terms.values())
        # Carries the dtype and device of the module, even without any term.
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

    @classmethod
    def from_openmm(cls, system: Any) -> Self:
        """Translate an OpenMM System; later changes to it have no effect.

        Args:
            system: `openmm.System`; global parameters of its forces stay at their defaults.

        Raises:
            UnsupportedForceError: A force or an option of one is not translated.
        """
        n = system.getNumParticles()
        if any(system.isVirtualSite(i) for i in range(n)):
            raise UnsupportedForceError(
                "Expected a System without virtual sites, got one with. "
                "Use the OpenMM energy instead (energy=openmm)."
            )
        terms: dict[str, Term] = {}
        for force in system.getForces():
            kind = type(force).__name__
            if kind in SKIPPED:
                continue
            if kind not in TRANSLATORS:
                raise unsupported(force, f"known are {', '.join(sorted(TRANSLATORS))}")
            name, copies = force.getName(), 2
            while name in terms:
                name, copies = f"{force.getName()}-{copies}", copies + 1
            try:
                terms[name] = TRANSLATORS[kind](force, n)
            except UnsupportedForceError:
                raise
            except EnergyInputError as error:
                raise unsupported(force, str(error)) from error
        return cls(terms, n)

    def terms(self, xyz: Tensor) -> dict[str, Tensor]:
        """Return the energy of each force by name, kJ/mol, float64, shape [...].

        Args:
            xyz: Positions, nm, shape [..., N, 3].
        """
        frames = self._frames(_planes(xyz.reshape(-1, self.n_atoms, 3), self.unit))
        return {
            name: term(frames).to(torch.float64).reshape(xyz.shape[:-2])
            for name, term in zip(self.term_names, self._terms, strict=True)
        }

    def _frames(self, planes: Tensor) -> Frames:
        x, y, z = planes.unbind(0)
        return Frames((x, y, z), pair_distances((x, y, z)) if self._needs_pairs else None)

    def forward(self, xyz: Tensor) -> Tensor:
        """Return the energy without counting it, kJ/mol, float64, shape [...]; see `potential`."""
        frames = xyz.reshape(-1, self.n_atoms, 3)
        clean: Tensor = _Quarantine.apply(frames)  # type: ignore[no-untyped-call]
        return self._energies(_planes(clean, self.unit)).reshape(xyz.shape[:-2])

    def _energies(self, planes: Tensor) -> Tensor:
        """Return the sum of the terms, kJ/mol, float64, [B], for coordinates [3, N, B]."""
        frames = self._frames(planes)
        # Zero, but NaN for a frame with a position that is not finite, which no term may look at.
        total = (0.0 * planes).sum((0, 1)).to(torch.float64)
        for term in self._terms:
            total = total + term(frames)
        return total

    def _potential(self, xyz: Tensor) -> Tensor:
        energy: Tensor = self(xyz)
        return energy
