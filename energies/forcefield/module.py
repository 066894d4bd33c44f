"""A whole OpenMM System as one batched torch module."""

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn

from energies.base import Energy
from energies.errors import UnsupportedForceError
from energies.forcefield.bonded import HarmonicAngle, HarmonicBond, periodic_torsion, rb_torsion
from energies.forcefield.cmap import CMAP
from energies.forcefield.custom import (
    custom_angle,
    custom_bond,
    custom_compound,
    custom_external,
    custom_torsion,
)
from energies.forcefield.geometry import Displacements, Frames, Term, norm, pair_indices
from energies.forcefield.nonbonded import Nonbonded
from energies.forcefield.pairwise import CustomNonbonded, custom_gb, gbsa_obc

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
})  # fmt: skip
"""Forces that change the dynamics and not the energy."""


class _Quarantine(torch.autograd.Function):
    """Identity whose backward zeroes the gradient of every frame where it is not finite.

    A frame of energy +inf gets its zero force here: inside the terms its gradient is 0 · inf.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        # NaN and inf spread within a frame but never between frames, so a frame is all or none.
        finite = torch.isfinite(grad).flatten(1).all(1)
        return torch.where(finite[:, None, None], grad, 0.0)


class ForceField(Energy):
    """The energy of an OpenMM System, batched over conformations, differentiable twice.

    Agrees with OpenMM's Reference platform to rounding. In float32 the energy is off by about
    1e-6 of the summed magnitudes of the terms (alanine dipeptide at 400 K: below 1e-3 kJ/mol).
    `forcefield.compile()` fuses everything into one graph in place; on a CPU batches of about
    1024 frames, which stay in cache, are fastest.

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
        self._pairs: Displacements | None = None
        if any(term.needs_pairs for term in terms.values()):
            pairs = pair_indices(n_atoms)
            self._pairs = Displacements([i for i, _ in pairs], [j for _, j in pairs], n_atoms)
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
                raise UnsupportedForceError(
                    f"Expected forces among {', '.join(sorted(TRANSLATORS))}, got "
                    f"{force.getName()} ({kind}). Use the OpenMM energy instead (energy=openmm)."
                )
            name, copies = force.getName(), 2
            while name in terms:
                name, copies = f"{force.getName()}-{copies}", copies + 1
            terms[name] = TRANSLATORS[kind](force, n)
        return cls(terms, n)

    def terms(self, xyz: Tensor) -> dict[str, Tensor]:
        """Return the energy of each force by name, kJ/mol, float64, shape [...].

        Args:
            xyz: Positions, nm, shape [..., N, 3].
        """
        frames = self._frames(xyz.reshape(-1, self.n_atoms, 3))
        return {
            name: term(frames).to(torch.float64).reshape(xyz.shape[:-2])
            for name, term in zip(self.term_names, self._terms, strict=True)
        }

    def _frames(self, xyz: Tensor) -> Frames:
        clean: Tensor = _Quarantine.apply(xyz)  # type: ignore[no-untyped-call]
        x, y, z = clean.to(self.unit).permute(2, 1, 0).contiguous().unbind(0)
        r = None if self._pairs is None else norm(self._pairs((x, y, z)))
        return Frames((x, y, z), r)

    def forward(self, xyz: Tensor) -> Tensor:
        """Return the energy without counting it, kJ/mol, float64, shape [...]; see `potential`.

        This, not `potential`, is what `compile()` compiles: a counter inside a compiled graph
        would recompile it on every call.
        """
        frames = self._frames(xyz.reshape(-1, self.n_atoms, 3))
        total = torch.zeros(frames.xyz[0].shape[1], dtype=torch.float64, device=xyz.device)
        for term in self._terms:
            total = total + term(frames)
        return total.reshape(xyz.shape[:-2])

    def _potential(self, xyz: Tensor) -> Tensor:
        energy: Tensor = self(xyz)
        return energy
