"""Langevin dynamics of thousands of replicas in one tensor, on any energy."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from energies.base import Energy, R
from energies.errors import EnergyInputError


class Phase(NamedTuple):
    """Positions and velocities at one time, with what the energy says there.

    Attributes:
        xyz: Positions, nm, [..., N, d].
        velocity: Velocities, nm/ps, [..., N, d].
        force: -dU/dxyz, kJ/mol/nm, [..., N, d].
        potential: U, kJ/mol, float64 [...].
    """

    xyz: Tensor
    velocity: Tensor
    force: Tensor
    potential: Tensor


class Langevin:
    """The BAOAB splitting of Langevin dynamics, one energy evaluation a step.

        B: v += (h/2) F/m      A: x += (h/2) v      O: v = a v + sqrt((1 - a²) RT/m) ξ
        one step: B A O A (force) B,   a = exp(-γ h),   ξ ~ N(0, 1)

    Positions follow exp(-U/RT) exactly for a harmonic U at any stable step h, and to O(h²) with a
    small prefactor otherwise. Positions and velocities keep the dtype they come in (float32 does),
    energies are float64. A free molecule diffuses: alanine dipeptide at 300 K and 1/ps is 30 nm
    away after 10 ns, where float32 still resolves 2e-6 nm.

    Args:
        energy: U; its parameters are on the device of the replicas.
        masses: m, dalton, [N]. Positions have the same distribution whatever the masses are, so
            they may be chosen to allow a longer step: see `repartition`.
        time_step: h, ps.
        friction: γ, 1/ps.

    Raises:
        EnergyInputError: A mass, a step or a friction that is not positive, or the wrong number of
            masses.

    References:
        Leimkuhler, Matthews, Rational construction of stochastic numerical methods for molecular
        sampling, arXiv:1203.5428.
    """

    def __init__(
        self,
        energy: Energy,
        masses: Tensor,
        *,
        time_step: float = 0.001,
        friction: float = 1.0,
    ) -> None:
        if masses.shape != (energy.n_atoms,):
            raise EnergyInputError(
                f"Expected masses of shape [{energy.n_atoms}], got {list(masses.shape)}."
            )
        if not bool(((masses > 0) & masses.isfinite()).all()):
            raise EnergyInputError(f"Expected masses > 0 dalton, got {masses.min()}.")
        for name, value in (("time_step", time_step), ("friction", friction)):
            if not value > 0:
                raise EnergyInputError(f"Expected {name} > 0, got {value}.")
        self.energy, self.masses = energy, masses.to(torch.float64)
        self.time_step, self.friction = time_step, friction

    def start(self, xyz: Tensor, temperature: Tensor, generator: torch.Generator) -> Phase:
        """Return replicas at `xyz` with thermal velocities.

        Args:
            xyz: Positions, nm, [..., N, d].
            temperature: T, kelvin, broadcast against [...].
            generator: Source of randomness, on the device of `xyz`.

        Raises:
            EnergyInputError: Wrong shape, positions that are not finite, or without an energy.
        """
        shape = (self.energy.n_atoms, self.energy.n_dims)
        if xyz.shape[-2:] != shape:
            raise EnergyInputError(
                f"Expected xyz of shape [..., {shape[0]}, {shape[1]}], got {list(xyz.shape)}."
            )
        if not bool(xyz.isfinite().all()):
            raise EnergyInputError(
                f"Expected finite xyz, got {int((~xyz.isfinite()).sum())} numbers that are not."
            )
        force, potential = self._forces(xyz)
        if not bool(potential.isfinite().all()):
            raise EnergyInputError(
                f"Expected xyz of finite energy, got {int((~potential.isfinite()).sum())} "
                f"replicas without."
            )
        return Phase(xyz, self._noise(xyz, temperature, generator), force, potential)

    def step(self, phase: Phase, temperature: Tensor, generator: torch.Generator) -> Phase:
        """Return the replicas one time step later.

        Args:
            phase: Where they are.
            temperature: T, kelvin, broadcast against [...].
            generator: Source of randomness, on the device of the replicas.
        """
        xyz, velocity, force, _ = phase
        half = 0.5 * self.time_step
        kick = (half / self.masses)[:, None].to(xyz)
        a = torch.exp(torch.tensor(-self.friction * self.time_step, dtype=torch.float64))
        noise = self._noise(xyz, temperature * (1 - a.item() ** 2), generator)
        velocity = velocity + kick * force
        xyz = xyz + half * velocity
        velocity = a.item() * velocity + noise
        xyz = xyz + half * velocity
        force, potential = self._forces(xyz)
        return Phase(xyz, velocity + kick * force, force, potential)

    def _noise(self, xyz: Tensor, temperature: Tensor, generator: torch.Generator) -> Tensor:
        """Velocities drawn from exp(-m v² / 2RT)."""
        scale = (R * temperature[..., None] / self.masses.to(temperature)).sqrt()
        normal = torch.randn(xyz.shape, generator=generator, dtype=xyz.dtype, device=xyz.device)
        return scale[..., None].to(xyz) * normal

    def _forces(self, xyz: Tensor) -> tuple[Tensor, Tensor]:
        x = xyz.detach().requires_grad_()
        u = self.energy.potential(x)
        return -torch.autograd.grad(u.sum(), x)[0], u.detach()


def masses_from_openmm(system: Any) -> Tensor:
    """Return the masses of an OpenMM System, dalton, float64 [N].

    Args:
        system: `openmm.System` whose atoms all move freely.

    Raises:
        EnergyInputError: The System has constraints, or an atom without mass.
    """
    if n := system.getNumConstraints():
        raise EnergyInputError(
            f"Expected a System without constraints, which Langevin dynamics here does not obey, "
            f"got {n} of them; build the molecule with constraints=null, or use OpenMM's own "
            f"LangevinMiddleIntegrator."
        )
    masses = [system.getParticleMass(i)._value for i in range(system.getNumParticles())]
    if fixed := [i for i, mass in enumerate(masses) if mass == 0]:
        raise EnergyInputError(f"Expected atoms that have a mass, got none for atoms {fixed}.")
    return torch.tensor(masses, dtype=torch.float64)


def repartition(
    masses: Tensor, bonds: Iterable[tuple[int, int]], *, hydrogen_mass: float
) -> Tensor:
    """Return masses with each hydrogen made heavier at the cost of the atom it is bonded to.

    The fastest vibrations slow down and the time step may grow; the distribution of positions does
    not change, nor does the mass of a group that turns as a whole.

    Args:
        masses: dalton, [N]; below 2 is a hydrogen.
        bonds: Bonded pairs.
        hydrogen_mass: dalton.

    Raises:
        EnergyInputError: Nothing would be left for a heavy atom.
    """
    moved = masses.clone()
    for i, j in bonds:
        for h, heavy in ((i, j), (j, i)):
            if masses[h] < 2 <= masses[heavy]:
                moved[heavy] -= hydrogen_mass - masses[h]
                moved[h] = hydrogen_mass
    if not bool((moved > 0).all()):
        raise EnergyInputError(
            f"Expected hydrogen_mass to leave every heavy atom a mass, got {hydrogen_mass}."
        )
    return moved
